// The next block's pixels are brought into the cache while the products of this one are summed: the
// sums leave the memory idle, and rows of many channels are too short for the hardware to foresee.
#pragma once

#include "block.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

EA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
EA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
EA_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
EA_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
EA_INLINE int64_t clamp(int64_t a, int64_t low, int64_t high) {
  return a < low ? low : a > high ? high : a;
}

constexpr int64_t cache_line = 64;
constexpr int64_t lines_per_vector = 2;

// Addresses, each the begin of a run of cache lines. A tile takes one for each of its rows and
// touches two lines for every vector; where nothing is left to fetch, something at hand.
struct Ahead {
  const char** runs;
  int64_t capacity, count = 0, taken = 0;
  int64_t idle;  // runs that a single tile may take; they follow those that `capacity` counts

  Ahead(const char** runs, int64_t capacity, int64_t idle, const void* at_hand)
      : runs(runs), capacity(capacity), idle(idle) {
    for (int64_t i = 0; i < idle; i++) runs[capacity + i] = static_cast<const char*>(at_hand);
  }

  void clear() { count = taken = 0; }

  const char* const* take(int64_t rows) {
    if (taken + rows > count) return runs + capacity;
    taken += rows;
    return runs + taken - rows;
  }

  void add(const char* begin, int64_t bytes, int64_t run_bytes) {
    for (int64_t at = 0; at < bytes && count < capacity; at += run_bytes)
      runs[count++] = begin + at;
  }

  // The part of one image's channel that lies in rows [top, bottom) and columns [left, right).
  void add_channel(const Plane& image, int64_t channel, int64_t top, int64_t bottom, int64_t left,
                   int64_t right, int64_t run_bytes) {
    const int64_t element = image.dtype == F32 ? 4 : 2;
    if (top < 0) top = 0;
    if (left < 0) left = 0;
    if (bottom > image.height) bottom = image.height;
    if (right > image.width) right = image.width;
    if (top >= bottom || left >= right) return;
    const char* begin = static_cast<const char*>(image.data) +
                        (channel * image.channel_stride + top * image.row_stride + left) * element;
    const int64_t pitch = image.row_stride * element, bytes = (right - left) * element;
    if (pitch > 0 && pitch <= bytes + 128) {
      add(begin, (bottom - top) * pitch, run_bytes);
      return;
    }
    for (int64_t y = top; y < bottom; y++) add(begin + (y - top) * pitch, bytes, run_bytes);
  }
};

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
