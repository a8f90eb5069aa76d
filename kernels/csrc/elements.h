// Vectors of float32 read from and written to elements of any type, and taken apart and mixed.
#pragma once

#include "simd.h"

// Elements of two vectors, counted through both.
#if defined(__clang__)
#define EA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

EA_INLINE Vec load_any(const float* p) { return load(p); }
EA_INLINE float load_one(const float* p) { return *p; }
EA_INLINE float load_one(const uint16_t* p) { return from_bf16(*p); }

EA_INLINE Vec load_any(const uint16_t* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, VecInt) << 16);
}

EA_INLINE void store_any(float* p, Vec v) { store(p, v); }
EA_INLINE void store_one(float* p, float v) { *p = v; }
EA_INLINE void store_one(uint16_t* p, float v) { *p = to_bf16(v); }

// To nearest even, as to_bf16(); the instruction takes numbers below 2^-126 for zero.
EA_INLINE VecHalf round_bf16(Vec v) {
#if defined(__AVX512BF16__)
  return (VecHalf)_mm512_cvtneps_pbh((__m512)v);
#else
  const VecInt bits = (VecInt)v;
  const VecInt upper = (bits >> 16) & 0xffff;
  const VecInt rounded = (bits + 0x7fff + (upper & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : (upper | 0x40), VecHalf);
#endif
}

EA_INLINE void store_any(uint16_t* p, Vec v) {
  const VecHalf half = round_bf16(v);
  __builtin_memcpy(p, &half, sizeof half);
}

// Bits of bfloat16, in the lower halves of the lanes.
EA_INLINE VecInt bits_of(const uint16_t* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, VecInt);
}

EA_INLINE VecInt bits_of(const float* p) {
  return __builtin_convertvector(round_bf16(load(p)), VecInt);
}

// Even and odd ones of 2 * lanes consecutive elements.
#if EA_LANES == 16
EA_INLINE Vec every_second(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
EA_INLINE Vec every_other(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#elif EA_LANES == 8
EA_INLINE Vec every_second(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
EA_INLINE Vec every_other(Vec a, Vec b) { return EA_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
#else
EA_INLINE Vec every_second(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 2, 4, 6); }
EA_INLINE Vec every_other(Vec a, Vec b) { return EA_SHUFFLE(a, b, 1, 3, 5, 7); }
#endif

// Elements of two vectors in turn: the first and the second half of the result.
#if EA_LANES == 16
EA_INLINE Vec mix_low(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
EA_INLINE Vec mix_high(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif EA_LANES == 8
EA_INLINE Vec mix_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
EA_INLINE Vec mix_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
EA_INLINE Vec mix_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 4, 1, 5); }
EA_INLINE Vec mix_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
