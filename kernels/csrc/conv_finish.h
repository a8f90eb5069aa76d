// What happens to the sums of a convolution before they are written: + add0, + add1, LeakyReLU,
// + post, the gradient of LeakyReLU where mask is given. Every operand of an element is read before
// the element is written, so y may be the same memory as any of them.
#pragma once

#include "block.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct Finish {
  Plane y, add0, add1, post, mask;
  float slope, mask_slope;
  bool has_slope;
  bool plain;  // float32, and nothing but perhaps a slope
};

EA_INLINE Vec leaky(Vec v, float slope) { return v > 0.0f ? v : v * slope; }

EA_INLINE int64_t at_row(const Plane& x, int64_t channel, int64_t y) {
  return channel * x.channel_stride + y * x.row_stride;
}

// `count` <= lanes elements; the lanes behind them are zero.
EA_INLINE Vec load_part(const Plane& x, int64_t at, int64_t count) {
  float part[lanes] = {};
  for (int64_t i = 0; i < count; i++) {
    part[i] = x.dtype == F32 ? static_cast<const float*>(x.data)[at + i]
                             : from_bf16(static_cast<const uint16_t*>(x.data)[at + i]);
  }
  return load(part);
}

EA_INLINE Vec load_from(const Plane& x, int64_t at, int64_t count) {
  if (count < lanes) return load_part(x, at, count);
  return x.dtype == F32 ? load_any(static_cast<const float*>(x.data) + at)
                        : load_any(static_cast<const uint16_t*>(x.data) + at);
}

EA_INLINE void store_to(const Plane& y, int64_t at, int64_t count, Vec v) {
  if (count == lanes) {
    if (y.dtype == F32)
      store_any(static_cast<float*>(y.data) + at, v);
    else
      store_any(static_cast<uint16_t*>(y.data) + at, v);
    return;
  }
  float part[lanes];
  store(part, v);
  for (int64_t i = 0; i < count; i++) {
    if (y.dtype == F32)
      static_cast<float*>(y.data)[at + i] = part[i];
    else
      static_cast<uint16_t*>(y.data)[at + i] = to_bf16(part[i]);
  }
}

// Writes `count` neighbours of one row from their sums.
static inline void finish_row(const Finish& finish, const float* sums, int64_t channel, int64_t row,
                              int64_t column, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = count - i < lanes ? count - i : lanes, x = column + i;
    Vec v = load(sums + i);
    if (finish.add0.data) v += load_from(finish.add0, at_row(finish.add0, channel, row) + x, n);
    if (finish.add1.data) v += load_from(finish.add1, at_row(finish.add1, channel, row) + x, n);
    if (finish.has_slope) v = leaky(v, finish.slope);
    if (finish.post.data) v += load_from(finish.post, at_row(finish.post, channel, row) + x, n);
    if (finish.mask.data) {
      const Vec mask = load_from(finish.mask, at_row(finish.mask, channel, row) + x, n);
      v = mask > 0.0f ? v : v * finish.mask_slope;
    }
    store_to(finish.y, at_row(finish.y, channel, row) + x, n, v);
  }
}

// to[i * phases + p] = from[p * phase_pitch + i]: the columns of a transposed convolution, which
// were summed up phase by phase.
static inline void interleave(float* __restrict__ to, const float* __restrict__ from,
                              int64_t phases, int64_t phase_pitch) {
  for (int64_t p = 0; p < phases; p++)
    for (int64_t i = 0; i < lanes; i++) to[i * phases + p] = from[p * phase_pitch + i];
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
