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

#include "conv_mma_finish.cuh"
#include "conv_mma_math.cuh"

namespace edgeadapt {

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
