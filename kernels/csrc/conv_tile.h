// The inner loop of a convolution: one tile of output channels at a few vectors of pixels.
#pragma once

#include "block.h"
#include "conv_shape.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Which lanes of the block a tap reads, and for how many channels (or pairs) of the block.
struct Taps {
  const int64_t* offsets;
  int64_t count;
  int64_t channels, channel_pitch;
};

// Where a tile's sums go: channel i, vector j to to[j] + i * stride, all float or all bfloat16. It
// is a buffer, or the image itself if nothing but LeakyReLU is to be done with them.
template <int vectors>
struct Outlet {
  void* to[vectors];
  int64_t stride;  // elements
  bool half, has_slope;
  float slope;
  bool stream;  // past the caches
};

EA_INLINE Vec leaky(Vec v, float slope) { return v > 0.0f ? v : v * slope; }

EA_INLINE Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
EA_INLINE Vec multiply_add(Vec sum, VecInt a, VecInt b) { return dot(sum, a, b); }

// Keeps a value in a register: the compiler would rather read an operand from memory each time, and
// loads that straddle two cache lines are dearer than the multiplications they feed.
template <class Register>
EA_INLINE Register keep(Register v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Makes what is read through `p` later wait for `v`: left alone, GCC for Arm loads all the weights
// of a tap first, and has no registers left for the sums.
template <class Element>
EA_INLINE void order(const Element*& p, Vec& v) {
#if defined(__aarch64__)
  asm("" : "+r"(p), "+w"(v));
#else
  (void)p;
  (void)v;
#endif
}

EA_INLINE Vec load_lanes(const float* p) { return keep(load(p)); }
EA_INLINE Vec repeat_lane(float x) { return keep(splat(x)); }
EA_INLINE VecInt repeat_lane(int32_t x) { return keep(VecInt{} + x); }

EA_INLINE VecInt load_lanes(const int32_t* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return keep(v);
}

// One tap: the fewer of its vectors and weights are held while the others pass by.
template <int channels, int vectors, class Lane>
EA_INLINE void add_tap(Vec (&acc)[channels][vectors], const Lane* const* x, int64_t at,
                       const Lane* weights) {
  if constexpr (vectors <= channels) {
    decltype(load_lanes(*x)) pixels[vectors];
#pragma GCC unroll 16
    for (int j = 0; j < vectors; j++) pixels[j] = load_lanes(x[j] + at);
#pragma GCC unroll 16
    for (int i = 0; i < channels; i++) {
      const auto weight = repeat_lane(weights[i]);
#pragma GCC unroll 16
      for (int j = 0; j < vectors; j++) acc[i][j] = multiply_add(acc[i][j], pixels[j], weight);
      order(weights, acc[i][vectors - 1]);
    }
  } else {
    decltype(load_lanes(*x)) weight[channels];
#pragma GCC unroll 16
    for (int i = 0; i < channels; i++) weight[i] = repeat_lane(weights[i]);
#pragma GCC unroll 16
    for (int j = 0; j < vectors; j++) {
      const auto pixels = load_lanes(x[j] + at);
#pragma GCC unroll 16
      for (int i = 0; i < channels; i++) acc[i][j] = multiply_add(acc[i][j], pixels, weight[i]);
    }
  }
}

// Past the caches only if a vector is a whole line of memory.
EA_INLINE void store_result(uint16_t* p, Vec v, bool) { store_any(p, v); }
EA_INLINE void store_result(float* p, Vec v, bool stream) {
  if (stream && lanes == 16)
    store_past_caches(p, v);
  else
    store(p, v);
}

template <class Element, bool stream, int channels, int vectors>
EA_INLINE void let_out(const Outlet<vectors>& outlet, const Vec (&acc)[channels][vectors]) {
#pragma GCC unroll 16
  for (int j = 0; j < vectors; j++) {
    Element* to = static_cast<Element*>(outlet.to[j]);
#pragma GCC unroll 16
    for (int i = 0; i < channels; i++, to += outlet.stride) store_result(to, acc[i][j], stream);
  }
}

// Sum (i, j) is bias[i] + the sum over channels and taps of weight * the vector at x[j] + the tap's
// offset. Lane is float, or int32_t for pairs of bfloat16. All sums stay in registers: the loops
// over tile channels and vectors must be unrolled, and what they hold must fit.
template <int channels, int vectors, class Lane>
EA_INLINE void convolve_tile(const Outlet<vectors>& outlet, const Lane* const* x, const Taps& taps,
                             const Lane* weights, const float* bias) {
  Vec acc[channels][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < channels; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; j++) acc[i][j] = splat(bias[i]);
  }
  const int64_t* const offsets = taps.offsets;
  const int64_t count = taps.count;
  int64_t base = 0;
  for (int64_t c = 0; c < taps.channels; c++, base += taps.channel_pitch) {
    for (int64_t t = 0; t < count; t++) {
      add_tap<channels, vectors>(acc, x, base + offsets[t], weights);
      weights += channels;
    }
  }
  if (outlet.has_slope) {
#pragma GCC unroll 16
    for (int i = 0; i < channels; i++) {
#pragma GCC unroll 16
      for (int j = 0; j < vectors; j++) acc[i][j] = leaky(acc[i][j], outlet.slope);
    }
  }
  if (outlet.half)
    let_out<uint16_t, false>(outlet, acc);
  else if (outlet.stream)
    let_out<float, true>(outlet, acc);
  else
    let_out<float, false>(outlet, acc);
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
