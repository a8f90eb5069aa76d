// Every element of tensors of one shape, whatever their layouts. The host has put the axes into the
// order of memory and made one of neighbours that no tensor tells apart, so that most tensors are a
// single long row; kernels/cuda/walk.py has the same fields.
#pragma once

#include "device.cuh"

namespace edgeadapt {

// Slowest first. number / shape[a] = (high half of number * multiplier[a] + number) >> shift[a] for
// numbers below 2^31; from there on, if `wide`, there is a division.
struct Axes {
  int64_t rank, count, wide;
  int64_t shape[max_rank], multiplier[max_rank], shift[max_rank];
};

EA_DEVICE uint32_t divide(const Axes& axes, int axis, uint32_t number) {
  const uint32_t high = (uint32_t)((uint64_t)number * (uint32_t)axes.multiplier[axis] >> 32);
  return (high + number) >> axes.shift[axis];
}

// Where the element that comes `number`-th lies. What is left of the number for axis 0 is below its
// length: no division there.
EA_DEVICE int64_t place(const Axes& axes, const int64_t* strides, int64_t number) {
  int64_t offset = 0;
  if (axes.wide) {
#pragma unroll 1
    for (int64_t axis = axes.rank - 1; axis > 0; --axis) {
      offset += number % axes.shape[axis] * strides[axis];
      number /= axes.shape[axis];
    }
    return offset + number * strides[0];
  }
  uint32_t rest = (uint32_t)number;
#pragma unroll
  for (int axis = max_rank - 1; axis > 0; --axis) {
    if (axis >= axes.rank) continue;
    const uint32_t next = divide(axes, axis, rest);
    offset += (int64_t)(rest - next * (uint32_t)axes.shape[axis]) * strides[axis];
    rest = next;
  }
  return offset + rest * strides[0];
}

// Elements are taken four at a time, along the last axis: the unit of the walk is a chunk, and a
// row may end in a part of one.
constexpr int chunk = 4;

struct Chunks {
  Axes axes;       // the last one in chunks
  int64_t length;  // of a row, in elements
};

// One of the tensors: strides as those of `axes`, the last one that from chunk to chunk.
struct Operand {
  void* data;
  int64_t dtype;
  int64_t step;    // from element to element of a chunk: 0 repeats one
  int64_t vector;  // a whole chunk can be moved at once
  int64_t strides[max_rank];
};

// How many elements the chunk `number` has.
EA_DEVICE int count_of(const Chunks& chunks, int64_t number) {
  if (chunks.length % chunk == 0) return chunk;
  const int last = (int)chunks.axes.rank - 1;
  if (last > 0) {
    const int64_t next = chunks.axes.wide ? number / chunks.axes.shape[last]
                                          : divide(chunks.axes, last, (uint32_t)number);
    number -= next * chunks.axes.shape[last];
  }
  return (int)smaller((int64_t)chunk, chunks.length - number * chunk);
}

// As with_type, with bool.
template <class Body>
EA_DEVICE void with_any_type(int64_t dtype, Body body) {
  if (dtype == BOOL) return body(uint8_t());
  with_type(dtype, body);
}

// A chunk as it lies in memory. Its conversion waits for it: a thread that wants several has all of
// them fetched before it unpacks the first.
struct Raw {
  uint32_t words[chunk];
};

// What is behind `count` is 0.
EA_DEVICE Raw fetch_chunk(const Operand& x, int64_t offset, int count) {
  Raw raw = {};
  with_any_type(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(x.data) + offset;
    if (x.vector && count == chunk) {
      const auto packet = *reinterpret_cast<const Packet<chunk * sizeof(T)>*>(from);
      memcpy(raw.words, &packet, sizeof packet);
      return;
    }
    T part[chunk] = {};
#pragma unroll
    for (int i = 0; i < chunk; ++i) {
      if (i < count) part[i] = from[i * x.step];
    }
    memcpy(raw.words, part, sizeof part);
  });
  return raw;
}

EA_DEVICE void unpack(int64_t dtype, const Raw& raw, float (&values)[chunk]) {
  with_any_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    T part[chunk];
    memcpy(part, raw.words, sizeof part);
#pragma unroll
    for (int i = 0; i < chunk; ++i) values[i] = to_float(part[i]);
  });
}

EA_DEVICE void write_chunk(const Operand& y, int64_t offset, int count,
                           const float (&values)[chunk]) {
  with_any_type(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(y.data) + offset;
    if (y.vector && count == chunk) return store<chunk>(to, values);
#pragma unroll
    for (int i = 0; i < chunk; ++i) {
      if (i < count) to[i * y.step] = from_float<T>(values[i]);
    }
  });
}

EA_DEVICE Raw fetch_chunk(const Chunks& chunks, const Operand& x, int64_t number, int count) {
  return fetch_chunk(x, place(chunks.axes, x.strides, number), count);
}

EA_DEVICE void write_chunk(const Chunks& chunks, const Operand& y, int64_t number, int count,
                           const float (&values)[chunk]) {
  write_chunk(y, place(chunks.axes, y.strides, number), count, values);
}

}  // namespace edgeadapt
