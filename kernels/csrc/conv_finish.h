// What happens to the sums of a convolution before they are written: + add0, + add1, LeakyReLU,
// + post, the gradient of LeakyReLU where mask is given. Every operand of an element is read before
// the element is written, so y may be the same memory as any of them.
#pragma once

#include "block.h"
#include "conv_args.h"
#include "conv_tile.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// An image of more bytes is not looked for in the caches when it is read again: most of it has left
// them, or has made other images leave.
constexpr int64_t stream_bytes = 8 * 1024 * 1024;

struct Finish {
  Plane y, add0, add1, post, mask;
  float slope, mask_slope;
  bool has_slope;
  bool single, half;  // all images are float32, or bfloat16
  bool alone;         // y is the only image
  bool stream;        // y is written past the caches, which whoever can do so asks for
};

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

// Neighbours in a row of y.
struct Spot {
  int64_t row, column, count;
};

// Elements of one channel, of any number up to a vector and of any types.
static inline void finish_part(const Finish& finish, const float* sums, int64_t channel,
                               const Spot& spot) {
  const int64_t n = spot.count, row = spot.row, x = spot.column;
  Vec v = load(sums);
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

// Whether all images that there are have elements of this size.
static inline bool all_of(const Finish& finish, Dtype dtype) {
  const Plane* const images[] = {&finish.y, &finish.add0, &finish.add1, &finish.post, &finish.mask};
  for (const Plane* image : images)
    if (image->data && image->dtype != dtype) return false;
  return true;
}

// Whether y is too large for the caches, and as many pixels at a time fill whole lines of it.
static inline bool may_stream(const Plane& y, int64_t pixels) {
#if defined(__x86_64__)
  const int64_t size = y.dtype == F32 ? 4 : 2, line = 64;
  const int64_t bytes[] = {(int64_t)y.data, size * y.row_stride, size * y.channel_stride,
                           size * pixels};
  for (int64_t each : bytes)
    if (each % line) return false;
  return size * y.channels * y.height * y.width >= stream_bytes;
#else
  (void)y, (void)pixels;
  return false;
#endif
}

static inline Finish make_finish(const ConvArgs& args) {
  Finish finish{};
  finish.y = args.y;
  finish.add0 = args.add0;
  finish.add1 = args.add1;
  finish.post = args.post;
  finish.mask = args.mask;
  finish.slope = (float)args.slope;
  finish.mask_slope = (float)args.mask_slope;
  finish.has_slope = args.has_slope != 0;
  finish.alone = !args.add0.data && !args.add1.data && !args.post.data && !args.mask.data;
  finish.single = all_of(finish, F32);
  finish.half = all_of(finish, BF16);
  return finish;
}

template <class Element>
EA_INLINE Element* locate(const Plane& x, int64_t channel, const Spot& spot) {
  return x.data ? static_cast<Element*>(x.data) + at_row(x, channel, spot.row) + spot.column
                : nullptr;
}

// One whole vector of each of the channels of a tile, from sums that are `pitch` apart: what
// finish_part() does, for images of one type and without its many questions.
template <class Element>
static inline void finish_whole(const Finish& finish, const float* sums, int64_t pitch,
                                int64_t channel, int64_t channels, const Spot& spot) {
  Element* y = locate<Element>(finish.y, channel, spot);
  const Element* add0 = locate<Element>(finish.add0, channel, spot);
  const Element* add1 = locate<Element>(finish.add1, channel, spot);
  const Element* post = locate<Element>(finish.post, channel, spot);
  const Element* mask = locate<Element>(finish.mask, channel, spot);
  for (int64_t i = 0; i < channels; i++) {
    Vec v = load(sums + i * pitch);
    if (add0) v += load_any(add0 + i * finish.add0.channel_stride);
    if (add1) v += load_any(add1 + i * finish.add1.channel_stride);
    if (finish.has_slope) v = leaky(v, finish.slope);
    if (post) v += load_any(post + i * finish.post.channel_stride);
    if (mask) {
      const Vec sign = load_any(mask + i * finish.mask.channel_stride);
      v = sign > 0.0f ? v : v * finish.mask_slope;
    }
    store_result(y + i * finish.y.channel_stride, v, finish.stream);
  }
}

// Asks the cache for what finish_spot() will read and write, long before it does: the images are
// larger than the cache, and their lines are too far apart for the processor to foresee them.
EA_INLINE void fetch_lines(const Plane& x, int64_t channel, int64_t channels, int64_t row,
                           int64_t column) {
  if (!x.data) return;
  const int64_t size = x.dtype == F32 ? 4 : 2;
  const char* p = static_cast<const char*>(x.data) + size * (at_row(x, channel, row) + column);
  for (int64_t i = 0; i < channels; i++, p += size * x.channel_stride) __builtin_prefetch(p);
}

EA_INLINE void fetch(const Finish& finish, int64_t channel, int64_t channels, int64_t row,
                     int64_t column) {
  if (!finish.stream) fetch_lines(finish.y, channel, channels, row, column);
  if (finish.alone) return;
  fetch_lines(finish.add0, channel, channels, row, column);
  fetch_lines(finish.add1, channel, channels, row, column);
  fetch_lines(finish.post, channel, channels, row, column);
  fetch_lines(finish.mask, channel, channels, row, column);
}

// The place of an element of y.
EA_INLINE void* locate_y(const Finish& finish, int64_t channel, int64_t row, int64_t column) {
  const int64_t at = at_row(finish.y, channel, row) + column;
  return static_cast<char*>(finish.y.data) + (finish.y.dtype == F32 ? 4 : 2) * at;
}

// `count` <= lanes elements of each of the channels of a tile, from sums that are `pitch` apart.
static inline void finish_spot(const Finish& finish, const float* sums, int64_t pitch,
                               int64_t channel, int64_t channels, const Spot& spot) {
  if (spot.count == lanes && finish.single)
    return finish_whole<float>(finish, sums, pitch, channel, channels, spot);
  if (spot.count == lanes && finish.half)
    return finish_whole<uint16_t>(finish, sums, pitch, channel, channels, spot);
  for (int64_t i = 0; i < channels; i++)
    finish_part(finish, sums + i * pitch, channel + i, spot);
}

// to[i * phases + p] = from[p * phase_pitch + i] for i < lanes: columns that were summed up phase
// by phase.
EA_INLINE void interleave(float* __restrict__ to, const float* __restrict__ from, int64_t phases,
                          int64_t phase_pitch) {
  if (phases == 2) {
    const Vec even = load(from), odd = load(from + phase_pitch);
    store(to, mix_low(even, odd));
    store(to + lanes, mix_high(even, odd));
    return;
  }
  for (int64_t p = 0; p < phases; p++)
    for (int64_t i = 0; i < lanes; i++) to[i * phases + p] = from[p * phase_pitch + i];
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
