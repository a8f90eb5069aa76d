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
  T* x;              // channel, phase of rows, phase of columns, row, column
  T* grad;           // channel, row, column
  Packed(const Plan& plan, char* memory) {
    offsets = reinterpret_cast<int64_t*>(memory);
    x = reinterpret_cast<T*>(memory + plan.offsets_bytes());
    grad = reinterpret_cast<T*>(memory + plan.offsets_bytes() + plan.x_bytes());
  }
};

// What one task works on: sums of one slice for some output channels and the inputs they see.
struct Part {
  Range blocks, outputs, inputs;
  float* weight;  // of the slice, whole
  float* bias;
  bool owns_inputs;  // no other part of the slice has the same ones
};

struct Block {
  Range rows, columns;
};

static Block find_block(const Plan& plan, int64_t index) {
  const int64_t r = index % plan.row_blocks.parts, c = index / plan.row_blocks.parts;
  return Block{{plan.row_blocks.begin(r), plan.row_blocks.begin(r + 1)},
               {plan.column_blocks.begin(c), plan.column_blocks.begin(c + 1)}};
}

static void find_offsets(const Plan& plan, int64_t* offsets) {
  for (int64_t c = 0; c < plan.ci; c++) {
    for (int64_t u = 0; u < plan.down.taps; u++) {
      for (int64_t v = 0; v < plan.right.taps; v++) {
        const int64_t phase = u % plan.down.period * plan.right.phases() + v % plan.right.period;
        *offsets++ = (c * plan.planes() + phase) * plan.x_plane +
                     plan.down.shift(u) * plan.pitch + plan.right.shift(v);
      }
    }
  }
}

// Where the rows of a packed plane come from: row r is row top + r * step of the sources, columns
// alike. What lies outside of the sources, or beyond `columns`, is zero.
struct Region {
  int64_t top, down_step, rows;
  int64_t left, right_step, columns;
};

template <class T>
static void pack_plane(T* to, int64_t pitch, int64_t size, const Plane* sources, int64_t channel,
                       const Region& region) {
  for (int64_t r = 0; r < region.rows; r++) {
    T* row = to + r * pitch;
    copy_row(row, find_row(sources, channel, region.top + r * region.down_step), region.left,
             region.columns, region.right_step);
    __builtin_memset(row + region.columns, 0, (pitch - region.columns) * sizeof(T));
  }
  // The last vector of a row may begin before the end of the last row, and what is not a number
  // stays so even times zero.
  const int64_t used = region.rows * pitch;
  __builtin_memset(to + used, 0, (size - used) * sizeof(T));
}

template <class T>
static void pack(const Plan& plan, const ConvWeightGradArgs& a, const Part& part, const Block& block,
                 Packed<T> packed) {
  for (int64_t c = part.inputs.begin; c < part.inputs.end; c++) {
    T* to = packed.x + (c - part.inputs.begin) * plan.planes() * plan.x_plane;
    for (int64_t u = 0; u < plan.down.phases(); u++) {
      for (int64_t v = 0; v < plan.right.phases(); v++, to += plan.x_plane) {
        const Region region{plan.down.first(block.rows.begin) + plan.down.phase_begin(u),
                            plan.down.stride,
                            block.rows.size() + plan.down.overhang(),
                            plan.right.first(block.columns.begin) + plan.right.phase_begin(v),
                            plan.right.stride,
                            block.columns.size() + plan.right.overhang()};
        pack_plane(to, plan.pitch, plan.x_plane, a.x, c, region);
      }
    }
  }
  const Plane only[max_sources] = {a.grad_y};
  const Region region{block.rows.begin,    1, block.rows.size(),
                      block.columns.begin, 1, block.columns.size()};
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++) {
    T* to = packed.grad + (o - part.outputs.begin) * plan.grad_plane;
    pack_plane(to, plan.pitch, plan.grad_plane, only, o, region);
  }
}

