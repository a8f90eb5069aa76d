// Blocks of x and grad_y as the tiles read them: planes of rows with zeros where there is no pixel,
// one for every phase of a stride, or one for every layer of transformed rows.
#pragma once

#include "weight_grad_plan.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Working memory of one thread; x may be elsewhere.
template <class T>
struct Packed {
  int64_t* offsets;  // of each stream, from the first channel of its group
  T* x;              // layer, channel, phase of rows, phase of columns, row, column
  T* grad;           // layer, channel, row, column
  const T* first_grad;  // of the block, packed or in place
  const char** runs;  // of the next block
  Packed(const Plan& plan, char* memory) {
    offsets = reinterpret_cast<int64_t*>(memory);
    grad = reinterpret_cast<T*>(memory + plan.offsets_bytes());
    x = reinterpret_cast<T*>(memory + plan.offsets_bytes() + plan.grad_bytes());
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

EA_INLINE float add_lanes(Vec v) {
  float sum = 0;
  for (int lane = 0; lane < lanes; lane++) sum += v[lane];
  return sum;
}

EA_INLINE void add_to(float& to, float value, bool add) { to = add ? to + value : value; }

// Where the rows of a packed plane come from: row r is row top + r * step of the sources, columns
// alike. What lies outside of the sources, or beyond `columns` but before `filled`, is zero.
struct Region {
  int64_t top, down_step, rows;
  int64_t left, right_step, columns, filled;
};

// Columns of a packed row that a tile reads, of which `columns` hold pixels.
static int64_t filled_columns(const Plan& plan, int64_t columns, int64_t overhang) {
  return plan.flat ? plan.pitch : round_up(columns, plan.vector()) + overhang;
}

// The last vector of a row may begin before the end of the last row, and what is not a number stays
// so even times zero.
template <class T>
static void clear_end(T* plane, int64_t used, int64_t size) {
  __builtin_memset(plane + used, 0, (size - used) * sizeof(T));
}

// Bits as they are, with no call: rows are short.
static void copy_bits(uint16_t* to, const uint16_t* from, int64_t count) {
  constexpr int64_t wide = 2 * lanes;
  if (count < wide) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return;
  }
  const auto copy = [=](int64_t i) {
    const VecInt v = load_pixels(from + i);
    __builtin_memcpy(to + i, &v, sizeof v);
  };
  copy(0);
  const int64_t aligned = (sizeof(VecInt) - (uintptr_t)to % sizeof(VecInt)) / 2;
  for (int64_t i = aligned; i + wide <= count; i += wide) copy(i);
  copy(count - wide);
}
static void copy_bits(float*, const uint16_t*, int64_t) {}

// Columns left + i * step of a row, i < columns.
template <class T>
static void fill_phase(T* to, Row row, int64_t left, int64_t columns, int64_t step) {
  const Span span = inside(left, columns, step, row.data ? row.width : 0);
  const int64_t first = left + span.begin * step, count = span.end - span.begin;
  clear(to, span.begin);
  clear(to + span.end, columns - span.end);
  if (count <= 0) return;
  if (step == 1 && sizeof(T) == 2 && row.dtype == BF16)  // no detour by float32
    copy_bits(to + span.begin, static_cast<const uint16_t*>(row.data) + first, count);
  else if (row.dtype == F32)
    copy_elements(to + span.begin, static_cast<const float*>(row.data) + first, count, step);
  else
    copy_elements(to + span.begin, static_cast<const uint16_t*>(row.data) + first, count, step);
}

// `both`: also the second phase of a stride of two, to the plane behind.
template <class T>
static void pack_plane(T* to, const Plan& plan, int64_t size, const Plane* sources, int64_t channel,
                       const Region& region, bool both) {
  const Window window{0, region.left, 1, region.columns, 2, 0, 0, size};
  for (int64_t r = 0; r < region.rows; r++) {
    T* begin = to + r * plan.pitch;
    T* end = begin + region.columns;
    const Row row = find_row(sources, channel, region.top + r * region.down_step);
    if (both && row.data) {
      fill_from(begin, row, Row{}, window);
    } else {
      fill_phase(begin, row, region.left, region.columns, region.right_step);
      if (both) clear(begin + size, region.columns);
    }
    clear(end, region.filled - region.columns);
    if (both) clear(end + size, region.filled - region.columns);
  }
  clear_end(to, region.rows * plan.pitch, size);
  if (both) clear_end(to + size, region.rows * plan.pitch, size);
}

template <class T>
static void pack_x(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                   const Block& block, T* to) {
  const int64_t overhang = plan.right.overhang(), columns = block.columns.size();
  const int64_t row = block.rows.begin * plan.group_rows, column = block.columns.begin;
  const bool both = plan.right.stride == 2 && plan.right.phases() == 2;
  for (int64_t c = part.inputs.begin; c < part.inputs.end; c++) {
    for (int64_t u = 0; u < plan.down.phases(); u++) {
      Region region{plan.down.first(row) + plan.down.phase_begin(u),
                    plan.down.stride,
                    block.rows.size() + plan.down.overhang(),
                    0,
                    plan.right.stride,
                    columns + overhang,
                    filled_columns(plan, columns, overhang)};
      for (int64_t v = 0; v < plan.right.phases(); v += 1 + both, to += (1 + both) * plan.x_plane) {
        region.left = plan.right.first(column) + plan.right.phase_begin(v);
        pack_plane(to, plan, plan.x_plane, a.x, c, region, both);
      }
    }
  }
}

static Region grad_region(const Plan& plan, const Block& block) {
  const int64_t columns = block.columns.size();
  return Region{block.rows.begin * plan.group_rows, 1, block.rows.size(), block.columns.begin, 1,
                columns, filled_columns(plan, columns, 0)};
}

template <class T>
static void pack_grad(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                      const Block& block, const Packed<T>& packed) {
  const Plane only[max_sources] = {a.grad_y};
  T* to = packed.grad;
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++, to += plan.grad_plane)
    pack_plane(to, plan, plan.grad_plane, only, o, grad_region(plan, block), false);
}

