// What becomes of the sums of a convolution on tensor cores: bias, operands, LeakyReLU, and y.
#pragma once

#include "conv_stage.cuh"

namespace edgeadapt {

constexpr int mma_rows = 4;      // of a warp
constexpr int mma_columns = 16;  // of a warp

// Where a warp works within its block.
struct MmaWarp {
  int row, column, part;
  int group, pair;  // lane / 4: a row of A, a column of B; lane % 4
};

EA_DEVICE MmaWarp mma_warp(const ConvArgs& args) {
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  const int across = (int)args.tile_columns / mma_columns, parts = args.parts;
  const int place = warp / parts;
  return {place / across * mma_rows, place % across * mma_columns, warp % parts, lane / 4,
          lane % 4};
}

// Where a thread's sums belong: two pixels, 8 columns apart, in each of mma_rows rows.
struct MmaPlaces {
  int group, channel;  // the first of its channels, within the group
  int row, column;     // of y, at the first pixel
  int row_step, column_step;  // of y, from one row and from one of the two pixels to the next
  uint32_t real;              // bit 2 * row + pixel: there is such a pixel
};

EA_DEVICE MmaPlaces mma_places(const ConvArgs& args, const ConvTile& tile, const MmaWarp& warp,
                               const ConvAxis& rows, const ConvAxis& columns, int channel) {
  const int row = tile.row + warp.row, column = tile.column + warp.column + warp.group;
  uint32_t real = 0;
#pragma unroll
  for (int k = 0; k < 2 * mma_rows; ++k) {
    real |= (uint32_t)(row + k / 2 < rows.count && column + k % 2 * 8 < columns.count) << k;
  }
  const int row_step = args.out_row_step, column_step = args.out_column_step;
  return {tile.group, channel, (int)rows.first + row * row_step,
          (int)columns.first + column * column_step, row_step, 8 * column_step, real};
}

// Any images: one pixel after the other, in few instructions.
template <int tiles>
EA_DEVICE void mma_finish_each(const ConvCommon& common, const MmaPlaces& at,
                               const float (&sums)[mma_rows][tiles][4]) {
#pragma unroll 1
  for (int k = 0; k < 2 * mma_rows; ++k) {
    if (!(at.real >> k & 1)) continue;
    const int i = k / 2;
    float values[2 * tiles];
#pragma unroll
    for (int c = 0; c < 2 * tiles; ++c) {
      const int t = c / 2;
      // An index that is not known beforehand would move the sums out of registers.
      const float low = i == 0 ? sums[0][t][c % 2] : sums[1][t][c % 2];
      const float high = i == 2 ? sums[2][t][c % 2] : sums[3][t][c % 2];
      const float low_right = i == 0 ? sums[0][t][2 + c % 2] : sums[1][t][2 + c % 2];
      const float high_right = i == 2 ? sums[2][t][2 + c % 2] : sums[3][t][2 + c % 2];
      values[c] = k % 2 == 0 ? (i < 2 ? low : high) : (i < 2 ? low_right : high_right);
    }
    conv_finish(common, at.group, at.channel, at.row + i * at.row_step,
                at.column + k % 2 * at.column_step, values);
  }
}

// `count` neighbouring channels of a pixel as they lie in memory.
template <class T, int count>
struct MmaChannels {
  Packet<count * sizeof(T)> packet;

  EA_DEVICE void fetch(const T* from) { packet = *reinterpret_cast<const decltype(packet)*>(from); }
  EA_DEVICE void values(float (&result)[count]) const {
    T elements[count];
    memcpy(elements, &packet, sizeof packet);
#pragma unroll
    for (int i = 0; i < count; ++i) result[i] = to_float(elements[i]);
  }
};

// The channels of a thread's pixels in one image, whose type is T and which is read in vectors.
template <class T>
struct MmaImage {
  T* first;
  int64_t row_step, column_step;  // in elements

  EA_DEVICE MmaImage(const ConvCommon& common, const Image& image, const MmaPlaces& at)
      : first(static_cast<T*>(image.data) +
              offset(image, at.group * common.out_channels + at.channel, at.row, at.column)),
        row_step(at.row_step * image.row_stride),
        column_step(at.column_step * image.pixel_stride) {}

  EA_DEVICE T* pixel(int k) const { return first + k / 2 * row_step + k % 2 * column_step; }
};

// Rows whose operands are under way at the same time: as many as there are registers for.
template <int tiles>
constexpr int mma_rows_together = tiles > 2 ? 1 : mma_rows;

// sums = what an operand makes of them, in rows from `first` on.
template <class T, int tiles>
EA_DEVICE void mma_operand(const ConvCommon& common, const MmaPlaces& at, int number, int first,
                           float (&sums)[mma_rows][tiles][4]) {
  constexpr int pixels = 2 * mma_rows_together<tiles>;
  const MmaImage<T> image(common, common.operands[number], at);
  MmaChannels<T, 2 * tiles> held[pixels];
#pragma unroll
  for (int k = 0; k < pixels; ++k) {
    // Instead of a pixel that there is not, the first: under a condition, one load would wait for
    // the other.
    const bool real = at.real >> (2 * first + k) & 1;
    held[k].fetch(real ? image.pixel(2 * first + k) : image.first);
  }
  const bool masks = common.operand_kinds[number] == CONV_MASK;
  const float mask_slope = float_of((uint32_t)common.mask_slope);
#pragma unroll
  for (int k = 0; k < pixels; ++k) {
    float values[2 * tiles];
    held[k].values(values);
#pragma unroll
    for (int c = 0; c < 2 * tiles; ++c) {
      float& sum = sums[first + k / 2][c / 2][k % 2 * 2 + c % 2];
      const float masked = values[c] > 0.0f ? sum : mask_slope * sum;
      sum = masks ? masked : sum + values[c];
    }
  }
}

template <class T, int tiles>
EA_DEVICE void mma_write(const ConvCommon& common, const MmaPlaces& at, int first,
                         const float (&sums)[mma_rows][tiles][4]) {
  const MmaImage<T> y(common, common.y, at);
#pragma unroll
  for (int k = 2 * first; k < 2 * (first + mma_rows_together<tiles>); ++k) {
    if (!(at.real >> k & 1)) continue;
    float values[2 * tiles];
#pragma unroll
    for (int c = 0; c < 2 * tiles; ++c) values[c] = sums[k / 2][c / 2][k % 2 * 2 + c % 2];
    store(y.pixel(k), values);
  }
}

// As conv_finish for all of a thread's pixels, where all images are of type T and whole vectors.
template <class T, int tiles>
EA_DEVICE void mma_finish_together(const ConvCommon& common, const MmaPlaces& at,
                                   float (&sums)[mma_rows][tiles][4]) {
  const float slope = float_of((uint32_t)common.slope);
#pragma unroll
  for (int first = 0; first < mma_rows; first += mma_rows_together<tiles>) {
#pragma unroll 1
    for (int number = 0; number <= common.operand_count; ++number) {
      if (number == common.add_count && common.has_slope) {
#pragma unroll
        for (int i = 0; i < mma_rows_together<tiles> * tiles * 4; ++i) {
          float& sum = sums[first + i / 4 / tiles][i / 4 % tiles][i % 4];
          sum = sum > 0.0f ? sum : slope * sum;
        }
      }
      if (number < common.operand_count) mma_operand<T>(common, at, number, first, sums);
    }
    mma_write<T>(common, at, first, sums);
  }
}

}  // namespace edgeadapt
