// The gradient of a convolution in its weight and bias:
//   weight[o, c, u, v] = or += sum over i, j of grad_y[o, i, j] *
//                        x[c, i * stride + u * dilation - pad, j * stride + v * dilation - pad]
//   bias[o] = or += sum over pixels of grad_y[o]; or the same of x
// A slice of the image goes block by block: a block of x and of grad_y is packed (borders become
// zeros, phases of a stride become planes, ends of rows are zero up to whole vectors), then every
// weight is a dot product along pixels. Slices have sums of their own, which are added in order.
#include "team.h"
#include "weight_grad_plan.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Working memory of one thread.
template <class T>
struct Packed {
  int64_t* offsets;  // of each stream, from the first channel of its group
  T* x;              // layer, channel, phase of rows, phase of columns, row, column
  T* grad;           // layer, channel, row, column
  const char** runs;  // of the next block
  Packed(const Plan& plan, char* memory) {
    offsets = reinterpret_cast<int64_t*>(memory);
    x = reinterpret_cast<T*>(memory + plan.offsets_bytes());
    grad = reinterpret_cast<T*>(memory + plan.offsets_bytes() + plan.x_bytes());
    runs = reinterpret_cast<const char**>(memory + plan.thread_bytes() - plan.ahead_bytes());
  }
};

// What one task works on: sums of one slice for some output channels and the inputs they see.
struct Part {
  Range blocks, pairs, outputs, inputs;
  float* weight;  // of the slice, whole: layer, output, stream
  float* bias;
  bool owns_outputs, owns_inputs;  // no other part of the slice has the same ones
};

struct Block {
  Range rows, columns;
};

static Block find_block(const Plan& plan, int64_t index) {
  const int64_t r = index % plan.row_blocks.parts, c = index / plan.row_blocks.parts;
  return Block{{plan.row_blocks.begin(r), plan.row_blocks.begin(r + 1)},  // groups
               {plan.column_blocks.begin(c), plan.column_blocks.begin(c + 1)}};
}

static void find_offsets(const Plan& plan, int64_t* offsets) {
  for (int64_t c = 0; c < plan.ci; c++) {
    for (int64_t u = 0; u < plan.taps_down(); u++) {
      for (int64_t v = 0; v < plan.right.taps; v++) {
        const int64_t phase = u % plan.down.period * plan.right.phases() + v % plan.right.period;
        *offsets++ = (c * plan.planes() + phase) * plan.x_plane +
                     plan.down.shift(u) * plan.pitch + plan.right.shift(v);
      }
    }
  }
}

EA_INLINE float add_lanes(Vec v) {
  float sum = 0;
  for (int lane = 0; lane < lanes; lane++) sum += v[lane];
  return sum;
}

EA_INLINE void add_to(float& to, float value, bool add) { to = add ? to + value : value; }

// Where the rows of a packed plane come from: row r is row top + r * step of the sources, columns
// alike. What lies outside of the sources, or beyond `columns`, is zero.
struct Region {
  int64_t top, down_step, rows;
  int64_t left, right_step, columns;
};

template <class T>
static void pack_row(T* to, int64_t pitch, const Plane* sources, int64_t channel,
                     const Region& region, int64_t r) {
  copy_row(to, find_row(sources, channel, region.top + r * region.down_step), region.left,
           region.columns, region.right_step);
  __builtin_memset(to + region.columns, 0, (pitch - region.columns) * sizeof(T));
}

// The last vector of a row may begin before the end of the last row, and what is not a number stays
// so even times zero.
template <class T>
static void clear_end(T* plane, int64_t used, int64_t size) {
  __builtin_memset(plane + used, 0, (size - used) * sizeof(T));
}

template <class T>
static void pack_plane(T* to, const Plan& plan, int64_t size, const Plane* sources, int64_t channel,
                       const Region& region) {
  for (int64_t r = 0; r < region.rows; r++)
    pack_row(to + r * plan.pitch, plan.pitch, sources, channel, region, r);
  clear_end(to, region.rows * plan.pitch, size);
}