template <class T>
static float sum_elements(const T* p, int64_t count) {
  Vec sums = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) sums += load_any(p + i);
  float sum = 0;
  for (; i < count; i++) sum += load_one(p + i);
  for (int lane = 0; lane < lanes; lane++) sum += sums[lane];
  return sum;
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
  if (!plan.biases || (of_x && !part.owns_inputs)) return;
  const Range channels = of_x ? part.inputs : part.outputs;
  Range rows = block.rows, columns = block.columns;
  if (of_x) {
    rows = inputs_of(plan.down, rows, a.grad_y.height, a.x[0].height);
    columns = inputs_of(plan.right, columns, a.grad_y.width, a.x[0].width);
  }
  for (int64_t c = channels.begin; c < channels.end; c++) {
    const float sum = sum_pixels(of_x ? a.x : only, c, rows, columns);
    part.bias[c] = add ? part.bias[c] + sum : sum;
  }
}

template <class T>
static void work_off(const Plan& plan, const ConvWeightGradArgs& a, const Part& part, char* memory) {
  const Packed<T> packed(plan, memory);
  find_offsets(plan, packed.offsets);
  for (int64_t b = part.blocks.begin; b < part.blocks.end; b++) {
    const Block block = find_block(plan, b);
    const bool add = b != part.blocks.begin;
    pack(plan, a, part, block, packed);
    sum_bias(plan, a, part, block, add);
    Pixels<T> pixels{block.rows.size(), divide_up(block.columns.size(), plan.vector()), plan.pitch};
    if (plan.flat) pixels = {1, divide_up(block.rows.size() * plan.pitch, plan.vector()), 0};
    for (int64_t o = part.outputs.begin; o < part.outputs.end;) {
      const int64_t group = o / plan.co, end = smaller(part.outputs.end, (group + 1) * plan.co);
      const T* x =
          packed.x + (group * plan.ci - part.inputs.begin) * plan.planes() * plan.x_plane;
      all_tiles(pixels, packed.grad + (o - part.outputs.begin) * plan.grad_plane, plan.grad_plane,
                end - o, x, packed.offsets, plan.streams, part.weight + o * plan.streams,
                plan.streams, add);
      o = end;
    }
  }
}

// Slices follow each other in `sums`, `apart` elements apart.
static void add_slices(float* to, const float* sums, int64_t slices, int64_t apart, Range range,
                       bool add) {
  for (int64_t i = range.begin; i < range.end; i++) {
    float sum = sums[i];
    for (int64_t s = 1; s < slices; s++) sum += sums[s * apart + i];
    to[i] = add ? to[i] + sum : sum;
  }
}

void conv_weight_grad(const void* arguments, Team& team) {
  const ConvWeightGradArgs& a = *static_cast<const ConvWeightGradArgs*>(arguments);
  const Plan plan(a);
  char* memory = static_cast<char*>(a.scratch);
  float* sums = reinterpret_cast<float*>(memory + team.size() * plan.thread_bytes());
  parallel(team, plan.slices.parts * plan.chunks.parts, [&](int64_t task, int64_t thread) {
    const int64_t slice = task / plan.chunks.parts, chunk = task % plan.chunks.parts;
    Part part;
    part.blocks = {plan.slices.begin(slice), plan.slices.begin(slice + 1)};
    part.outputs = {plan.chunks.begin(chunk) * plan.unit(), plan.chunks.begin(chunk + 1) * plan.unit()};
    const int64_t first = part.outputs.begin / plan.co, last = (part.outputs.end - 1) / plan.co;
    part.inputs = {first * plan.ci, (last + 1) * plan.ci};
    part.owns_inputs = a.group > 1 || chunk == 0;
    part.weight = sums + slice * plan.sums();
    part.bias = part.weight + plan.weights;
    char* own = memory + thread * plan.thread_bytes();
    if (plan.half)
      work_off<uint16_t>(plan, a, part, own);
    else
      work_off<float>(plan, a, part, own);
  });
  const Split ranges(plan.weights, 4096);
  parallel(team, ranges.parts, [&](int64_t task, int64_t) {
    add_slices(a.weight, sums, plan.slices.parts, plan.sums(),
               {ranges.begin(task), ranges.begin(task + 1)}, a.add_weight);
  });
  if (plan.biases)
    add_slices(a.bias, sums + plan.weights, plan.slices.parts, plan.sums(), {0, plan.biases},
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