// Planes of the layers of one channel, which is in `image`; region.rows counts groups. Returns the
// sum of what was read of grad_y.
template <class From, bool x>
static float pack_layers(float* to, int64_t layer_pitch, int64_t plane, const Plan& plan,
                         Range pairs, const Plane& image, int64_t channel, const Region& region) {
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
    transform(group, region.filled, to + g * plan.pitch, layer_pitch, &sum);
  }
  for (int64_t m = 0; m < 2 * pairs.size(); m++)
    clear_end(to + m * layer_pitch, region.rows * plan.pitch, plane);
  return add_lanes(sum);
}

static void transform_x(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                        const Block& block, float* to) {
  const int64_t overhang = plan.right.overhang(), columns = block.columns.size();
  const Region region{plan.down.first(block.rows.begin * plan.group_rows),
                      1,
                      block.rows.size(),
                      plan.right.first(block.columns.begin),
                      1,
                      columns + overhang,
                      filled_columns(plan, columns, overhang)};
  const Plane* image = a.x;
  int64_t channel = part.inputs.begin;
  for (int64_t c = part.inputs.begin; c < part.inputs.end; c++, channel++, to += plan.x_plane) {
    while (channel >= image->channels) channel -= image++->channels;
    const auto pack = image->dtype == F32 ? pack_layers<float, true> : pack_layers<uint16_t, true>;
    pack(to, plan.x_layer(), plan.x_plane, plan, part.pairs, *image, channel, region);
  }
}

// Sums of grad_y, for the bias, fall out of it; `add`: they are not the slice's first.
static void transform_grad(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                           const Block& block, const Packed<float>& packed, bool add) {
  const bool sums_wanted = a.bias_of == BIAS_GRAD_Y && part.owns_outputs;
  const auto pack =
      a.grad_y.dtype == F32 ? pack_layers<float, false> : pack_layers<uint16_t, false>;
  float* to = packed.grad;
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++, to += plan.grad_plane) {
    const float sum = pack(to, plan.grad_layer(), plan.grad_plane, plan, part.pairs, a.grad_y, o,
                           grad_region(plan, block));
    if (sums_wanted) add_to(part.bias[o], sum, add);
  }
}

// What the packing will read of a block.
static void look_ahead(const Plan& plan, const ConvWeightGradArgs& a, const Part& part,
                       const Block& block, int64_t run_bytes, Ahead& ahead) {
  const int64_t top = block.rows.begin * plan.group_rows, bottom = block.rows.end * plan.group_rows;
  const int64_t left = block.columns.begin, right = block.columns.end;
  const Range rows{plan.down.first(top), plan.down.first(bottom - 1) + plan.down.reach()};
  const Range columns{plan.right.first(left), plan.right.first(right - 1) + plan.right.reach()};
  int64_t c = -part.inputs.begin;
  for (const Plane& x : a.x) {
    if (plan.shared) break;
    for (int64_t i = larger(0, -c); i < x.channels && c + i < part.inputs.size(); i++)
      ahead.add_channel(x, i, rows.begin, rows.end, columns.begin, columns.end, run_bytes);
    c += x.channels;
  }
  for (int64_t o = part.outputs.begin; o < part.outputs.end; o++)
    ahead.add_channel(a.grad_y, o, top, bottom, left, right, run_bytes);
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