// Planes of the layers of one channel, which is in `image`; region.rows counts groups. Returns the
// sum of what was read of grad_y.
template <class From, bool x>
static float pack_layers(float* to, int64_t layer_pitch, int64_t plane, const Plan& plan, Range pairs,
                         const Plane& image, int64_t channel, const Region& region) {
  const auto transform = find_transform<From, x>(pairs.begin, pairs.end);
  const int64_t height = x ? 6 : 4;
  Group<From> group;
  group.pitch = image.row_stride;
  group.begin = larger(0, -region.left);
  group.end = clamp(image.width - region.left, 0, region.columns);
  Vec sum = {};
  for (int64_t g = 0; g < region.rows; g++) {
    const int64_t top = region.top + g * rows_per_group;
    group.rows = static_cast<const From*>(image.data) + channel * image.channel_stride +
                 top * image.row_stride + region.left;
    group.first = (int)clamp(-top, 0, height);
    group.last = (int)clamp(image.height - top, group.first, height);
    transform(group, plan.pitch, to + g * plan.pitch, layer_pitch, &sum);
  }
  for (int64_t m = 0; m < 2 * pairs.size(); m++)
    clear_end(to + m * layer_pitch, region.rows * plan.pitch, plane);
  return add_lanes(sum);
}

template <class T>
static void pack_x(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                   const Block& block, Packed<T> packed) {
  const int64_t phases_down = plan.down.phases_of(plan.taps_down());
  T* to = packed.x;
  for (int64_t c = part.inputs.begin; c < part.inputs.end; c++) {
    for (int64_t u = 0; u < phases_down; u++) {
      for (int64_t v = 0; v < plan.right.phases(); v++, to += plan.x_plane) {
        const int64_t row = block.rows.begin * plan.group_rows, column = block.columns.begin;
        const Region region{plan.down.first(row) + plan.down.phase_begin(u),
                            plan.down.stride,
                            block.rows.size() + plan.overhang_down(),
                            plan.right.first(column) + plan.right.phase_begin(v),
                            plan.right.stride,
                            block.columns.size() + plan.right.overhang()};
        if constexpr (sizeof(T) == 4) {
          if (plan.winograd) {
            const Plane* image = a.x;
            int64_t channel = c;
            while (channel >= image->channels) channel -= image++->channels;
            const auto pack = image->dtype == F32 ? pack_layers<float, true> : pack_layers<uint16_t, true>;
            pack(to, plan.x_layer(), plan.x_plane, plan, part.pairs, *image, channel, region);
            continue;
          }
        }
        pack_plane(to, plan, plan.x_plane, a.x, c, region);
      }
    }
  }
}

template <class T>
static void pack_grad(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                      const Block& block, Packed<T> packed, bool add) {
  const Plane only[max_sources] = {a.grad_y};
  const Region region{block.rows.begin * plan.group_rows, 1, block.rows.size(),
                      block.columns.begin,                1, block.columns.size()};
  T* to = packed.grad;
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++, to += plan.grad_plane) {
    if constexpr (sizeof(T) == 4) {
      if (plan.winograd) {
        const auto pack =
            a.grad_y.dtype == F32 ? pack_layers<float, false> : pack_layers<uint16_t, false>;
        const float sum = pack(to, plan.grad_layer(), plan.grad_plane, plan, part.pairs, a.grad_y, o,
                               region);
        if (a.bias_of == BIAS_GRAD_Y && part.owns_outputs) add_to(part.bias[o], sum, add);
        continue;
      }
    }
    pack_plane(to, plan, plan.grad_plane, only, o, region);
  }
}

template <class T>
static float sum_elements(const T* p, int64_t count) {
  Vec sums = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) sums += load_any(p + i);
  float sum = 0;
  for (; i < count; i++) sum += load_one(p + i);
  return sum + add_lanes(sums);
}

static float sum_pixels(const Plane* sources, int64_t channel, Range rows, Range columns) {
  float sum = 0;
  for (int64_t y = rows.begin; y < rows.end; y++) {
    const Row row = find_row(sources, channel, y);
    sum += row.dtype == F32
               ? sum_elements(static_cast<const float*>(row.data) + columns.begin, columns.size())
               : sum_elements(static_cast<const uint16_t*>(row.data) + columns.begin, columns.size());
  }
  return sum;
}

// The inputs that a range of outputs accounts for, such that each is accounted for once.
static Range inputs_of(const Axis& axis, Range outputs, int64_t all_outputs, int64_t all_inputs) {
  const int64_t begin = clamp(axis.first(outputs.begin), 0, all_inputs);
  const int64_t end = clamp(axis.first(outputs.end), 0, all_inputs);
  return Range{outputs.begin == 0 ? 0 : begin, outputs.end == all_outputs ? all_inputs : end};
}

