// Rows of pixels of either type as vectors of float32: loads, stores, parts of a vector at the end
// of a row, and the exchange between pairs of neighbours and two vectors.
#pragma once

#include "simd.h"
#include "tensor.h"

#if defined(__clang__) || __GNUC__ >= 12
#define EA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

namespace edgeadapt {
namespace EA_LEVEL {

EA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
EA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
EA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

// One instruction each where there is one: what GCC 12 makes of the conversion of whole vectors is
// several times slower. Those with a mask of all lanes are the same without its false warnings.
EA_INLINE Vec widen(VecHalf v) {
#if defined(__AVX512F__)
  return (Vec)((VecInt)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v) << 16);
#elif defined(__AVX2__)
  return (Vec)((VecInt)_mm256_cvtepu16_epi32((__m128i)v) << 16);
#else
  return (Vec)(__builtin_convertvector(v, VecInt) << 16);
#endif
}

// to_bf16 for each lane; the CPU's own conversion takes what is subnormal for 0, as dot() does.
EA_INLINE VecHalf narrow(Vec v) {
#if defined(__AVX512BF16__)
  return (VecHalf)_mm512_cvtneps_pbh((__m512)v);
#else
  typedef uint32_t Bits __attribute__((vector_size(4 * EA_LANES)));
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet = (bits >> 16) | 0x40u;
  const Bits odd = (Bits)(v != v);  // all ones where it is not a number
  const Bits half = (odd & quiet) | (~odd & rounded);
#if defined(__AVX512F__)
  return (VecHalf)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)half);
#else
  return __builtin_convertvector(half, VecHalf);
#endif
#endif
}

EA_INLINE float to_float(float x) { return x; }
EA_INLINE float to_float(uint16_t x) { return from_bf16(x); }
EA_INLINE void put(float* p, float x) { *p = x; }
EA_INLINE void put(uint16_t* p, float x) { *p = to_bf16(x); }

EA_INLINE Vec load_row(const float* p) { return load(p); }
EA_INLINE Vec load_row(const uint16_t* p) {
  VecHalf v;
  __builtin_memcpy(&v, p, sizeof v);
  return widen(v);
}
EA_INLINE void store_row(float* p, Vec v) { store(p, v); }
EA_INLINE void store_row(uint16_t* p, Vec v) {
  const VecHalf half = narrow(v);
  __builtin_memcpy(p, &half, sizeof half);
}

// The first `count` lanes, the others 0: a row may end where the memory ends.
EA_INLINE Vec load_part(const float* p, int64_t count) {
#if EA_LANES == 16
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#else
  float all[EA_LANES] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = p[i];
  return load(all);
#endif
}
EA_INLINE Vec load_part(const uint16_t* p, int64_t count) {
  uint16_t all[EA_LANES] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = p[i];
  return load_row(all);
}
template <class T>
EA_INLINE void store_part(T* p, Vec v, int64_t count) {
  T all[EA_LANES];
  store_row(all, v);
  for (int64_t i = 0; i < count; ++i) p[i] = all[i];
}

// a0 b0 a1 b1 ... in two vectors, and back.
#if EA_LANES == 16
#define EA_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define EA_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EA_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define EA_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define EA_BEFORE 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define EA_AFTER 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#elif EA_LANES == 8
#define EA_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define EA_HIGH 4, 12, 5, 13, 6, 14, 7, 15
// Of the halves' pairs, as AVX2 has no instruction across its halves that takes two vectors.
#define EA_EVEN 0, 2, 8, 10, 4, 6, 12, 14
#define EA_ODD 1, 3, 9, 11, 5, 7, 13, 15
#define EA_BEFORE 7, 8, 9, 10, 11, 12, 13, 14
#define EA_AFTER 1, 2, 3, 4, 5, 6, 7, 8
#else
#define EA_LOW 0, 4, 1, 5
#define EA_HIGH 2, 6, 3, 7
#define EA_EVEN 0, 2, 4, 6
#define EA_ODD 1, 3, 5, 7
#define EA_BEFORE 3, 4, 5, 6
#define EA_AFTER 1, 2, 3, 4
#endif

EA_INLINE Vec interleave_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, EA_LOW); }
EA_INLINE Vec interleave_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, EA_HIGH); }
#if EA_LANES == 8
EA_INLINE Vec halves_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11); }
EA_INLINE Vec halves_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }
#else
EA_INLINE Vec halves_low(Vec a, Vec) { return a; }
EA_INLINE Vec halves_high(Vec, Vec b) { return b; }
#endif
EA_INLINE Vec evens(Vec a, Vec b) {
  return EA_SHUFFLE(halves_low(a, b), halves_high(a, b), EA_EVEN);
}
EA_INLINE Vec odds(Vec a, Vec b) {
  return EA_SHUFFLE(halves_low(a, b), halves_high(a, b), EA_ODD);
}

// Where a row of a plane begins.
template <class T>
EA_INLINE T* row_of(const Plane& plane, int64_t channel, int64_t row) {
  return static_cast<T*>(plane.data) + channel * plane.channel_stride + row * plane.row_stride;
}

}  // namespace EA_LEVEL
}  // namespace edgeadapt
