// Several tensors of one shape walked together, in blocks of a few hundred elements that stay in
// the L1 cache. Neighbouring axes that lie one behind the other in all of the tensors become one
// axis, so that whole images are usually a single row.
#pragma once

#include "rows.h"

namespace edgeadapt {
namespace EA_LEVEL {
EA_INLINE float to_float(uint8_t x) { return x != 0; }
EA_INLINE void put(uint8_t* p, float x) { *p = x != 0; }  // also what is not a number, as in numpy

namespace {

constexpr int64_t block_size = 512;  // elements: 2 KiB of float32, whole vectors at every level

// `strides` has a row for each tensor; axis `rank - 1` is the fastest.
template <int tensors>
struct Walk {
  int64_t rank = 0, size = 1;
  int64_t shape[max_rank] = {};
  int64_t strides[tensors][max_rank] = {};
  int64_t used = 0;  // tensors
  int64_t blocks = 0, blocks_per_row = 0;
};

// A run of at most block_size elements in the order of the walk.
struct Block {
  int64_t index[max_rank];  // of its first element
  int64_t count;
  bool in_row;  // all of it lies in one row
};

template <int tensors>
static void add_axis(Walk<tensors>& walk, int64_t length, const int64_t* strides) {
  if (length == 1) return;
  const int64_t last = walk.rank - 1;
  bool joins = last >= 0;
  for (int64_t t = 0; joins && t < walk.used; ++t)
    joins = walk.strides[t][last] == strides[t] * length;
  const int64_t axis = joins ? last : walk.rank++;
  walk.shape[axis] = joins ? walk.shape[axis] * length : length;
  for (int64_t t = 0; t < walk.used; ++t) walk.strides[t][axis] = strides[t];
}

// Fills the walk over those axes of `shape` that are in `mask` (bit a: axis a).
template <int tensors>
static void start_walk(Walk<tensors>& walk, const Tensor& shape, int64_t mask,
                       const Tensor* const* operands, int64_t used) {
  walk.used = used;
  for (int64_t axis = 0; axis < shape.rank; ++axis) {
    if (!(mask >> axis & 1)) continue;
    int64_t strides[tensors];
    for (int64_t t = 0; t < used; ++t) strides[t] = operands[t]->strides[axis];
    walk.size *= shape.shape[axis];
    add_axis(walk, shape.shape[axis], strides);
  }
  if (walk.rank == 0) {  // a single element
    walk.rank = 1;
    walk.shape[0] = 1;
  }
  // Blocks end with their row where rows are long, so that a block of float32 is read in place.
  const int64_t row = walk.shape[walk.rank - 1];
  walk.blocks_per_row = 2 * row >= block_size ? ceil_div(row, block_size) : 0;
  walk.blocks = walk.blocks_per_row ? walk.size / row * walk.blocks_per_row
                                    : ceil_div(walk.size, block_size);
}

template <int tensors>
static Block find_block(const Walk<tensors>& walk, int64_t number) {
  const int64_t last = walk.rank - 1, row = walk.shape[last];
  Block block;
  int64_t rest = 0;  // the number of the row
  if (walk.blocks_per_row) {
    rest = number / walk.blocks_per_row;
    block.index[last] = number % walk.blocks_per_row * block_size;
    block.count = smaller(block_size, row - block.index[last]);
    block.in_row = true;
  } else {
    const int64_t first = number * block_size;
    rest = first / row;
    block.index[last] = first % row;
    block.count = smaller(block_size, walk.size - first);
    block.in_row = block.index[last] + block.count <= row;
  }
  for (int64_t axis = last - 1; axis >= 0; --axis) {
    block.index[axis] = rest % walk.shape[axis];
    rest /= walk.shape[axis];
  }
  return block;
}

// Offset of a block's first element in tensor `t`.
template <int tensors>
static int64_t find_offset(const Walk<tensors>& walk, const Block& block, int64_t t) {
  int64_t offset = 0;
  for (int64_t axis = 0; axis < walk.rank; ++axis)
    offset += block.index[axis] * walk.strides[t][axis];
  return offset;
}

template <class T>
static void read_run(float* to, const T* from, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i * stride]);
}

template <class T>
static void write_run(T* to, const float* from, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) put(to + i * stride, from[i]);
}

