// Fewer multiplications for kernels of three rows: Winograd's minimal filtering along columns.
// Three sums over four rows, w[u] = sum over i < 4 of g[i] * x[u + i], are the coefficients of a
// product of polynomials; six products instead of twelve suffice:
//   w[u] = sum over m of A[u][m] * (row m of G g) * (row m of B x)
// with the Toom-Cook points 0, infinity, +-a, +-b, in this order. The six rows ("layers") are summed
// over the image separately, and A is applied to the sums. Layers come in pairs that share work.
// Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, section 4.2, with other points:
// +-5/8 and +-11/8 lose less than +-1 and +-2 (relative error of random sums of 2^18 products, in
// units of what the direct sum loses: 1.2 instead of 1.75).
#pragma once

#include "simd.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t layer_count = 6;
constexpr int64_t rows_per_group = 4;  // of grad_y; x has two more

// Powers of 1/8 times small integers: exact, as are their products below.
constexpr float point_a = 0.625f, point_b = 1.375f;
constexpr float a2 = point_a * point_a, b2 = point_b * point_b;

// Layers of x from six rows d. Pair 0: the points 0 and infinity; 1: +-a; 2: +-b.
template <int pair>
EA_INLINE void transform_x(const Vec* d, Vec* t) {
  if constexpr (pair == 0) {
    t[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
    t[1] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
  } else {
    constexpr float point = pair == 1 ? point_a : point_b, other = pair == 1 ? b2 : a2;
    const Vec even = d[4] - other * d[2], odd = d[3] - other * d[1];
    t[0] = even + point * odd;
    t[1] = even - point * odd;
  }
}

// Layers of grad_y from four rows d: the polynomial d[0] + d[1] z + d[2] z^2 + d[3] z^3 at the points.
template <int pair>
EA_INLINE void transform_grad(const Vec* d, Vec* t) {
  if constexpr (pair == 0) {
    t[0] = d[0];
    t[1] = d[3];
  } else {
    constexpr float point = pair == 1 ? point_a : point_b, square = pair == 1 ? a2 : b2;
    const Vec even = d[0] + square * d[2], odd = d[1] + square * d[3];
    t[0] = even + point * odd;
    t[1] = even - point * odd;
  }
}

// Row m of pairs [first_pair, last_pair) of layers of `count` columns, rounded up to whole vectors;
// layers are `layer_pitch` apart, rows `row_pitch`. `x`: six rows, else four.
template <bool x, int first_pair, int last_pair>
static void transform_rows(const float* rows, int64_t row_pitch, int64_t count, float* to,
                           int64_t layer_pitch) {
  constexpr int height = x ? 6 : 4;
  for (int64_t i = 0; i < count; i += lanes) {
    Vec d[height], t[2 * (last_pair - first_pair)];
    for (int r = 0; r < height; r++) d[r] = load(rows + r * row_pitch + i);
    if constexpr (first_pair == 0) x ? transform_x<0>(d, t) : transform_grad<0>(d, t);
    if constexpr (first_pair <= 1 && last_pair > 1)
      x ? transform_x<1>(d, t + 2 * (1 - first_pair)) : transform_grad<1>(d, t + 2 * (1 - first_pair));
    if constexpr (last_pair == 3)
      x ? transform_x<2>(d, t + 2 * (2 - first_pair)) : transform_grad<2>(d, t + 2 * (2 - first_pair));
    for (int m = 0; m < 2 * (last_pair - first_pair); m++) store(to + m * layer_pitch + i, t[m]);
  }
}

// A[u][m]: the inverse of the products' scale, times powers of the point.
struct Combination {
  float of[3][layer_count];
  constexpr Combination() : of() {
    const double p = point_a, q = point_b;
    const double scale_p = 1 / (2 * p * p * (p * p - q * q)), scale_q = 1 / (2 * q * q * (q * q - p * p));
    const double points[layer_count] = {0, 0, p, -p, q, -q};
    const double scales[layer_count] = {1 / (p * p * q * q), 0, scale_p, scale_p, scale_q, scale_q};
    for (int m = 0; m < layer_count; m++) {
      double factor = scales[m];
      for (int u = 0; u < 3; u++, factor *= points[m]) of[u][m] = (float)factor;
    }
    of[2][1] = 1;
  }
};
constexpr Combination combination;

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
