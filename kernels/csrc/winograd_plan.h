// How the work of Winograd's convolution is cut into tasks.
#pragma once

#include "block.h"
#include "conv_args.h"
#include "conv_tile.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t square = 4;  // outputs of a square along each axis
constexpr int64_t side = square + 2;  // inputs of it, with a kernel of three
constexpr int64_t parts = side * side;  // products

struct WinogradPlan {
  int64_t top, left;  // of the first window
  int64_t inputs, outputs;
  int64_t rows, vectors;  // of squares of the output; a vector is of `lanes` squares
  int64_t band_rows, bands;
  int64_t block_vectors, blocks_across;
  int64_t row_pitch;                     // of a copy of one channel's input
  int64_t channel_pitch, vector_pitch;   // of the transformed input
  int64_t input_bytes, transformed_bytes, offset_bytes, product_bytes, thread_bytes;
};

// Bytes of transformed input of a task: a quarter of the L2 cache, through which images pass, too.
#if defined(__x86_64__)
constexpr int64_t winograd_budget = 240 * 1024;
#else
constexpr int64_t winograd_budget = 112 * 1024;
#endif

// What a task of so many rows and vectors takes, in tenths of a vector of squares: what does not
// fill a tile is computed for half or all of it, rows in common with the neighbour are transformed
// twice, and memory is slower where a row begins.
static inline int64_t task_cost(int64_t rows, int64_t vectors) {
  const int64_t tile = tile_vectors(widest_tile), few = (tile + 1) / 2;
  const int64_t squares = rows * vectors, rest = squares % tile;
  const int64_t more = rest == 0 ? 0 : rest <= few ? few : tile;
  return 10 * (squares - rest + more) + 3 * vectors + 10 * rows;
}

// Of the blocks that fit, those with which the threads are done first.
static inline void cut(WinogradPlan& plan, int64_t threads) {
  int64_t fit = winograd_budget / (parts * plan.inputs * lanes * 4), best = 0;
  if (fit < tile_vectors(widest_tile)) fit = tile_vectors(widest_tile);
  for (int64_t wide = plan.vectors;; wide = divide_up(wide, 2)) {
    const int64_t across = divide_up(plan.vectors, wide);
    for (int64_t rows = 1; rows <= plan.rows && rows * wide <= fit; rows++) {
      const int64_t tasks = divide_up(plan.rows, rows) * across;
      const int64_t cost = divide_up(tasks, threads) * task_cost(rows, wide);
      if (best > 0 && cost > best) continue;
      best = cost;
      plan.band_rows = rows;
      plan.block_vectors = wide;
    }
    if (wide == 1) break;
  }
  plan.blocks_across = divide_up(plan.vectors, plan.block_vectors);
  plan.bands = divide_up(plan.rows, plan.band_rows);
}

static inline WinogradPlan make_winograd_plan(const ConvArgs& args, int64_t threads) {
  WinogradPlan plan{};
  plan.top = make_axis(3, 1, args.pads[0], 1, args.transposed).low;
  plan.left = make_axis(3, 1, args.pads[1], 1, args.transposed).low;
  for (const Plane& source : args.sources) plan.inputs += source.channels;
  plan.outputs = args.y.channels;
  plan.rows = divide_up(args.y.height, square);
  plan.vectors = divide_up(divide_up(args.y.width, square), lanes);
  cut(plan, threads);
  plan.row_pitch = block_pitch(square * lanes + 2);
  plan.channel_pitch = (parts + 1) * lanes;
  plan.vector_pitch = plan.inputs * plan.channel_pitch;
  plan.input_bytes = (square * plan.band_rows + 2) * plan.row_pitch * 4;
  plan.transformed_bytes = plan.band_rows * plan.block_vectors * plan.vector_pitch * 4;
  plan.offset_bytes = divide_up(plan.inputs * 8, 64) * 64;
  // Sums of a tile for every part, and one vector of squares of each channel.
  plan.product_bytes = (parts * 24 + square * square * widest_tile) * lanes * 4;
  plan.thread_bytes =
      plan.input_bytes + plan.transformed_bytes + plan.offset_bytes + plan.product_bytes;
  return plan;
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
