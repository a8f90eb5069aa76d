// What every kernel of a convolution is told, and what happens to its sums: kernels/cuda/conv.py.
//
// A convolution and each phase of a transposed one are the same thing: at position (i, j) of a
// lattice the taps (s, t) see the pixel (i * step + offset(s), j * step + offset(t)) of the input,
// and the sum belongs to pixel (first + i * out_step, first + j * out_step) of y. A convolution has
// one phase with out_step 1; a transposed one with stride n has n x n, each with step 1 and those
// taps of the kernel that meet it.
#pragma once

#include "device.cuh"

// Threads of a block. Two blocks are to fit a multiprocessor; if that is not said, ptxas spills
// some registers to fit more.
#if defined(EA_HOST)
#define EA_CONV_THREADS 256
#else
#define EA_CONV_THREADS 256, 2
#endif

namespace edgeadapt {

constexpr int conv_sources = 4;
constexpr int conv_operands = 4;
constexpr int conv_phases = 4;  // along an axis; more are left to conv_plain

enum ConvOperand : int64_t { CONV_ADD = 0, CONV_POST = 1, CONV_MASK = 2 };

struct ConvCommon {
  Image sources[conv_sources];  // follow each other along channels
  Image y;
  Image operands[conv_operands];  // the sums' first, then post, then mask
  int64_t operand_kinds[conv_operands];
  int64_t operand_count, add_count;
  const void* weights;  // (group, u, v, in_channels, padded_channels), contiguous
  int64_t weights_dtype;
  const float* bias;                                    // or null
  int64_t in_channels, out_channels, padded_channels;  // of a group
  int64_t has_slope;
  int64_t slope, mask_slope;  // bits of float32: double would be converted for each pixel
  // Bits 0 to 3: this source may be read in vectors; 4: y may be written, 5 to 8: operands read; 9:
  // all of the latter, and they are of the type that is multiplied (float for tf32).
  int64_t vectors;
};

// One axis of one phase: `taps` taps, of which number k is the kernel's first_tap + k * tap_step
// and sees the window's pixel offset + k * offset_step + position * step.
struct ConvAxis {
  int64_t taps, first_tap, tap_step, offset, offset_step;
  int64_t first, count;  // of y: first + position * out_step for `count` positions
};

struct ConvArgs {
  ConvCommon common;
  ConvAxis rows[conv_phases], columns[conv_phases];
  int64_t row_phases, column_phases;
  int64_t kernel_rows, kernel_columns;
  int64_t row_step, column_step;            // of the input, from one position to the next
  int64_t out_row_step, out_column_step;    // of y
  int64_t origin_row, origin_column;        // of the window of position (0, 0) in the input
  int64_t window_rows, window_columns;      // of a block
  int64_t tile_rows, tile_columns;          // positions of a block
  int64_t parts;                            // groups of channels that a block works on at a time
  int64_t channel_blocks;                   // blocks that share the positions, for each group
  int64_t windows;                          // 2: the next chunk is brought while one is multiplied
};

// Where a block works.
struct ConvTile {
  int group;
  int channel;      // its first one of the group's output
  int row, column;  // its first position
};

EA_DEVICE ConvTile conv_tile(const ConvArgs& args, int channels) {
  const int blocks = args.channel_blocks;
  const int group = blockIdx.x / blocks;
  return {group, (int)(blockIdx.x - group * blocks) * channels,
          (int)(blockIdx.z * args.tile_rows), (int)(blockIdx.y * args.tile_columns)};
}

EA_DEVICE bool conv_vectors(const ConvCommon& common, int bit) {
  return common.vectors >> bit & 1;
}

EA_DEVICE float conv_bias(const ConvCommon& common, int group, int channel) {
  if (common.bias == nullptr || channel >= common.out_channels) return 0.0f;
  return common.bias[group * common.out_channels + channel];
}

// `count` channels of a pixel from `first` on, of which `real` exist.
template <int count>
EA_DEVICE void conv_read(const Image& image, bool vector, int64_t first, int real,
                         float (&values)[count]) {
  with_type(image.dtype, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(image.data) + first;
    if constexpr (count > 1) {
      if (vector) return load(data, values);
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      values[k] = k < real ? to_float(data[k * image.channel_stride]) : 0.0f;
    }
  });
}

template <int count>
EA_DEVICE void conv_write(const Image& image, bool vector, int64_t first, int real,
                          const float (&values)[count]) {
  with_type(image.dtype, [&](auto type) {
    auto* data = static_cast<decltype(type)*>(image.data) + first;
    if constexpr (count > 1) {
      if (vector) return store(data, values);
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (k < real) data[k * image.channel_stride] = from_float<decltype(type)>(values[k]);
    }
  });
}

// Write the sums of `count` neighbouring channels of a pixel of y. All operands are read before y
// is written, which may be the same memory. One loop for all operands keeps the code short.
template <int count>
EA_DEVICE void conv_finish(const ConvCommon& common, int group, int channel, int row, int column,
                           float (&sums)[count]) {
  const int real = common.out_channels - channel;
  if (real <= 0) return;
  const int64_t at = group * common.out_channels + channel;
  const bool whole = real >= count;
  const float slope = float_of((uint32_t)common.slope);
  const float mask_slope = float_of((uint32_t)common.mask_slope);
#pragma unroll 1
  for (int i = 0; i <= common.operand_count; ++i) {
    if (i == common.add_count && common.has_slope) {
#pragma unroll
      for (float& sum : sums) sum = sum > 0.0f ? sum : slope * sum;
    }
    if (i == common.operand_count) break;
    const Image& image = common.operands[i];
    float values[count];
    conv_read(image, whole && conv_vectors(common, 5 + i), offset(image, at, row, column), real,
              values);
    const bool masks = common.operand_kinds[i] == CONV_MASK;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const float masked = values[k] > 0.0f ? sums[k] : mask_slope * sums[k];
      sums[k] = masks ? masked : sums[k] + values[k];
    }
  }
  conv_write(common.y, whole && conv_vectors(common, 4), offset(common.y, at, row, column), real,
             sums);
}

}  // namespace edgeadapt
