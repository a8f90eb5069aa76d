// Convolution on tensor cores: a matrix of pixels by channels for each tap (implicit GEMM).
//
// A block computes `tile_rows` x `tile_columns` positions and parts * 8 * tiles channels, a warp 4
// rows of 16 positions by 8 * tiles channels: pixels are rows of A, channels columns of B. A chunk
// is 32 bytes of channels: 16 of f16 or bf16, 8 of tf32. In shared memory a pixel of the window is
// one chunk. The order of channels within a product does not matter as long as A and B agree, so
// thread q of four takes 8 neighbouring bytes (k = 2q, 2q + 1, 2q + 8, 2q + 9 of f16; q and q + 4
// of tf32): one load without bank conflicts where neighbours are a step of 1 apart. The columns of
// B are ordered so that a thread's sums are 2 * tiles neighbouring channels of y.
//
// Where a chunk is the same bytes in memory, it is copied asynchronously: while weights are brought
// and, if `windows` is 2, while the chunk before is multiplied.
//
// Weights are there for `down` rows of taps at a time. If these are all there are, and neighbours,
// they share what is loaded of A: a row of the window serves `down` rows of y.
//
// 3x3 16 -> 16 at 1280x720 in f16 moves 59 MB, 12.3 us at 4.8 TB/s (H200) and 0.29 ms at 204.8 GB/s
// (AGX Orin), and computes 4.2 GFLOP, 4.3 us at 989 TFLOP/s and 0.10 ms at 42.6: memory decides,
// if shared memory does not. Loading A for each tap would read 265 MB of it (9 us on H200), with
// down = 3 half of that.
#pragma once

#include "conv_stage.cuh"

namespace edgeadapt {

constexpr int mma_rows = 4;      // of a warp
constexpr int mma_columns = 16;  // of a warp
constexpr int chunk_words = 8;
constexpr int fragment_words = 2 * warp_size;  // of B, 8 channels of y by a chunk

EA_DEVICE void load_words(const uint32_t* p, uint32_t& first, uint32_t& second) {
  const Packet<8> packet = *reinterpret_cast<const Packet<8>*>(p);
  uint32_t words[2];
  memcpy(words, &packet, sizeof words);
  first = words[0];
  second = words[1];
}

EA_DEVICE void store_words(uint32_t* p, uint32_t first, uint32_t second) {
  const uint32_t words[2] = {first, second};
  Packet<8> packet;
  memcpy(&packet, words, sizeof words);
  *reinterpret_cast<Packet<8>*>(p) = packet;
}

// Types that are multiplied: how a chunk of the window and of the weights is made of them.
template <class T>
struct HalfMath {
  using Element = T;  // of images, most likely
  using Raw = T;
  using Unit = Packet<16>;
  static constexpr int count = 8;  // of the window in a unit
  static constexpr int batch = 5;
  static constexpr int depth = 4;  // input channels of a thread
  static constexpr bool copies = true;
  uint32_t* window;

  EA_DEVICE static Unit unit(const float (&values)[count]) {
    Unit result;
    T halves[count];
#pragma unroll
    for (int k = 0; k < count; ++k) halves[k] = from_float<T>(values[k]);
    memcpy(&result, halves, sizeof result);
    return result;
  }
  EA_DEVICE Unit* place(int pixel, int lane) const {
    return reinterpret_cast<Unit*>(window + pixel * chunk_words + 4 * lane);
  }
  EA_DEVICE void put(int pixel, ConvPixel, int lane, const Unit& unit) const {
    *place(pixel, lane) = unit;
  }
  EA_DEVICE void put_one(int pixel, ConvPixel, int lane, int k, float value) const {
    reinterpret_cast<T*>(window)[(pixel * 2 + lane) * count + k] = from_float<T>(value);
  }

  // Eight channels of y: for each the two registers of B. `rows` of the input channels exist.
  EA_DEVICE static void fragments(const void* weights, int64_t at, int64_t stride, int rows,
                                  uint32_t (&result)[8][2]) {
    uint32_t words[depth][4] = {};
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      if (i >= rows) continue;
      const T* row = static_cast<const T*>(weights) + at + i * stride;
      const Unit unit = *reinterpret_cast<const Unit*>(row);
      memcpy(words[i], &unit, sizeof unit);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t low = words[2 * i][k / 2], high = words[2 * i + 1][k / 2];
        result[k][i] = k % 2 == 0 ? (low & 0xffff) | high << 16 : low >> 16 | (high & 0xffff0000);
      }
    }
  }
};

struct F16Math : HalfMath<Half> {
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
};

struct Bf16Math : HalfMath<Bfloat> {
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

struct Tf32Math {
  using Element = float;
  using Raw = void;  // even floats are rounded
  using Unit = Packet<16>;
  static constexpr int count = 4, batch = 5, depth = 2;
  static constexpr bool copies = false;
  uint32_t* window;

