// Tensors as kernels are told about them; kernels/tensors.py has the same fields. Strides count
// elements; `data` points at the element with all indices 0 and is null where there is no tensor.
#pragma once

#include "abi.h"

namespace edgeadapt {

constexpr int max_rank = 6;

struct Tensor {
  void* data;
  int64_t dtype;
  int64_t rank;
  int64_t shape[max_rank];
  int64_t strides[max_rank];  // 0 repeats, negative goes backwards
};

// An image (1, channels, height, width): neighbours in a row are neighbours in memory.
struct Plane {
  void* data;
  int64_t dtype;
  int64_t channels, height, width, channel_stride, row_stride;
};

static_assert(sizeof(Tensor) == 120 && sizeof(Plane) == 56, "kernels/tensors.py counts on it");

}  // namespace edgeadapt
