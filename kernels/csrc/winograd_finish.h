// What conv_finish.h does with sums, for whole vectors of squares and images of one type: in
// registers, straight from the transform.
#pragma once

#include "conv_finish.h"
#include "winograd_transform.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// The pixels of a row of squares, in the order in which vectors of an image have them: neighbours
// in float32; in bfloat16, where lanes are pairs of neighbours, columns 0, 1, 2 and 3 of each.
EA_INLINE Four load_four(const float* p) {
  return Four{{load(p), load(p + lanes), load(p + 2 * lanes), load(p + 3 * lanes)}};
}

EA_INLINE Four load_four(const uint16_t* p) {
  const Vec some = load_bits(p), more = load_bits(p + 2 * lanes);
  const Vec first = every_second(some, more), second = every_other(some, more);
  return Four{{even_of(first), odd_of(first), even_of(second), odd_of(second)}};
}

EA_INLINE void put(float* p, Vec v, bool stream) { stream ? store_past_caches(p, v) : store(p, v); }

EA_INLINE void store_four(float* p, const Four& y, bool stream) {
  for (int64_t i = 0; i < square; i++) put(p + i * lanes, y.part[i], stream);
}

EA_INLINE void store_four(uint16_t* p, const Four& y, bool stream) {
  const Vec first = join_bf16(y.part[0], y.part[1]), second = join_bf16(y.part[2], y.part[3]);
  float* const to = reinterpret_cast<float*>(p);
  put(to, mix_low(first, second), stream);
  put(to + lanes, mix_high(first, second), stream);
}

// From columns to that order.
EA_INLINE Four arrange(const Four& y, const float*) {
  const Vec even = mix_low(y.part[0], y.part[2]), odd = mix_low(y.part[1], y.part[3]);
  const Vec even2 = mix_high(y.part[0], y.part[2]), odd2 = mix_high(y.part[1], y.part[3]);
  return Four{{mix_low(even, odd), mix_high(even, odd), mix_low(even2, odd2),
               mix_high(even2, odd2)}};
}

EA_INLINE Four arrange(const Four& y, const uint16_t*) { return y; }

template <class Element>
EA_INLINE void add_four(Four& y, const Element* image) {
  if (!image) return;
  const Four x = load_four(image);
  for (int64_t i = 0; i < square; i++) y.part[i] += x.part[i];
}

// A vector of squares of one channel, to y.
template <class Element>
static inline void finish_whole_squares(const Finish& finish, const float* products, int64_t pitch,
                                        float bias, int64_t channel, int64_t row, int64_t column) {
  const Columns columns = transform_columns(products, pitch);
  for (int64_t r = 0; r < square; r++) {
    const Spot spot{row + r, column, square * lanes};
    Four y = transform_row(columns, r);
    for (Vec& each : y.part) each += bias;
    y = arrange(y, (const Element*)nullptr);
    add_four(y, locate<const Element>(finish.add0, channel, spot));
    add_four(y, locate<const Element>(finish.add1, channel, spot));
    if (finish.has_slope)
      for (Vec& each : y.part) each = leaky(each, finish.slope);
    add_four(y, locate<const Element>(finish.post, channel, spot));
    if (const Element* mask = locate<const Element>(finish.mask, channel, spot)) {
      const Four sign = load_four(mask);
      for (int64_t i = 0; i < square; i++)
        y.part[i] = sign.part[i] > 0.0f ? y.part[i] : y.part[i] * finish.mask_slope;
    }
    store_four(locate<Element>(finish.y, channel, spot), y, finish.stream);
  }
}

// The same without finishing: four vectors of each of four rows, to a buffer.
static inline void join_squares(float* to, int64_t row_pitch, const float* products, int64_t pitch,
                                float bias) {
  const Columns columns = transform_columns(products, pitch);
  for (int64_t r = 0; r < square; r++, to += row_pitch) {
    Four y = transform_row(columns, r);
    for (Vec& each : y.part) each += bias;
    store_four(to, arrange(y, to), false);
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