  EA_DEVICE static Unit unit(const float (&values)[count]) {
    Unit result;
    uint32_t words[count];
#pragma unroll
    for (int k = 0; k < count; ++k) words[k] = to_tf32(values[k]);
    memcpy(&result, words, sizeof result);
    return result;
  }
  EA_DEVICE void put(int pixel, ConvPixel, int lane, const Unit& unit) const {
    *reinterpret_cast<Unit*>(window + pixel * chunk_words + 4 * lane) = unit;
  }
  EA_DEVICE void put_one(int pixel, ConvPixel, int lane, int k, float value) const {
    window[pixel * chunk_words + lane * count + k] = to_tf32(value);
  }
  EA_DEVICE static void fragments(const void* weights, int64_t at, int64_t stride, int rows,
                                  uint32_t (&result)[8][2]) {
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      float values[8] = {};
      if (i < rows) load(static_cast<const float*>(weights) + at + i * stride, values);
#pragma unroll
      for (int k = 0; k < 8; ++k) result[k][i] = to_tf32(values[k]);
    }
  }
  EA_DEVICE static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

// B of one chunk, for `down` rows of taps from `row` on: (tap, part, tile, thread) pairs of words.
template <class Math, int tiles, int down>
EA_DEVICE void stage_fragments(const ConvArgs& args, const ConvTile& tile, const ConvAxis& rows,
                               const ConvAxis& columns, int first, int row, uint32_t* fragments) {
  const ConvCommon& common = args.common;
  const int eights = tiles * args.parts, taps_across = columns.taps;
  const int items = 4 * eights * down * taps_across;
  const int64_t kernel_rows = args.kernel_rows, stride = common.padded_channels;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int q = item % 4, eight = item / 4 % eights, tap = item / 4 / eights;
    const int below = tap / taps_across, across = tap - below * taps_across;
    const int64_t u = rows.first_tap + (row + below) * rows.tap_step;
    const int64_t v = columns.first_tap + across * columns.tap_step;
    const int channel = tile.channel + 8 * eight, input = first + q * Math::depth;
    const int64_t matrix = (tile.group * kernel_rows + u) * args.kernel_columns + v;
    const int64_t at = (matrix * common.in_channels + input) * stride + channel;
    const int inputs = channel < stride ? (int)common.in_channels - input : 0;
    uint32_t pairs[8][2];
    Math::fragments(common.weights, at, stride, inputs, pairs);
    uint32_t* part = fragments + (tap * eights + eight / tiles * tiles) * fragment_words;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int own = eight % tiles * 8 + k;  // of the part's channels
      const int column = own / (2 * tiles) * 2 + own % 2, of = own % (2 * tiles) / 2;
      store_words(part + of * fragment_words + (column * 4 + q) * 2, pairs[k][0], pairs[k][1]);
    }
  }
}

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

