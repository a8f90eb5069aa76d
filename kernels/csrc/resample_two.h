// The resampling that networks do most, by 2, without a row in working memory: the mixed rows go
// from one vector to the next in registers; what lies beyond an edge is put into their last lanes.
#pragma once

#include "rows.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Up to four rows of x and the weight of each.
template <class X>
struct Mixture {
  const X* rows[4];
  float weights[4];
  int64_t count;
  int64_t width;
  int64_t row_stride;

  // Lanes from the end of the row on are 0.
  template <int N>
  __attribute__((always_inline)) Vec at(int64_t j) const {
    const int64_t left = width - j;
    Vec v = {};
    if (left >= lanes) {
      for (int n = 0; n < N; ++n) v += weights[n] * load_row(rows[n] + j);
    } else if (left > 0) {
      for (int n = 0; n < N; ++n) v += weights[n] * load_part(rows[n] + j, left);
    }
    return v;
  }
};

// Two neighbouring vectors of the rows. A reduction reads four times what it writes and moves on by
// two rows: the CPU's own prefetching, row by row, comes late for those.
template <int N, class X>
EA_INLINE void load_pair(const Mixture<X>& x, int64_t j, Vec* a, Vec* b) {
  const X* next = x.rows[N - 1] + x.row_stride + j;
  for (int row = 0; row < 2; ++row, next += x.row_stride) {
    __builtin_prefetch(next);
    __builtin_prefetch(next + lanes);
  }
  *a = x.template at<N>(j);
  *b = x.template at<N>(j + lanes);
}

// The last of a, then all of b but its last; all of a but its first, then the first of b.
EA_INLINE Vec shift_in_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, EA_BEFORE); }
EA_INLINE Vec shift_in_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, EA_AFTER); }

// v, with `edge` in the lanes from `count` on.
EA_INLINE Vec end_with(Vec v, int64_t count, float edge) {
  VecInt numbers = {};
  for (int lane = 0; lane < lanes; ++lane) numbers[lane] = lane;
  return numbers < (int32_t)count ? v : splat(edge);
}

// y[2q] = w[0] * x[q - 1] + w[1] * x[q] and y[2q + 1] = w[2] * x[q] + w[3] * x[q + 1]; beyond the
// edge it repeats.
template <int N, class X, class Sink>
void enlarge_linear(const Mixture<X>& x, const float* w, const Sink& sink) {
  const int64_t last = x.width - 1;
  float edge = 0;
  for (int n = 0; n < N; ++n) edge += x.weights[n] * to_float(x.rows[n][last]);
  Vec middle = x.template at<N>(0);
  Vec before = splat(middle[0]);
  if (x.width < lanes) middle = end_with(middle, x.width, edge);
  for (int64_t q = 0; q < x.width; q += lanes) {
    const int64_t next = q + lanes;
    Vec after = x.template at<N>(next);
    if (next + lanes > x.width) after = end_with(after, x.width - next, edge);
    const Vec even = w[0] * shift_in_low(before, middle) + w[1] * middle;
    const Vec odd = w[2] * middle + w[3] * shift_in_high(middle, after);
    sink.write(2 * q, interleave_low(even, odd));
    sink.write(2 * q + lanes, interleave_high(even, odd));
    before = middle;
    middle = after;
  }
}

// The adjoint: y[q] = sum over t < 4 of w[t] * x[2q - 1 + t]; beyond the edge is its mirror image.
template <int N, class X, class Sink>
void reduce_linear(const Mixture<X>& x, const float* w, const Sink& sink) {
  float edge = 0;
  for (int n = 0; n < N; ++n) edge += x.weights[n] * to_float(x.rows[n][x.width - 1]);
  const auto load_both = [&](int64_t q, Vec* even, Vec* odd) __attribute__((always_inline)) {
    Vec a, b;
    load_pair<N>(x, 2 * q, &a, &b);
    *even = evens(a, b);
    *odd = odds(a, b);
    if (q + lanes > sink.width) *even = end_with(*even, sink.width - q, edge);
  };
  Vec even, odd;
  load_both(0, &even, &odd);
  Vec odd_before = splat(even[0]);
  for (int64_t q = 0; q < sink.width; q += lanes) {
    Vec even_after, odd_after;
    load_both(q + lanes, &even_after, &odd_after);
    const Vec outer = w[0] * shift_in_low(odd_before, odd) + w[3] * shift_in_high(even, even_after);
    sink.write(q, w[1] * even + w[2] * odd + outer);
    odd_before = odd;
    even = even_after;
    odd = odd_after;
  }
}

// y[q] = w[0] * x[2q] + w[1] * x[2q + 1]; 0 where x has ended.
template <int N, class X, class Sink>
void reduce_pairs(const Mixture<X>& x, const float* w, const Sink& sink) {
  for (int64_t q = 0; q < sink.width; q += lanes) {
    Vec a, b;
    load_pair<N>(x, 2 * q, &a, &b);
    sink.write(q, w[0] * evens(a, b) + w[1] * odds(a, b));
  }
}

// Its adjoint: y[2q] = w[0] * x[q], y[2q + 1] = w[1] * x[q].
template <int N, class X, class Sink>
void enlarge_pairs(const Mixture<X>& x, const float* w, const Sink& sink) {
  for (int64_t q = 0; 2 * q < sink.width; q += lanes) {
    const Vec v = x.template at<N>(q);
    const Vec even = w[0] * v, odd = w[1] * v;
    sink.write(2 * q, interleave_low(even, odd));
    sink.write(2 * q + lanes, interleave_high(even, odd));
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