static void read_neighbours(float* to, const uint16_t* from, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, load_row(from + i));
  for (; i < count; ++i) to[i] = from_bf16(from[i]);
}

static void write_neighbours(uint16_t* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store_row(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_bf16(from[i]);
}

static void read_any(float* to, const void* from, int64_t dtype, int64_t offset, int64_t count,
                     int64_t stride) {
  if (dtype == F32) {
    const float* p = static_cast<const float*>(from) + offset;
    if (stride == 1)
      __builtin_memcpy(to, p, 4 * count);
    else
      read_run(to, p, count, stride);
  } else if (dtype == BF16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + offset;
    if (stride == 1)
      read_neighbours(to, p, count);
    else
      read_run(to, p, count, stride);
  } else {
    read_run(to, static_cast<const uint8_t*>(from) + offset, count, stride);
  }
}

static void write_any(void* to, const float* from, int64_t dtype, int64_t offset, int64_t count,
                      int64_t stride) {
  if (dtype == F32) {
    float* p = static_cast<float*>(to) + offset;
    if (stride == 1)
      __builtin_memcpy(p, from, 4 * count);
    else
      write_run(p, from, count, stride);
  } else if (dtype == BF16) {
    uint16_t* p = static_cast<uint16_t*>(to) + offset;
    if (stride == 1)
      write_neighbours(p, from, count);
    else
      write_run(p, from, count, stride);
  } else {
    write_run(static_cast<uint8_t*>(to) + offset, from, count, stride);
  }
}

// Calls run(done, offset, count) for every stretch of the block that lies in one row of tensor `t`:
// its first element is the block's `done`-th.
template <int tensors, class Run>
EA_INLINE void each_stretch(const Walk<tensors>& walk, const Block& block, int64_t t, Run run) {
  const int64_t last = walk.rank - 1;
  int64_t index[max_rank];
  for (int64_t axis = 0; axis <= last; ++axis) index[axis] = block.index[axis];
  int64_t offset = find_offset(walk, block, t);
  for (int64_t done = 0;;) {
    const int64_t count = smaller(block.count - done, walk.shape[last] - index[last]);
    run(done, offset, count);
    done += count;
    if (done == block.count) return;
    offset -= index[last] * walk.strides[t][last];
    index[last] = 0;
    for (int64_t axis = last - 1; axis >= 0; --axis) {
      offset += walk.strides[t][axis];
      if (++index[axis] < walk.shape[axis]) break;
      offset -= walk.shape[axis] * walk.strides[t][axis];
      index[axis] = 0;
    }
  }
}

// Copies a block of tensor `t` to neighbouring floats.
template <int tensors>
static void read_block(float* to, const Walk<tensors>& walk, const Block& block, int64_t t,
                       const Tensor& x) {
  const int64_t stride = walk.strides[t][walk.rank - 1];
  each_stretch(walk, block, t, [&](int64_t done, int64_t offset, int64_t count) {
    read_any(to + done, x.data, x.dtype, offset, count, stride);
  });
}

template <int tensors>
static void write_block(const float* from, const Walk<tensors>& walk, const Block& block, int64_t t,
                        const Tensor& y) {
  const int64_t stride = walk.strides[t][walk.rank - 1];
  each_stretch(walk, block, t, [&](int64_t done, int64_t offset, int64_t count) {
    write_any(y.data, from + done, y.dtype, offset, count, stride);
  });
}

// Where a block of tensor `t` lies if it is neighbouring float32. Else null.
template <int tensors>
static float* find_row(const Walk<tensors>& walk, const Block& block, int64_t t, const Tensor& x) {
  if (!block.in_row || x.dtype != F32 || walk.strides[t][walk.rank - 1] != 1) return nullptr;
  return static_cast<float*>(x.data) + find_offset(walk, block, t);
}

// The same for loops over whole vectors, which must not touch what lies behind the block.
template <int tensors>
static float* find_vectors(const Walk<tensors>& walk, const Block& block, int64_t t,
                           const Tensor& x) {
  return block.count % lanes == 0 ? find_row(walk, block, t, x) : nullptr;
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