// `down` rows of taps from `first` on.
template <class Math, int tiles, int down>
EA_DEVICE void mma_taps(const ConvArgs& args, const MmaWarp& warp, const ConvAxis& rows,
                        const ConvAxis& columns, int first, const uint32_t* window,
                        const uint32_t* fragments, float (&sums)[mma_rows][tiles][4]) {
  const int row_step = args.row_step, column_step = args.column_step;
  const int pitch = (int)args.window_columns * chunk_words, across = columns.taps;
  const int parts = args.parts, lane = warp.group * 4 + warp.pair;
  const int row = warp.row * row_step + (int)(rows.offset + first * rows.offset_step);
  for (int v = 0; v < across; ++v) {
    const int column = (warp.column + warp.group) * column_step +
                       (int)(columns.offset + v * columns.offset_step);
    uint32_t b[down][tiles][2];
#pragma unroll
    for (int i = 0; i < down * tiles; ++i) {
      const int tap = i / tiles * across + v;
      const int at = (tap * parts + warp.part) * tiles + i % tiles;
      uint32_t(&pair)[2] = b[i / tiles][i % tiles];
      load_words(fragments + at * fragment_words + lane * 2, pair[0], pair[1]);
    }
    const uint32_t* place = window + row * pitch + column * chunk_words + warp.pair * 2;
#pragma unroll
    for (int i = 0; i < mma_rows + down - 1; ++i) {
      uint32_t a[4];
      load_words(place + i * row_step * pitch, a[0], a[2]);
      load_words(place + i * row_step * pitch + 8 * column_step * chunk_words, a[1], a[3]);
#pragma unroll
      for (int tap = 0; tap < down; ++tap) {
        if (i < tap || i - tap >= mma_rows) continue;
#pragma unroll
        for (int t = 0; t < tiles; ++t) Math::product(sums[i - tap][t], a, b[tap][t]);
      }
    }
  }
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

template <class Math, int tiles, int down>
EA_DEVICE void mma_phase(const ConvArgs& args, const ConvTile& tile, const ConvAxis& rows,
                         const ConvAxis& columns, bool staged, uint32_t* pool) {
  const MmaWarp warp = mma_warp(args);
  const int channel = tile.channel + warp.part * tiles * 8 + warp.pair * 2 * tiles;
  const int words = (int)(args.window_rows * args.window_columns) * chunk_words;
  const int inputs = args.common.in_channels, depth = 2 * Math::count;
  const bool ahead = Math::copies && args.windows > 1;  // the next chunk comes meanwhile
  uint32_t* fragments = pool + (ahead ? 2 : 1) * words;
  float sums[mma_rows][tiles][4];
#pragma unroll
  for (int i = 0; i < 2 * tiles; ++i) {
    const float bias = conv_bias(args.common, tile.group, channel + i);
#pragma unroll
    for (int row = 0; row < mma_rows; ++row) {
      sums[row][i / 2][i % 2] = sums[row][i / 2][2 + i % 2] = bias;
    }
  }
  Math cell;
  for (int first = ahead ? -depth : 0; first < inputs; first += depth) {
    __syncthreads();  // all have read the weights and what the next chunk replaces
    const int coming = ahead ? first + depth : first;
    cell.window = pool + (ahead ? coming / depth % 2 * words : 0);
    if (!staged && coming < inputs) conv_stage(args, tile, coming, cell);
    if constexpr (Math::copies) end_group();
    if (first < 0) continue;
    const uint32_t* window = pool + (ahead ? first / depth % 2 * words : 0);
    for (int u = 0; u < (down > 1 ? down : rows.taps); u += down) {
      if (u > 0) __syncthreads();  // all have read the weights
      stage_fragments<Math, tiles, down>(args, tile, rows, columns, first, u, fragments);
      if constexpr (Math::copies) {
        if (ahead) await_groups<1>();
        else await_groups<0>();
      }
      __syncthreads();
      mma_taps<Math, tiles, down>(args, warp, rows, columns, u, window, fragments, sums);
    }
  }
  if constexpr (Math::copies) await_groups<0>();
  const MmaPlaces at = mma_places(args, tile, warp, rows, columns, channel);
  if (!(at.real & 1)) return;  // the first of them is there, or none is
  const bool whole = channel + 2 * tiles <= args.common.out_channels;
  // More than a vector for each pixel would take more registers than there are.
  constexpr bool fits = 2 * tiles * sizeof(typename Math::Element) <= 16;
  if (fits && whole && conv_vectors(args.common, 9)) {
    if constexpr (fits) mma_finish_together<typename Math::Element>(args.common, at, sums);
  } else if (channel < args.common.out_channels) {
    mma_finish_each(args.common, at, sums);
  }
}

// The phases of a transposed convolution follow each other in a block: their pixels are neighbours,
// and they see the same window, which stays if it is one chunk.
template <class Math, int tiles, int down>
EA_DEVICE void conv_mma(const ConvArgs& args) {
  EA_SHARED(uint32_t, pool, [12288]);  // kernels/cuda/conv_tiles.py counts on it
  const ConvTile tile = conv_tile(args, (int)args.parts * tiles * 8);
  const bool single = args.common.in_channels <= 2 * Math::count;
#pragma unroll 1
  for (int phase = 0; phase < args.row_phases * args.column_phases; ++phase) {
    const ConvAxis& rows = args.rows[phase / args.column_phases];
    const ConvAxis& columns = args.columns[phase % args.column_phases];
    mma_phase<Math, tiles, down>(args, tile, rows, columns, single && phase > 0, pool);
  }
}

// The kernels of one type: conv_<name>_<down>_<channels of a warp>.
#define EA_CONV_MMA_OF(name, Math, tiles, down, channels)                  \
  EA_KERNEL(conv_##name##_##down##_##channels, ConvArgs, EA_CONV_THREADS) { \
    conv_mma<Math, tiles, down>(args);                                      \
  }
#define EA_CONV_MMA(name, Math)         \
  EA_CONV_MMA_OF(name, Math, 1, 1, 8)   \
  EA_CONV_MMA_OF(name, Math, 2, 1, 16)  \
  EA_CONV_MMA_OF(name, Math, 4, 1, 32)  \
  EA_CONV_MMA_OF(name, Math, 1, 3, 8)   \
  EA_CONV_MMA_OF(name, Math, 2, 3, 16)  \
  EA_CONV_MMA_OF(name, Math, 4, 3, 32)

}  // namespace edgeadapt
