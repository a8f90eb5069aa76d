// Work on many runs of elements in one launch: a table in device memory says which block has which.
#pragma once

#include "device.cuh"

namespace edgeadapt {

constexpr int segment_threads = 256;
constexpr int segment_block = 1024;  // elements of a block; kernels/cuda/segments.py counts on it

// The one of `count` segments that this block works on: the last that begins at it or before.
template <class Segment>
EA_DEVICE const Segment& segment_of_block(const Segment* segments, int64_t count) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (segments[middle].first_block <= blockIdx.x ? low : high) = middle;
  }
  return segments[low];
}

// Calls body(i) for this thread's elements of the segment, of which it has `count`.
template <class Body>
EA_DEVICE void for_elements(int64_t first_block, int64_t count, const Body& body) {
  const int64_t begin = (blockIdx.x - first_block) * segment_block;
  const int64_t end = smaller(begin + segment_block, count);
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x; i < end; i += segment_threads) body(i);
}

}  // namespace edgeadapt