static void sum_bias(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                     const Block& block, bool add) {
  const Plane only[max_sources] = {a.grad_y};
  const bool of_x = a.bias_of == BIAS_X;
  if (!plan.biases || !(of_x ? part.owns_inputs : part.owns_outputs)) return;
  if (plan.winograd && !of_x) return;  // pack_grad has done it
  const Range channels = of_x ? part.inputs : part.outputs;
  Range rows{block.rows.begin * plan.group_rows,
             smaller(block.rows.end * plan.group_rows, a.grad_y.height)};
  Range columns = block.columns;
  if (of_x) {
    rows = inputs_of(plan.down, rows, a.grad_y.height, a.x[0].height);
    columns = inputs_of(plan.right, columns, a.grad_y.width, a.x[0].width);
  }
  for (int64_t c = channels.begin; c < channels.end; c++) {
    const float sum = sum_pixels(of_x ? a.x : only, c, rows, columns);
    add_to(part.bias[c], sum, add);
  }
}

// The sums of the part's m-th layer.
template <class T>
static void multiply(const Plan& plan, const Part& part, const Pixels<T>& pixels,
                     const Packed<T>& packed, Ahead& ahead, int64_t m, bool add) {
  float* weight = part.weight + (2 * part.pairs.begin + m) * plan.weights;
  for (int64_t o = part.outputs.begin; o < part.outputs.end;) {
    const int64_t group = o / plan.co, end = smaller(part.outputs.end, (group + 1) * plan.co);
    const int64_t first = group * plan.ci - part.inputs.begin;
    const T* x = packed.x + m * plan.x_layer() + first * plan.planes() * plan.x_plane;
    const T* grad =
        packed.grad + m * plan.grad_layer() + (o - part.outputs.begin) * plan.grad_plane;
    all_tiles(pixels, grad, plan.grad_plane, end - o, x, packed.offsets, plan.streams,
              ahead, weight + o * plan.streams, plan.streams, add);
    o = end;
  }
}

// What pack_x and pack_grad will read of a block.
static void look_ahead(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                       const Block& block, int64_t run_bytes, Ahead& ahead) {
  const int64_t top = block.rows.begin * plan.group_rows, bottom = block.rows.end * plan.group_rows;
  const int64_t left = block.columns.begin, right = block.columns.end;
  const int64_t reach_down = plan.down.reach(), reach_right = plan.right.reach();
  int64_t c = -part.inputs.begin;
  for (const Plane& x : a.x) {
    for (int64_t i = larger(0, -c); i < x.channels && c + i < part.inputs.size(); i++)
      ahead.add_channel(x, i, plan.down.first(top), plan.down.first(bottom - 1) + reach_down,
                        plan.right.first(left), plan.right.first(right - 1) + reach_right, run_bytes);
    c += x.channels;
  }
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++)
    ahead.add_channel(a.grad_y, o, top, bottom, left, right, run_bytes);
}

template <class T>
static void work_off(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                     const Part& next, char* memory) {
  const Packed<T> packed(plan, memory);
  Ahead ahead(packed.runs, ahead_runs, plan.block_rows(), packed.x);
  find_offsets(plan, packed.offsets);
  for (int64_t b = part.blocks.begin; b < part.blocks.end; b++) {
    const Block block = find_block(plan, b);
    const bool add = b != part.blocks.begin;
    pack_x(plan, a, part, block, packed);
    pack_grad(plan, a, part, block, packed, add);
    sum_bias(plan, a, part, block, add);
    Pixels<T> pixels{block.rows.size(), divide_up(block.columns.size(), plan.vector()), plan.pitch};
    if (plan.flat) pixels = {1, divide_up(block.rows.size() * plan.pitch, plan.vector()), 0};
    ahead.clear();
    if (b + 1 < part.blocks.end)
      look_ahead(plan, a, part, find_block(plan, b + 1), pixels.vectors * line, ahead);
    else
      look_ahead(plan, a, next, find_block(plan, next.blocks.begin), pixels.vectors * line, ahead);
    const int64_t layers = plan.winograd ? 2 * part.pairs.size() : 1;
    for (int64_t m = 0; m < layers; m++) multiply(plan, part, pixels, packed, ahead, m, add);
  }
}

// Slices follow each other in `sums`, `apart` elements apart.
static void add_slices(float* to, const float* sums, int64_t slices, int64_t apart, Range range,
                       bool add) {
  for (int64_t i = range.begin; i < range.end; i++) {
    float sum = sums[i];
    for (int64_t s = 1; s < slices; s++) sum += sums[s * apart + i];
    add_to(to[i], sum, add);
  }
}

