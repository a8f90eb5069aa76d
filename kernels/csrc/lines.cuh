// What kernels over images share: which thread writes what, and how results reach memory.
// Threads lie along what is contiguous in y: along the channels of a row of pixels (NHWC), V of
// them a thread, or along the pixels of a row of one channel (NCHW). kernels/cuda/lines.py makes
// the grids and promises what is said here of sizes and of alignment.
#pragma once

#include "device.cuh"

namespace edgeadapt {

constexpr int line_threads = 256;  // of a block, in lines of 64

// Calls body(channel, row, column) for the first of the V channels of y that are this thread's, if
// there are any. A side, the elements of a line and the number of lines are below 2^31.
template <int V, class Body>
EA_DEVICE void at_own_place(const Image& y, bool channels_last, Body body) {
  const bool by_channel = V > 1 || channels_last;
  const uint32_t groups = by_channel ? (uint32_t)y.channels / V : 1;
  const uint32_t lines = (uint32_t)(by_channel ? y.height : y.height * y.channels);
  const uint32_t place = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t line = (blockIdx.z * gridDim.y + blockIdx.y) * blockDim.y + threadIdx.y;
  if (place >= (uint32_t)y.width * groups || line >= lines) return;
  const uint32_t column = by_channel ? place / groups : place;
  const uint32_t channel = by_channel ? (place - column * groups) * V : line / (uint32_t)y.height;
  const uint32_t row = by_channel ? line : line - channel * (uint32_t)y.height;
  body((int)channel, (int)row, (int)column);
}

// V neighbours of an image, as `load` and `store`; also a single one.
template <int V, class T>
EA_DEVICE void get(const T* from, float (&values)[V]) {
  if constexpr (V == 1) values[0] = to_float(*from);
  else load(from, values);
}

template <int V, class T>
EA_DEVICE void put(T* to, const float (&values)[V]) {
  if constexpr (V == 1) *to = from_float<T>(values[0]);
  else store(to, values);
}

// sum += weight * (the V elements there).
template <int V, class T>
EA_DEVICE void add_scaled(const void* from, int64_t at, float weight, float (&sum)[V]) {
  float values[V];
  get(static_cast<const T*>(from) + at, values);
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] += weight * values[k];
}

// y = sum + add, which may be absent and may lie in the same place.
template <int V>
EA_DEVICE void finish(const Image& y, const Image& add, int channel, int row, int column,
                      float (&sum)[V]) {
  if (add.data) {
    const int64_t at = offset(add, channel, row, column);
    with_type(add.dtype,
              [&](auto type) { add_scaled<V, decltype(type)>(add.data, at, 1.0f, sum); });
  }
  const int64_t at = offset(y, channel, row, column);
  with_type(y.dtype,
            [&](auto type) { put(static_cast<decltype(type)*>(y.data) + at, sum); });
}

struct Range {
  int from, to;
};

// sum += x over a rectangle of pixels.
template <int V, class X>
EA_DEVICE void add_rectangle(const Image& x, int channel, Range rows, Range columns,
                             float (&sum)[V]) {
  for (int i = rows.from; i < rows.to; ++i) {
    const int64_t row = offset(x, channel, i, 0);
#pragma unroll 2
    for (int j = columns.from; j < columns.to; ++j)
      add_scaled<V, X>(x.data, row + j * x.pixel_stride, 1.0f, sum);
  }
}

}  // namespace edgeadapt
