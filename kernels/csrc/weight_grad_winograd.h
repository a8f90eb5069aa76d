// Fewer multiplications for kernels of three rows: Winograd's minimal filtering along columns.
// Three sums over four rows, w[u] = sum over i < 4 of g[i] * x[u + i], are the coefficients of a
// product of polynomials; six products instead of twelve suffice:
//   w[u] = sum over m of A[u][m] * (row m of G g) * (row m of B x)
// with the Toom-Cook points 0, infinity, +-a, +-b, in this order. The six rows ("layers") are
// summed over the image separately, and A is applied to the sums. Layers come in pairs that share
// work. Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, section 4.2, with other
// points: +-5/8 and +-11/8 lose less than +-1 and +-2 (the rounding of random sums of 2^18 products,
// in units of what the direct sum loses: 1.2 instead of 1.75).
#pragma once

#include "block.h"

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
EA_INLINE void layers_of_x(const Vec* d, Vec* t) {
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

// Layers of grad_y from four rows d: d[0] + d[1] z + d[2] z^2 + d[3] z^3 at the points z.
template <int pair>
EA_INLINE void layers_of_grad(const Vec* d, Vec* t) {
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

// Lanes [begin, end) of the vector at p; the others are zero and not read.
EA_INLINE Vec load_part(const float* p, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << end) - (1u << begin)), p);
#else
  Vec v = {};
  for (int64_t i = begin; i < end; i++) v[i] = p[i];
  return v;
#endif
}
EA_INLINE Vec load_part(const uint16_t* p, int64_t begin, int64_t end) {
  Vec v = {};
  for (int64_t i = begin; i < end; i++) v[i] = from_bf16(p[i]);
  return v;
}

// A group of rows of one channel: row r at `rows + r * pitch`, of which only [first, last) and only
// columns [begin, end) are there; the rest is zero.
template <class From>
struct Group {
  const From* rows;
  int64_t pitch;
  int first, last;
  int64_t begin, end;
};

// Pairs [first_pair, last_pair) of layers of one group, `columns` of them rounded up to vectors, to
// rows `layer_pitch` apart; adds to `sum` what the rows hold. `x`: six rows, else four.
template <class From, bool x, int first_pair, int last_pair>
static void transform_group(const Group<From>& group, int64_t columns, float* to,
                            int64_t layer_pitch, Vec* sum) {
  constexpr int height = x ? 6 : 4, layers = 2 * (last_pair - first_pair);
  const bool whole = group.first == 0 && group.last == height;
  for (int64_t i = 0; i < columns; i += lanes) {
    Vec d[height], t[layers];
    if (whole && i >= group.begin && i + lanes <= group.end) {
#pragma GCC unroll 6
      for (int r = 0; r < height; r++) d[r] = load_any(group.rows + r * group.pitch + i);
    } else {
      const int64_t begin = clamp(group.begin - i, 0, lanes);
      const int64_t end = clamp(group.end - i, begin, lanes);
#pragma GCC unroll 6
      for (int r = 0; r < height; r++) {
        d[r] = Vec{};
        if (r >= group.first && r < group.last)
          d[r] = load_part(group.rows + r * group.pitch + i, begin, end);
      }
    }
    if constexpr (first_pair == 0) x ? layers_of_x<0>(d, t) : layers_of_grad<0>(d, t);
    if constexpr (first_pair <= 1 && last_pair > 1) {
      constexpr int at = 2 * (1 - first_pair);
      x ? layers_of_x<1>(d, t + at) : layers_of_grad<1>(d, t + at);
    }
    if constexpr (last_pair == 3) {
      constexpr int at = 2 * (2 - first_pair);
      x ? layers_of_x<2>(d, t + at) : layers_of_grad<2>(d, t + at);
    }
#pragma GCC unroll 6
    for (int m = 0; m < layers; m++) store(to + m * layer_pitch + i, t[m]);
    if constexpr (!x) *sum += (d[0] + d[1]) + (d[2] + d[3]);
  }
}

template <class From, bool x>
using TransformGroup = void (*)(const Group<From>&, int64_t, float*, int64_t, Vec*);

template <class From, bool x>
static TransformGroup<From, x> find_transform(int64_t first_pair, int64_t last_pair) {
  if (last_pair - first_pair == 3) return transform_group<From, x, 0, 3>;
  return first_pair == 0   ? transform_group<From, x, 0, 1>
         : first_pair == 1 ? transform_group<From, x, 1, 2>
                           : transform_group<From, x, 2, 3>;
}

// A[u][m]: the inverse of the products' scale, times powers of the point.
struct Combination {
  float of[3][layer_count];
  constexpr Combination() : of() {
    const double p = point_a, q = point_b;
    const double scale_p = 1 / (2 * p * p * (p * p - q * q));
    const double scale_q = 1 / (2 * q * q * (q * q - p * p));
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
