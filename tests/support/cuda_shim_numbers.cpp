// What a GPU's instructions do to numbers: conversions, and the products of tensor cores.
#include "cuda_shim.h"

namespace edgeadapt {
namespace host {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

uint16_t half_from_float(float value) {
  const uint16_t sign = bits_of(value) >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;  // half of the way from 65504 to 2^16
  // Below 2^-14 steps are as wide as there. nearbyint() rounds to even.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return sign | ((exponent + 14) * 1024 + steps);  // a carry goes into the exponent
}

uint16_t bfloat_from_float(float value) {
  const uint32_t bits = bits_of(value);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint32_t tf32_from_float(float value) {
  const uint32_t bits = bits_of(value);
  if (std::isnan(value) || std::isinf(value)) return std::isnan(value) ? 0x7fffffff : bits;
  return (bits + 0x1000) & ~0x1fffu;
}

namespace {

// A thread's part of A and B as floats: a[register][element], b likewise.
struct Fragments {
  float a[4][2], b[2][2];
};

// Each thread holds rows g and g + 8 of A, column g of B, with g = lane / 4; `each` elements of a
// register are neighbours along k.
template <int each>
void multiply(float (&d)[4], const Fragments& mine, const char* file, int line) {
  static_assert(sizeof(Fragments) <= most_exchanged, "fits into a slot");
  const Slot* slots = exchange(0xffffffff, &mine, sizeof mine, file, line);
  const Fragments* all[32];
  for (int i = 0; i < 32; ++i) all[i] = reinterpret_cast<const Fragments*>(slots[i].bytes);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    float sum = d[i];
    for (int k = 0; k < 8 * each; ++k) {
      const int group = k % (4 * each) / each, upper = k / (4 * each);
      const float a = all[row % 8 * 4 + group]->a[row / 8 + 2 * upper][k % each];
      const float b = all[column * 4 + group]->b[upper][k % each];
      sum += a * b;
    }
    d[i] = sum;
  }
}

template <class Convert>
Fragments halves(const uint32_t (&a)[4], const uint32_t (&b)[2], Convert convert) {
  Fragments result;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) result.a[i][half] = convert(a[i] >> 16 * half & 0xffff);
    for (int i = 0; i < 2; ++i) result.b[i][half] = convert(b[i] >> 16 * half & 0xffff);
  }
  return result;
}

}  // namespace

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
             int line) {
  multiply<2>(d, halves(a, b, half_to_float), file, line);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
              int line) {
  multiply<2>(d, halves(a, b, [](uint32_t bits) { return float_of(bits << 16); }), file, line);
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
              int line) {
  Fragments mine = {};
  for (int i = 0; i < 4; ++i) mine.a[i][0] = float_of(a[i] & ~0x1fffu);
  for (int i = 0; i < 2; ++i) mine.b[i][0] = float_of(b[i] & ~0x1fffu);
  multiply<1>(d, mine, file, line);
}

}  // namespace host
}  // namespace edgeadapt
