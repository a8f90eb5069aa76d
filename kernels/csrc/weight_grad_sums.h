// Sums over pixels for the bias, and of the slices' sums in their order.
#pragma once

#include "weight_grad_pack.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Pairs of bfloat16 ones. GCC 12 for Arm would load the constant as float16 ones, which are others:
// it must not see what it is.
EA_INLINE VecInt pairs_of_one() {
  VecInt ones = VecInt{} + 0x3f803f80;
#if defined(__aarch64__)
  asm("" : "+w"(ones));
#endif
  return ones;
}

EA_INLINE Vec add_pixels(Vec sum, const float* p) { return sum + load(p); }
EA_INLINE Vec add_pixels(Vec sum, const uint16_t* p) {
  if constexpr (native_bf16) return dot(sum, load_pixels(p), pairs_of_one());
  return sum + (load_any(p) + load_any(p + lanes));
}

// Adds the elements to `sums` as vectors, what is left over to `rest`.
template <class T>
static void sum_elements(const T* p, int64_t count, Vec& sums, float& rest) {
  constexpr int64_t step = pixels_per_vector<T>;
  Vec a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    a = add_pixels(a, p + i);
    b = add_pixels(b, p + i + step);
  }
  if (i + step <= count) {
    a = add_pixels(a, p + i);
    i += step;
  }
  sums += a + b;
  for (; i < count; i++) rest += load_one(p + i);
}

static float sum_pixels(const Plane* sources, int64_t channel, Range rows, Range columns) {
  const int64_t begin = columns.begin, count = columns.size();
  Vec sums = {};
  float rest = 0;
  for (int64_t y = rows.begin; y < rows.end; y++) {
    const Row row = find_row(sources, channel, y);
    if (row.dtype == F32)
      sum_elements(static_cast<const float*>(row.data) + begin, count, sums, rest);
    else
      sum_elements(static_cast<const uint16_t*>(row.data) + begin, count, sums, rest);
  }
  return rest + add_lanes(sums);
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
  if (plan.winograd && !of_x) return;  // transform_grad has done it
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

// Slices follow each other in `sums`, `apart` elements apart.
static void add_slices(float* to, const float* sums, int64_t slices, int64_t apart, Range range,
                       bool add) {
  int64_t i = range.begin;
  for (; i + lanes <= range.end; i += lanes) {
    Vec sum = load(sums + i);
    for (int64_t s = 1; s < slices; s++) sum += load(sums + s * apart + i);
    store(to + i, add ? load(to + i) + sum : sum);
  }
  for (; i < range.end; i++) {
    float sum = sums[i];
    for (int64_t s = 1; s < slices; s++) sum += sums[s * apart + i];
    add_to(to[i], sum, add);
  }
}

// rows[u] holds what row u of every kernel in turn gets; `columns` to a row, `pairs` kernels.
EA_INLINE void place_rows(float* weight, const float (*rows)[most_combined], int64_t columns,
                          int64_t pairs, bool add) {
  for (int64_t p = 0; p < pairs; p++) {
    for (int64_t u = 0; u < 3; u++) {
      for (int64_t v = 0; v < columns; v++) add_to(*weight++, rows[u][p * columns + v], add);
    }
  }
}

// The same for sums of layers: range counts pairs of an output and an input channel.
static void combine_layers(const Plan& plan, float* weight, const float* sums, Range range,
                           bool add) {
  float layers[layer_count][most_combined], rows[3][most_combined];
  const int64_t columns = plan.right.taps, most = most_combined / columns;
  for (int64_t pair = range.begin; pair < range.end; pair += most) {
    const int64_t pairs = smaller(most, range.end - pair), count = pairs * columns;
    for (int64_t m = 0; m < layer_count; m++)
      add_slices(layers[m], sums + m * plan.weights + pair * columns, plan.slices.parts,
                 plan.sums(), {0, count}, false);
    for (int64_t u = 0; u < 3; u++) {
      const float* factors = combination.of[u];
      for (int64_t k = 0; k < count; k++) {
        float sum = factors[0] * layers[0][k];
        for (int64_t m = 1; m < layer_count; m++) sum += factors[m] * layers[m][k];
        rows[u][k] = sum;
      }
    }
    float* to = weight + pair * 3 * columns;
    if (columns == 3)
      place_rows(to, rows, 3, pairs, add);
    else
      place_rows(to, rows, columns, pairs, add);
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
