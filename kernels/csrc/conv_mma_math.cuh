// How chunks of the window and of the weights become operands of the tensor cores, for each type.
#pragma once

#include "conv_stage.cuh"

namespace edgeadapt {

constexpr int chunk_words = 8;
constexpr int fragment_words = 2 * warp_size;  // of B, 8 channels of y by a chunk

EA_DEVICE void load_words(const uint32_t* p, uint32_t& first, uint32_t& second) {
  const Packet<8> packet = *reinterpret_cast<const Packet<8>*>(p);
  uint32_t words[2];
  memcpy(words, &packet, sizeof words);
  first = words[0];
  second = words[1];
}

EA_DEVICE void store_words(uint32_t* p, uint32_t first, uint32_t second) {
  const uint32_t words[2] = {first, second};
  Packet<8> packet;
  memcpy(&packet, words, sizeof words);
  *reinterpret_cast<Packet<8>*>(p) = packet;
}

// Types that are multiplied: how a chunk of the window and of the weights is made of them.
template <class T>
struct HalfMath {
  using Element = T;  // of images, most likely
  using Raw = T;
  using Unit = Packet<16>;
  static constexpr int count = 8;  // of the window in a unit
  static constexpr int batch = 5;
  static constexpr int depth = 4;  // input channels of a thread
  static constexpr bool copies = true;
  uint32_t* window;

  EA_DEVICE static Unit unit(const float (&values)[count]) {
    Unit result;
    T halves[count];
#pragma unroll
    for (int k = 0; k < count; ++k) halves[k] = from_float<T>(values[k]);
    memcpy(&result, halves, sizeof result);
    return result;
  }
  EA_DEVICE Unit* place(int pixel, int lane) const {
    return reinterpret_cast<Unit*>(window + pixel * chunk_words + 4 * lane);
  }
  EA_DEVICE void put(int pixel, ConvPixel, int lane, const Unit& unit) const {
    *place(pixel, lane) = unit;
  }
  EA_DEVICE void put_one(int pixel, ConvPixel, int lane, int k, float value) const {
    reinterpret_cast<T*>(window)[(pixel * 2 + lane) * count + k] = from_float<T>(value);
  }

  // Eight channels of y: for each the two registers of B. `rows` of the input channels exist.
  EA_DEVICE static void fragments(const void* weights, int64_t at, int64_t stride, int rows,
                                  uint32_t (&result)[8][2]) {
    uint32_t words[depth][4] = {};
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      if (i >= rows) continue;
      const T* row = static_cast<const T*>(weights) + at + i * stride;
      const Unit unit = *reinterpret_cast<const Unit*>(row);
      memcpy(words[i], &unit, sizeof unit);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t low = words[2 * i][k / 2], high = words[2 * i + 1][k / 2];
        result[k][i] = k % 2 == 0 ? (low & 0xffff) | high << 16 : low >> 16 | (high & 0xffff0000);
      }
    }
  }
};

struct F16Math : HalfMath<Half> {
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
};

struct Bf16Math : HalfMath<Bfloat> {
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

struct Tf32Math {
  using Element = float;
  using Raw = void;  // even floats are rounded
  using Unit = Packet<16>;
  static constexpr int count = 4, batch = 5, depth = 2;
  static constexpr bool copies = false;
  uint32_t* window;

  EA_DEVICE static Unit unit(const float (&values)[count]) {
    Unit result;
    uint32_t words[count];
#pragma unroll
    for (int k = 0; k < count; ++k) words[k] = to_tf32(values[k]);
    memcpy(&result, words, sizeof result);
    return result;
  }
  EA_DEVICE void put(int pixel, ConvPixel, int lane, const Unit& unit) const {
    *reinterpret_cast<Unit*>(window + pixel * chunk_words + 4 * lane) = unit;
  }
  EA_DEVICE void put_one(int pixel, ConvPixel, int lane, int k, float value) const {
    window[pixel * chunk_words + lane * count + k] = to_tf32(value);
  }
  EA_DEVICE static void fragments(const void* weights, int64_t at, int64_t stride, int rows,
                                  uint32_t (&result)[8][2]) {
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      float values[8] = {};
      if (i < rows) load(static_cast<const float*>(weights) + at + i * stride, values);
#pragma unroll
      for (int k = 0; k < 8; ++k) result[k][i] = to_tf32(values[k]);
    }
  }
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

}  // namespace edgeadapt
