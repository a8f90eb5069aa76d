// The geometry of a convolution along one axis, the tiles of output channels, and the order of
// packed weights: what conv.cpp and pack_weights.cpp must agree on.
//
// Outputs are counted in steps j: a convolution computes output j from inputs j * in_step + offset,
// a transposed one computes outputs j * out_step + f, one set of taps for each phase f, from inputs
// j + offset. Packed weights are 4-byte lanes (a float, or a pair of bfloat16 input channels) in
// the order [group][row phase][column phase][tile][input channel][tap][output channel of the tile].
#pragma once

#include "simd.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct Axis {
  int64_t kernel, stride, pad, dilation, transposed;
  int64_t in_step, out_step;
  int64_t low, high;  // smallest and largest offset of any tap
};

// The offset of tap k for outputs of phase f; false if they do not touch.
static inline bool tap_offset(const Axis& axis, int64_t phase, int64_t k, int64_t* offset) {
  if (!axis.transposed) {
    *offset = k * axis.dilation - axis.pad;
    return true;
  }
  const int64_t distance = phase + axis.pad - k * axis.dilation;
  if (axis.stride == 1) {  // spares packing the weights of most gradients two divisions a tap
    *offset = distance;
    return true;
  }
  if (distance % axis.stride) return false;
  *offset = distance / axis.stride;
  return true;
}

static inline int64_t count_taps(const Axis& axis, int64_t phase) {
  int64_t count = 0, offset;
  for (int64_t k = 0; k < axis.kernel; k++) count += tap_offset(axis, phase, k, &offset);
  return count;
}

static inline Axis make_axis(int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                             int64_t transposed) {
  Axis axis{kernel, stride, pad, dilation, transposed, transposed ? 1 : stride,
            transposed ? stride : 1, 0, 0};
  bool found = false;
  for (int64_t phase = 0; phase < axis.out_step; phase++) {
    for (int64_t k = 0; k < kernel; k++) {
      int64_t offset;
      if (!tap_offset(axis, phase, k, &offset)) continue;
      if (!found || offset < axis.low) axis.low = offset;
      if (!found || offset > axis.high) axis.high = offset;
      found = true;
    }
  }
  return axis;
}

// A tile is as many output channels as share the loads of an input vector: tile_channels x
// tile_vectors accumulators fill the registers. Counts are split so that no tile has room to spare.
#if EA_REGISTERS == 32
constexpr int64_t widest_tile = 8;
constexpr int tile_vectors(int64_t channels) {
  return channels == 8 ? 3 : channels == 6 ? 4 : channels == 4 ? 6 : channels == 3 ? 8 : 12;
}
static inline int64_t tile_channels(int64_t left) {
  switch (left) {
    case 1: return 1;
    case 2: return 2;
    case 3: return 3;
    case 4: return 4;
    case 5: return 3;
    case 6: return 6;
    case 7: return 4;
    case 9: return 6;
    case 10: return 6;
    default: return left == 13 ? 6 : 8;
  }
}
#else
constexpr int64_t widest_tile = 4;
constexpr int tile_vectors(int64_t channels) {
  return channels == 4 ? 3 : channels == 3 ? 4 : channels == 2 ? 5 : 8;
}
static inline int64_t tile_channels(int64_t left) {
  if (left <= 4) return left;
  return left == 5 || left == 6 || left == 9 ? 3 : 4;
}
#endif

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The weights of one group, and where in it those of a tile begin.
struct WeightOrder {
  int64_t in_lanes;  // input channels, or pairs of them
  int64_t channels;  // of the output
};

static inline int64_t phase_taps(const Axis& rows, const Axis& columns, int64_t row_phase,
                                 int64_t column_phase) {
  return count_taps(rows, row_phase) * count_taps(columns, column_phase);
}

// In lanes, for the tile whose first output channel is `channel`. Each tap is one of exactly one
// phase and no tile is padded, so a group has in_lanes * channels * taps lanes at every level.
static inline int64_t tile_begin(const WeightOrder& order, const Axis& rows, const Axis& columns,
                                 int64_t row_phase, int64_t column_phase, int64_t channel) {
  int64_t before = 0;
  for (int64_t f = 0; f < row_phase; f++) before += count_taps(rows, f) * columns.kernel;
  for (int64_t p = 0; p < column_phase; p++) before += phase_taps(rows, columns, row_phase, p);
  return order.in_lanes * (order.channels * before +
                           channel * phase_taps(rows, columns, row_phase, column_phase));
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
