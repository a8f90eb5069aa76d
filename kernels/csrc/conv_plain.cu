// Convolution without conditions: any kernel, stride, dilation and number of groups, for what the
// tiled kernels leave over. One thread for an element of y, neighbours along channels.
#include "conv.cuh"

namespace edgeadapt {

struct ConvPlainArgs {
  ConvCommon common;
  int64_t kernel[2], strides[2], pads[2], dilations[2];
  int64_t transposed;
};

// The input that tap `tap` sees at `position` of y along an axis, or a negative number: none.
EA_DEVICE int64_t conv_seen(const ConvPlainArgs& args, int axis, int64_t position, int tap,
                        int64_t extent) {
  const int64_t stride = args.strides[axis];
  int64_t at = tap * args.dilations[axis] - args.pads[axis];
  if (args.transposed) {
    at = position - at;
    if (at % stride != 0) return -1;
    at /= stride;
  } else {
    at += position * stride;
  }
  return at < extent ? at : -1;
}

// sum += x * weight over the group's input channels, at one pixel and through one tap.
EA_DEVICE float conv_channels(const ConvCommon& common, int group, int64_t weight, int64_t row,
                              int64_t column, float sum) {
  int64_t channel = group * common.in_channels;
  int source = 0;
  for (int c = 0; c < common.in_channels; ++c, ++channel, weight += common.padded_channels) {
    while (channel >= common.sources[source].channels) channel -= common.sources[source++].channels;
    const Image& image = common.sources[source];
    const float x = read(image.data, image.dtype, offset(image, channel, row, column));
    sum += x * read(common.weights, common.weights_dtype, weight);
  }
  return sum;
}

EA_KERNEL(conv_plain, ConvPlainArgs, 256) {
  const ConvCommon& common = args.common;
  const Image& y = common.y;
  const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= y.channels * y.height * y.width) return;
  const int channel = index % y.channels;
  const int column = index / y.channels % y.width;
  const int row = index / y.channels / y.width;
  const int group = channel / common.out_channels;
  const int own = channel - group * common.out_channels;
  float sums[1] = {conv_bias(common, group, own)};
  for (int u = 0; u < args.kernel[0]; ++u) {
    const int64_t from_row = conv_seen(args, 0, row, u, common.sources[0].height);
    for (int v = 0; from_row >= 0 && v < args.kernel[1]; ++v) {
      const int64_t from_column = conv_seen(args, 1, column, v, common.sources[0].width);
      if (from_column < 0) continue;
      const int64_t tap = (group * args.kernel[0] + u) * args.kernel[1] + v;
      const int64_t weight = tap * common.in_channels * common.padded_channels + own;
      sums[0] = conv_channels(common, group, weight, from_row, from_column, sums[0]);
    }
  }
  conv_finish(common, group, own, row, column, sums);
}

}  // namespace edgeadapt
