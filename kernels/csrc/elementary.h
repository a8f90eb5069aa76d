// Elementary functions of vectors, to about 2 ulp. Coefficients are minimax fits (iterated weighted
// least squares in float64) of the function named beside them; none was taken from a library.
#pragma once

#include "simd.h"

namespace edgeadapt {
namespace EA_LEVEL {

typedef uint32_t VecBits __attribute__((vector_size(4 * EA_LANES)));

constexpr float infinity = __builtin_inff();

EA_INLINE Vec magnitude(Vec x) { return (Vec)((VecInt)x & 0x7fffffff); }

// The magnitude of `x`, which is not negative, with the sign of `sign`.
EA_INLINE Vec with_sign(Vec x, Vec sign) {
  return (Vec)((VecBits)x | ((VecBits)sign & 0x80000000u));
}

// What is not a number stays so, whichever operand it is.
EA_INLINE Vec maximum(Vec a, Vec b) { return ((a > b) | (a != a)) ? a : b; }
EA_INLINE Vec minimum(Vec a, Vec b) { return ((a < b) | (a != a)) ? a : b; }

EA_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);  // the plain one warns in GCC 12
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < lanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// To the nearest whole number, halves to the even one.
EA_INLINE Vec round_even(Vec x) {
  const float big = 8388608.0f;  // 2^23: from here on all are whole
  const Vec positive = magnitude(x);
  const Vec rounded = (positive + big) - big;
  return positive < big ? with_sign(rounded, x) : x;
}

EA_INLINE Vec round_down(Vec x) {
  const Vec rounded = round_even(x);
  return rounded > x ? rounded - 1.0f : rounded;
}

// e^x = 2^k e^r with |r| <= log(2) / 2. The power of two is multiplied in two halves: 2^k itself
// may be too large or too small for a float where the result is not.
EA_INLINE Vec exponential(Vec x) {
  const Vec low = splat(-104.0f), high = splat(89.0f);  // results are 0 and infinite from there on
  x = x < low ? low : x;
  x = x > high ? high : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec power = (x * 1.44269504f + magic) - magic;
  const Vec r = (x - power * 0.693359375f) - power * -2.12194440e-4f;  // log(2) in two parts
  Vec p = splat(1.9917832e-4f);  // (e^r - 1 - r) / r^2
  p = p * r + 1.3946086e-3f;
  p = p * r + 8.3332658e-3f;
  p = p * r + 4.1666269e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const VecInt k = __builtin_convertvector(power, VecInt), half = k >> 1;
  return p * (Vec)((VecBits)(half + 127) << 23) * (Vec)((VecBits)(k - half + 127) << 23);
}

// log x = k log 2 + log(1 + r) with 1 + r in [sqrt(1/2), sqrt(2)).
EA_INLINE Vec logarithm(Vec x) {
  const VecInt tiny = x < 1.17549435e-38f;
  const Vec scaled = tiny ? x * 8388608.0f : x;  // 2^23 makes what is subnormal normal
  const VecBits bits = (VecBits)scaled;
  const VecInt k = (VecInt)(bits - 0x3f3504f3u) >> 23;  // the bits of sqrt(1/2)
  const Vec power = __builtin_convertvector(k - (tiny & 23), Vec);
  const Vec r = (Vec)(bits - ((VecBits)k << 23)) - 1.0f;
  Vec p = splat(6.9153681e-2f);  // (log(1 + r) - r + r^2 / 2) / r^3
  p = p * r - 1.1789808e-1f;
  p = p * r + 1.1872981e-1f;
  p = p * r - 1.2384348e-1f;
  p = p * r + 1.4218658e-1f;
  p = p * r - 1.6669251e-1f;
  p = p * r + 2.0002227e-1f;
  p = p * r - 2.4999987e-1f;
  p = p * r + 3.3333310e-1f;
  const Vec square = r * r;
  const Vec small = p * r * square + power * -2.12194440e-4f - 0.5f * square;
  const Vec result = (r + small) + power * 0.693359375f;
  const Vec outside = x == 0.0f ? splat(-infinity) : splat(__builtin_nanf(""));
  return x > 0.0f ? (x < infinity ? result : x) : outside;
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): nothing is ever large. Where 1 + e is rounded, what
// was lost is added to first order.
EA_INLINE Vec softplus(Vec x) {
  const Vec e = exponential(-magnitude(x)), sum = e + 1.0f;
  const Vec lost = e - (sum - 1.0f);
  return maximum(x, Vec{}) + (logarithm(sum) + lost / sum);
}

// 1 / (1 + e^-x), with e^-|x| so that nothing is ever large.
EA_INLINE Vec sigmoid(Vec x) {
  const Vec e = exponential(-magnitude(x));
  return (x < 0.0f ? e : splat(1.0f)) / (e + 1.0f);
}

EA_INLINE Vec hyperbolic_tangent(Vec x) {
  const Vec a = magnitude(x), z = x * x;
  Vec p = splat(2.1475370e-3f);  // (tanh(a) - a) / a^3 in a^2
  p = p * z - 8.1826737e-3f;
  p = p * z + 2.1702968e-2f;
  p = p * z - 5.3947203e-2f;
  p = p * z + 1.3333210e-1f;
  p = p * z - 3.3333331e-1f;
  const Vec near = p * z * a + a;
  const Vec far = 1.0f - 2.0f / (exponential(a + a) + 1.0f);
  return with_sign(a < 0.625f ? near : far, x);
}

EA_INLINE Vec error_function(Vec x) {
  const Vec a = magnitude(x), z = x * x;
  Vec p = splat(-9.6801368e-6f);  // erf(a) / a - 1 in a^2
  p = p * z + 1.1270545e-4f;
  p = p * z - 8.4847113e-4f;
  p = p * z + 5.2210749e-3f;
  p = p * z - 2.6865445e-2f;
  p = p * z + 1.1283783e-1f;
  p = p * z - 3.7612638e-1f;
  p = p * z + 1.2837917e-1f;
  const Vec near = p * a + a;
  const Vec limit = splat(4.0f), t = a > limit ? limit : a;  // erf(4) rounds to 1
  Vec q = splat(-2.1686850e-5f);                             // log(1 - erf(t))
  q = q * t + 4.4133636e-4f;
  q = q * t - 4.2045619e-3f;
  q = q * t + 2.5208257e-2f;
  q = q * t - 1.0841858e-1f;
  q = q * t - 6.3321990e-1f;
  q = q * t - 1.1295785e0f;
  q = q * t + 1.8804023e-4f;
  const Vec far = 1.0f - exponential(q);
  return with_sign(a < 1.0f ? near : far, x);
}

}  // namespace EA_LEVEL
}  // namespace edgeadapt
