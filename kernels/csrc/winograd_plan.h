// The transforms of Winograd's F(2x2, 3x3) and how its work is cut into tasks.
// A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1.
#pragma once

#include "block.h"
#include "conv_args.h"
#include "conv_tile.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t parts = 16;  // 4 x 4 products for each 2 x 2 outputs

struct WinogradPlan {
  int64_t top, left;  // of the first window
  int64_t inputs, outputs;
  int64_t rows, vectors;  // of 2 x 2 squares of the output; a vector is of `lanes` squares
  int64_t band_rows, bands;
  int64_t block_vectors, blocks_across;
  int64_t phase_pitch, row_pitch;        // of one channel's input
  int64_t channel_pitch, part_pitch;     // of the transformed input
  int64_t input_bytes, transformed_bytes, offset_bytes, product_bytes, thread_bytes;
};

// Bytes of transformed input of a task: less than half of the L2 cache.
#if defined(__x86_64__)
constexpr int64_t winograd_budget = 448 * 1024;
#else
constexpr int64_t winograd_budget = 112 * 1024;
#endif

// What a task of so many rows takes, in tenths of a vector of squares: what does not fill a tile is
// computed for half or all of it, and a row in common with the neighbour is transformed twice.
static inline int64_t task_cost(const WinogradPlan& plan, int64_t rows) {
  const int64_t tile = tile_vectors(widest_tile), few = (tile + 1) / 2;
  const int64_t squares = rows * plan.block_vectors, rest = squares % tile;
  const int64_t more = rest == 0 ? 0 : rest <= few ? few : tile;
  return 10 * (squares - rest + more) + 3 * plan.block_vectors;
}

// Blocks of which three rows fit, whole rows if possible; of the numbers of rows that fit, the one
// with which the threads are done first.
static inline void cut(WinogradPlan& plan, int64_t threads) {
  const int64_t fit = winograd_budget / (parts * plan.inputs * lanes * 4);
  plan.block_vectors = plan.vectors;
  while (plan.block_vectors > 1 && fit / plan.block_vectors < 3)
    plan.block_vectors = divide_up(plan.block_vectors, 2);
  plan.blocks_across = divide_up(plan.vectors, plan.block_vectors);
  const int64_t fit_rows = fit / plan.block_vectors;
  int64_t best = 0;
  for (int64_t rows = 1; rows == 1 || (rows <= fit_rows && rows <= plan.rows); rows++) {
    const int64_t tasks = divide_up(plan.rows, rows) * plan.blocks_across;
    const int64_t cost = divide_up(tasks, threads) * task_cost(plan, rows);
    if (rows > 1 && cost > best) continue;
    best = cost;
    plan.band_rows = rows;
  }
  plan.bands = divide_up(plan.rows, plan.band_rows);
}

static inline WinogradPlan make_winograd_plan(const ConvArgs& args, int64_t threads) {
  WinogradPlan plan{};
  plan.top = make_axis(3, 1, args.pads[0], 1, args.transposed).low;
  plan.left = make_axis(3, 1, args.pads[1], 1, args.transposed).low;
  for (const Plane& source : args.sources) plan.inputs += source.channels;
  plan.outputs = args.y.channels;
  plan.rows = divide_up(args.y.height, 2);
  plan.vectors = divide_up(divide_up(args.y.width, 2), lanes);
  cut(plan, threads);
  plan.phase_pitch = (plan.block_vectors + 1) * lanes;
  plan.row_pitch = block_pitch(2 * plan.phase_pitch);
  // A line more between the parts: they are written together, and must not meet in one cache set.
  const int64_t line = 16;
  plan.channel_pitch = plan.band_rows * plan.block_vectors * lanes;
  plan.part_pitch = divide_up(plan.inputs * plan.channel_pitch, 64 * line) * 64 * line + line;
  plan.input_bytes = (2 * plan.band_rows + 2) * plan.row_pitch * 4;
  plan.transformed_bytes = parts * plan.part_pitch * 4;
  plan.offset_bytes = divide_up(plan.inputs * 8, 64) * 64;
  // Sums of a tile for every part, and one vector's outputs for each channel: 2 rows of 2 vectors.
  plan.product_bytes = (parts * 24 + 4 * widest_tile) * lanes * 4;
  plan.thread_bytes =
      plan.input_bytes + plan.transformed_bytes + plan.offset_bytes + plan.product_bytes;
  return plan;
}

// Four neighbours of a row, each of `lanes` windows, on the way to the parts.
struct Four {
  Vec part[4];
};

EA_INLINE Four transform_input(Vec a, Vec b, Vec c, Vec d) {
  return Four{{a - c, b + c, c - b, b - d}};
}

// One channel: `from` has even and odd columns apart and begins with the first square's window.
static inline void transform_channel(float* __restrict__ to, const float* __restrict__ from,
                                     const WinogradPlan& plan, int64_t rows, int64_t vectors) {
  const auto read = [&](int64_t row, int64_t v) {
    const float* even = from + row * plan.row_pitch + v * lanes;
    const float* odd = even + plan.phase_pitch;
    return transform_input(load(even), load(odd), load(even + 1), load(odd + 1));
  };
  for (int64_t v = 0; v < vectors; v++) {
    Four first = read(0, v), second = read(1, v);
    for (int64_t r = 0; r < rows; r++) {
      const Four third = read(2 * r + 2, v), fourth = read(2 * r + 3, v);
      float* part = to + (r * vectors + v) * lanes;
      for (int b = 0; b < 4; b++, part += plan.part_pitch) {
        const Four down = transform_input(first.part[b], second.part[b], third.part[b],
                                          fourth.part[b]);
        for (int a = 0; a < 4; a++) store(part + 4 * a * plan.part_pitch, down.part[a]);
      }
      first = third;
      second = fourth;
    }
  }
}

// One vector of squares of one channel, whose parts are `pitch` apart: two vectors of each of two
// rows. A slope other than one is LeakyReLU's.
static inline void transform_output(float* to, int64_t row_pitch,
                                    const float* __restrict__ products, int64_t pitch,
                                    float slope) {
  Vec upper[4], lower[4];
  for (int b = 0; b < 4; b++, products += pitch) {
    const Vec m0 = load(products), m1 = load(products + 4 * pitch);
    const Vec m2 = load(products + 8 * pitch), m3 = load(products + 12 * pitch);
    upper[b] = m0 + m1 + m2;
    lower[b] = m1 - m2 - m3;
  }
  Vec a = upper[0] + upper[1] + upper[2], b = upper[1] - upper[2] - upper[3];
  Vec c = lower[0] + lower[1] + lower[2], d = lower[1] - lower[2] - lower[3];
  if (slope != 1.0f) {
    a = leaky(a, slope);
    b = leaky(b, slope);
    c = leaky(c, slope);
    d = leaky(d, slope);
  }
  store(to, mix_low(a, b));
  store(to + lanes, mix_high(a, b));
  store(to + row_pitch, mix_low(c, d));
  store(to + row_pitch + lanes, mix_high(c, d));
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
