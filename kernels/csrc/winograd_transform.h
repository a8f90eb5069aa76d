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

// One channel: `from` has the columns of each of four phases apart and begins with the first
// square's window.
static inline void transform_channel(float* __restrict__ to, const float* __restrict__ from,
                                     const WinogradPlan& plan, int64_t rows, int64_t vectors) {
  const auto read = [&](int64_t row, int64_t v) {
    const float* x = from + row * plan.row_pitch + v * lanes;
    const int64_t pitch = plan.phase_pitch;
    return transform_input({load(x), load(x + pitch), load(x + 2 * pitch), load(x + 3 * pitch),
                            load(x + 1), load(x + pitch + 1)});
  };
  for (int64_t v = 0; v < vectors; v++) {
    Six x[side];
    x[4] = read(0, v);
    x[5] = read(1, v);
    for (int64_t r = 0; r < rows; r++) {
      x[0] = x[4];
      x[1] = x[5];
      for (int64_t i = 2; i < side; i++) x[i] = read(square * r + i, v);
      float* part = to + (r * vectors + v) * lanes;
      for (int64_t b = 0; b < side; b++, part += plan.part_pitch) {
        const Six down = transform_input({x[0].part[b], x[1].part[b], x[2].part[b], x[3].part[b],
                                          x[4].part[b], x[5].part[b]});
        for (int64_t a = 0; a < side; a++)
          store(part + side * a * plan.part_pitch, down.part[a]);
      }
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

// One vector of squares of one channel, whose parts are `pitch` apart: four vectors of each of four
// rows. A slope other than one is LeakyReLU's.
static inline void transform_output(float* to, int64_t row_pitch,
                                    const float* __restrict__ products, int64_t pitch, float bias,
                                    float slope) {
  Four x[side];
  for (int64_t b = 0; b < side; b++, products += pitch) {
    const int64_t down = side * pitch;
    x[b] = transform_products({load(products), load(products + down), load(products + 2 * down),
                               load(products + 3 * down), load(products + 4 * down),
                               load(products + 5 * down)});
  }
  const Vec more = splat(bias);
  for (int64_t r = 0; r < square; r++, to += row_pitch) {
    Four y = transform_products({x[0].part[r], x[1].part[r], x[2].part[r], x[3].part[r],
                                 x[4].part[r], x[5].part[r]});
    for (Vec& each : y.part) {
      each += more;
      if (slope != 1.0f) each = leaky(each, slope);
    }
    const Vec even = mix_low(y.part[0], y.part[2]), odd = mix_low(y.part[1], y.part[3]);
    const Vec even2 = mix_high(y.part[0], y.part[2]), odd2 = mix_high(y.part[1], y.part[3]);
    store(to, mix_low(even, odd));
    store(to + lanes, mix_high(even, odd));
    store(to + 2 * lanes, mix_low(even2, odd2));
    store(to + 3 * lanes, mix_high(even2, odd2));
  }
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
