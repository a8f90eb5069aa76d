// What convolutions and the packing of their weights are told; kernels/conv.py has the same fields.
#pragma once

#include "tensor.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct ConvArgs {
  Plane sources[4];
  const void* weights;  // as pack_weights leaves them
  const float* bias;    // one for each channel of y, or null
  Plane y, add0, add1, post, mask;
  int64_t kernel[2], strides[2], pads[2], dilations[2];  // vertical first; pads at the top, left
  int64_t group, transposed;
  int64_t has_slope;
  double slope, mask_slope;
  int64_t compute;  // F32 or BF16
  void* scratch;
};

struct PackWeightsArgs {
  const float* weight;
  void* y;
  int64_t in_channels, out_channels;  // of one group of the weight
  int64_t group, transposed;
  int64_t first, count;  // output channels wanted, of all; all if there are groups
  int64_t kernel[2], strides[2], pads[2], dilations[2];
  int64_t compute;
};

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
