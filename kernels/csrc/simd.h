// One vector type for every instruction set. A kernel's source is compiled once for each level, with
// EA_LEVEL (its namespace) and the compiler's own flags; EA_LANES, EA_REGISTERS and dot() follow.
// Nothing here or in a kernel may be an inline function with external linkage (no std:: templates):
// the linker would keep one copy, and it could be the one with instructions this CPU lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define EA_LANES 16
#define EA_REGISTERS 32
#elif defined(__AVX2__)
#include <immintrin.h>
#define EA_LANES 8
#define EA_REGISTERS 16
#elif defined(__aarch64__)
#include <arm_neon.h>
#define EA_LANES 4
#define EA_REGISTERS 32
#else
#include <immintrin.h>
#define EA_LANES 4
#define EA_REGISTERS 16
#endif

#define EA_INLINE static inline __attribute__((always_inline))

namespace edgeadapt {
namespace EA_LEVEL {

constexpr int lanes = EA_LANES;
typedef float Vec __attribute__((vector_size(4 * EA_LANES)));
typedef int32_t VecInt __attribute__((vector_size(4 * EA_LANES)));
typedef uint16_t VecHalf __attribute__((vector_size(2 * EA_LANES)));

EA_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);  // any alignment
  return v;
}

EA_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// Not to the caches, for what they could not hold until it is read: where it is written to whole
// lines of 64 bytes, memory need not be read first. Other threads see it after flush_stores().
EA_INLINE void store_past_caches(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

EA_INLINE void flush_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

EA_INLINE Vec splat(float x) { return x - Vec{}; }

// float32 -> bfloat16, to nearest even; what is not a number stays so.
EA_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

EA_INLINE float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// acc[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1] over bfloat16 pairs that lie in 32-bit lanes, the even
// one in the lower half.
#if defined(__AVX512BF16__)
EA_INLINE Vec dot(Vec acc, VecInt a, VecInt b) {
  return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
EA_INLINE Vec dot(Vec acc, VecInt a, VecInt b) {
  return (Vec)vbfdotq_f32((float32x4_t)acc, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#else
EA_INLINE Vec dot(Vec acc, VecInt a, VecInt b) {
  const VecInt high = VecInt{} + (int32_t)0xffff0000;
  acc += (Vec)(a << 16) * (Vec)(b << 16);
  acc += (Vec)(a & high) * (Vec)(b & high);
  return acc;
}
#endif

}  // namespace EA_LEVEL
}  // namespace edgeadapt