// The same for sums of layers: range counts pairs of an output and an input channel.
static void combine_layers(const Plan& plan, float* weight, const float* sums, Range range, bool add) {
  constexpr int64_t most = 240;
  float layers[layer_count][most];
  const int64_t columns = plan.right.taps;
  const int64_t begin = range.begin * columns, end = range.end * columns;
  for (int64_t i = begin; i < end; i += most) {
    const int64_t count = smaller(most, end - i);
    for (int64_t m = 0; m < layer_count; m++)
      add_slices(layers[m], sums + m * plan.weights + i, plan.slices.parts, plan.sums(), {0, count},
                 false);
    for (int64_t u = 0; u < 3; u++) {
      const float* factors = combination.of[u];
      for (int64_t k = 0; k < count; k++) {
        float sum = factors[0] * layers[0][k];
        for (int64_t m = 1; m < layer_count; m++) sum += factors[m] * layers[m][k];
        add_to(weight[((i + k) / columns * 3 + u) * columns + (i + k) % columns], sum, add);
      }
    }
  }
}

static Part find_part(const Plan& plan, const ConvWeightGradArgs& a, int64_t task, float* sums) {
  const int64_t pair = task % plan.pairs.parts, rest = task / plan.pairs.parts;
  const int64_t chunk = rest % plan.chunks.parts, slice = rest / plan.chunks.parts;
  Part part;
  part.blocks = {plan.slices.begin(slice), plan.slices.begin(slice + 1)};
  part.pairs = {plan.pairs.begin(pair), plan.pairs.begin(pair + 1)};
  part.outputs = {plan.chunks.begin(chunk) * plan.unit(),
                  plan.chunks.begin(chunk + 1) * plan.unit()};
  const int64_t first = part.outputs.begin / plan.co, last = (part.outputs.end - 1) / plan.co;
  part.inputs = {first * plan.ci, (last + 1) * plan.ci};
  part.owns_outputs = pair == 0;
  part.owns_inputs = pair == 0 && (a.group > 1 || chunk == 0);
  part.weight = sums + slice * plan.sums();
  part.bias = part.weight + plan.layers * plan.weights;
  return part;
}

void conv_weight_grad(const void* arguments, Team& team) {
  const ConvWeightGradArgs& a = *static_cast<const ConvWeightGradArgs*>(arguments);
  const Plan plan(a);
  char* memory = static_cast<char*>(a.scratch);
  float* sums = reinterpret_cast<float*>(memory + team.size() * plan.thread_bytes());
  const int64_t tasks = plan.slices.parts * plan.chunks.parts * plan.pairs.parts;
  parallel(team, tasks, [&](int64_t task, int64_t thread) {
    const Part part = find_part(plan, a, task, sums);
    // A guess at what this thread will do next.
    const Part next = find_part(plan, a, smaller(task + team.size(), tasks - 1), sums);
    char* own = memory + thread * plan.thread_bytes();
    if (plan.half)
      work_off<uint16_t>(plan, a, part, next, own);
    else
      work_off<float>(plan, a, part, next, own);
  });
  const int64_t slices = plan.slices.parts, apart = plan.sums();
  const int64_t unit = plan.winograd ? plan.right.taps : 1;  // sums that are added together
  const Split ranges(plan.weights / unit, 2048);
  parallel(team, ranges.parts, [&](int64_t task, int64_t) {
    const Range range{ranges.begin(task), ranges.begin(task + 1)};
    if (plan.winograd)
      combine_layers(plan, a.weight, sums, range, a.add_weight);
    else
      add_slices(a.weight, sums, slices, apart, range, a.add_weight);
  });
  if (plan.biases)
    add_slices(a.bias, sums + plan.layers * plan.weights, slices, apart, {0, plan.biases},
               a.add_bias);
}

int64_t conv_weight_grad_scratch(const void* arguments, int64_t threads) {
  const Plan plan(*static_cast<const ConvWeightGradArgs*>(arguments));
  return threads * plan.thread_bytes() + plan.slices.parts * plan.sums() * 4;
}

}  // namespace

EA_ENTRIES(conv_weight_grad, {"conv_weight_grad", conv_weight_grad, conv_weight_grad_scratch,
                              sizeof(ConvWeightGradArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
