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

// Whatever fills a vector.
template <class Element>
EA_INLINE Vec load_bits(const Element* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Element>
EA_INLINE void store_bits(Element* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
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

// Pairs of bfloat16 in lanes of 32 bits, the even one in the lower half.
EA_INLINE Vec join_bf16(Vec even, Vec odd) {
#if defined(__AVX512BF16__)
  const __m512i turns = (__m512i)(VecInt{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} +
                                  (VecInt{16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
                                          30, 31} << 16));
  return (Vec)_mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd,
                                                                           (__m512)even));
#else
  const VecInt low = __builtin_convertvector(round_bf16(even), VecInt);
  return (Vec)(low | (__builtin_convertvector(round_bf16(odd), VecInt) << 16));
#endif
}

EA_INLINE Vec even_of(Vec pairs) { return (Vec)((VecInt)pairs << 16); }
EA_INLINE Vec odd_of(Vec pairs) { return (Vec)((VecInt)pairs & (VecInt{} + (int32_t)0xffff0000)); }

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

// All elements of `a` but the first, and then `last`.
EA_INLINE Vec push(Vec a, Vec last) {
#if EA_LANES == 16
  return EA_SHUFFLE(a, last, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
#elif EA_LANES == 8
  return EA_SHUFFLE(a, last, 1, 2, 3, 4, 5, 6, 7, 8);
#else
  return EA_SHUFFLE(a, last, 1, 2, 3, 4);
#endif
}

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
