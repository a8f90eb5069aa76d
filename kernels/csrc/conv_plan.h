// How a convolution is cut into tasks, from sizes alone.
#pragma once

#include "block.h"
#include "conv_args.h"
#include "conv_shape.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct ConvPlan {
  Axis rows, columns;
  int64_t group, group_in, group_out;
  int64_t in_lanes;       // input channels, or pairs of them, of a group
  int64_t group_weights;  // lanes
  int64_t steps_down, vectors;
  int64_t band_rows, bands;
  int64_t block_vectors, blocks_across;
  int64_t part_channels, parts;  // groups of output channels, where there are few other tasks
  int64_t halo_columns;          // of a phase, beyond the vectors of the block
  Window window;                 // its pitches; the rest is the task's
  int64_t taps_bytes, sums_bytes, thread_bytes;
};

// Bytes of a block: half of the L2 cache of the smallest CPU of its kind, as weights and outputs
// pass through it as well.
#if defined(__x86_64__)
constexpr int64_t block_budget = 256 * 1024;
#else
constexpr int64_t block_budget = 128 * 1024;
#endif

static inline int64_t block_rows(const ConvPlan& plan, int64_t steps) {
  return (steps - 1) * plan.rows.in_step + plan.rows.high - plan.rows.low + 1;
}

// Lanes of a row of the block, for so many vectors of steps.
static inline int64_t row_lanes(const ConvPlan& plan, int64_t vectors) {
  return block_pitch((vectors * lanes + plan.halo_columns) * plan.window.phases);
}

// The widest blocks of which enough rows fit that their overlap does not matter; then bands of
// equal height, and as many as keep all threads busy.
static void cut(ConvPlan& plan, int64_t threads) {
  const int64_t overlap = block_rows(plan, 1) - plan.rows.in_step;
  const int64_t wanted = overlap > 0 ? 4 * overlap : 4;
  int64_t fit;
  plan.block_vectors = plan.vectors;
  for (;;) {
    const int64_t rows = block_budget / 4 / plan.in_lanes / row_lanes(plan, plan.block_vectors);
    fit = (rows - block_rows(plan, 1)) / plan.rows.in_step + 1;
    if (fit >= wanted || fit >= plan.steps_down || plan.block_vectors <= 4) break;
    plan.block_vectors = divide_up(plan.block_vectors, 2);
  }
  if (fit < 1) fit = 1;
  plan.blocks_across = divide_up(plan.vectors, plan.block_vectors);
  plan.bands = divide_up(plan.steps_down, fit);
  const int64_t others = plan.blocks_across * plan.group;
  if (others * plan.bands % threads) {
    const int64_t even = divide_up(plan.bands, threads) * threads;
    if (even <= plan.steps_down) plan.bands = even;
  }
  plan.band_rows = divide_up(plan.steps_down, plan.bands);
  plan.bands = divide_up(plan.steps_down, plan.band_rows);
  plan.parts = divide_up(threads, others * plan.bands);
  plan.part_channels = divide_up(divide_up(plan.group_out, plan.parts), widest_tile) * widest_tile;
  plan.parts = divide_up(plan.group_out, plan.part_channels);
}

static ConvPlan make_plan(const ConvArgs& args, int64_t threads) {
  ConvPlan plan{};
  plan.rows = make_axis(args.kernel[0], args.strides[0], args.pads[0], args.dilations[0],
                        args.transposed);
  plan.columns = make_axis(args.kernel[1], args.strides[1], args.pads[1], args.dilations[1],
                           args.transposed);
  int64_t channels = 0;
  for (const Plane& source : args.sources) channels += source.channels;
  plan.group = args.group;
  plan.group_in = channels / args.group;
  plan.group_out = args.y.channels / args.group;
  plan.in_lanes = args.compute == BF16 ? divide_up(plan.group_in, 2) : plan.group_in;
  plan.group_weights = plan.in_lanes * plan.group_out * args.kernel[0] * args.kernel[1];
  plan.steps_down = divide_up(args.y.height, plan.rows.out_step);
  plan.vectors = divide_up(divide_up(args.y.width, plan.columns.out_step), lanes);
  plan.window.phases = plan.columns.in_step;
  plan.halo_columns = (plan.columns.high - plan.columns.low) / plan.window.phases;
  cut(plan, threads);
  plan.window.phase_pitch = plan.block_vectors * lanes + plan.halo_columns;
  plan.window.row_pitch = row_lanes(plan, plan.block_vectors);
  plan.window.channel_pitch = block_rows(plan, plan.band_rows) * plan.window.row_pitch;
  plan.taps_bytes = divide_up(args.kernel[0] * args.kernel[1] * 8, 64) * 64;
  // One tile's sums for each phase of columns, and one vector of each of its channels, interleaved.
  plan.sums_bytes = plan.columns.out_step * (24 + widest_tile) * 4 * lanes;
  const int64_t block_bytes = 4 * plan.in_lanes * plan.window.channel_pitch;
  plan.thread_bytes = divide_up(plan.taps_bytes + plan.sums_bytes + block_bytes, 64) * 64;
  return plan;
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
