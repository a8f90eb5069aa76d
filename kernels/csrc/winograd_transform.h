// The transforms of Winograd's F(4x4, 3x3), for which polynomials are evaluated at six points: 0,
// infinity and these four. Sums over 64 channels then have 2.7 times the error of F(2x2, 3x3); with
// 1 and 2 (A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016) instead
// they would have 6.3 times.
#pragma once

#include "winograd_plan.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr float near = 0.625f, far = 1.5f;  // and the same negative
constexpr float near2 = near * near, far2 = far * far;

// Six values along an axis, of `lanes` squares each.
struct Six {
  Vec part[side];
};

EA_INLINE Six transform_input(const Vec (&x)[side]) {
  const Vec near_even = x[4] - far2 * x[2], near_odd = near * (x[3] - far2 * x[1]);
  const Vec far_even = x[4] - near2 * x[2], far_odd = far * (x[3] - near2 * x[1]);
  return Six{{near2 * far2 * x[0] + (x[4] - (near2 + far2) * x[2]), near_even + near_odd,
              near_even - near_odd, far_even + far_odd, far_even - far_odd,
              near2 * far2 * x[1] + (x[5] - (near2 + far2) * x[3])}};
}

// The inputs of `lanes` squares in one row, which begin at p and of which neighbours share two.
EA_INLINE Six read_row(const float* p) {
  Vec x[square] = {load(p), load(p + lanes), load(p + 2 * lanes), load(p + 3 * lanes)};
  take_apart(x);
  const float* const next = p + square * lanes;
  return transform_input(
      {x[0], x[1], x[2], x[3], push(x[0], splat(next[0])), push(x[1], splat(next[1]))});
}

EA_INLINE Six read_row(const uint16_t* p) {
  const Vec some = load_bits(p), more = load_bits(p + 2 * lanes);
  const Vec first = every_second(some, more), second = every_other(some, more);
  int32_t next;
  __builtin_memcpy(&next, p + square * lanes, sizeof next);
  const Vec third = push(first, (Vec)(VecInt{} + next));
  return transform_input({even_of(first), odd_of(first), even_of(second), odd_of(second),
                          even_of(third), odd_of(third)});
}

// One channel of a vector of squares of each of `rows` rows; `from` is where the first window
// begins. Parts of the next row are `next` further.
template <class Element>
static inline void transform_squares(float* __restrict__ to, const Element* __restrict__ from,
                                     int64_t row_pitch, int64_t rows, int64_t next) {
  Six x[side];
  x[4] = read_row(from);
  x[5] = read_row(from + row_pitch);
  for (int64_t r = 0; r < rows; r++, to += next) {
    from += square * row_pitch;
    x[0] = x[4];
    x[1] = x[5];
    for (int64_t i = 2; i < side; i++) x[i] = read_row(from + (i - square) * row_pitch);
    float* part = to;
    for (int64_t b = 0; b < side; b++, part += lanes) {
      const Six down = transform_input({x[0].part[b], x[1].part[b], x[2].part[b], x[3].part[b],
                                        x[4].part[b], x[5].part[b]});
      for (int64_t a = 0; a < side; a++) store(part + side * a * lanes, down.part[a]);
    }
  }
}

struct Four {
  Vec part[square];
};

EA_INLINE Four transform_products(const Vec (&m)[side]) {
  const Vec near_sum = m[1] + m[2], near_difference = m[1] - m[2];
  const Vec far_sum = m[3] + m[4], far_difference = m[3] - m[4];
  return Four{{m[0] + near_sum + far_sum, near * near_difference + far * far_difference,
               near2 * near_sum + far2 * far_sum,
               near * near2 * near_difference + far * far2 * far_difference + m[5]}};
}

// One vector of squares of one channel, whose parts are `pitch` apart, along the columns.
struct Columns {
  Four part[side];
};

EA_INLINE Columns transform_columns(const float* __restrict__ products, int64_t pitch) {
  Columns x;
  for (int64_t b = 0; b < side; b++, products += pitch) {
    const int64_t down = side * pitch;
    x.part[b] =
        transform_products({load(products), load(products + down), load(products + 2 * down),
                            load(products + 3 * down), load(products + 4 * down),
                            load(products + 5 * down)});
  }
  return x;
}

// Row r of the squares, the columns 0, 1, 2 and 3 of each.
EA_INLINE Four transform_row(const Columns& x, int64_t r) {
  return transform_products({x.part[0].part[r], x.part[1].part[r], x.part[2].part[r],
                             x.part[3].part[r], x.part[4].part[r], x.part[5].part[r]});
}

EA_INLINE Six transform_weights(Vec a, Vec b, Vec c) {
  constexpr float near_scale = 0.5f / (near2 * (near2 - far2));
  constexpr float far_scale = 0.5f / (far2 * (far2 - near2));
  const Vec near_even = near_scale * a + near_scale * near2 * c, near_odd = near_scale * near * b;
  const Vec far_even = far_scale * a + far_scale * far2 * c, far_odd = far_scale * far * b;
  return Six{{a * (1.0f / (near2 * far2)), near_even + near_odd, near_even - near_odd,
              far_even + far_odd, far_even - far_odd, c}};
}

// The parts of `lanes` kernels, of which element k is at g + k * pitch and goes to the same pitch.
static inline void transform_kernels(float* to, const float* g, int64_t pitch) {
  Six rows[3];
  for (int64_t u = 0; u < 3; u++) {
    const float* row = g + 3 * u * pitch;
    rows[u] = transform_weights(load(row), load(row + pitch), load(row + 2 * pitch));
  }
  for (int64_t b = 0; b < side; b++) {
    const Six down = transform_weights(rows[0].part[b], rows[1].part[b], rows[2].part[b]);
    for (int64_t a = 0; a < side; a++) store(to + (side * a + b) * pitch, down.part[a]);
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
