// Convolution and transposed convolution of planar images, directly: see kernels/reference/conv.py
// for what is computed.
//
// A task is a block of the output. It copies the part of the input it needs to its thread's memory
// (block.h), small enough to stay in the L2 cache, and sums up tiles of a few channels by a few
// vectors of pixels in registers (conv_tile.h). Any kernel, stride and dilation is a list of places
// in the block; a transposed convolution has one such list for each phase of the output. Sums go
// straight to y, or through the L1 cache if more is to be done (conv_finish.h). A sum runs over
// channels and taps in one order, so neither blocks nor threads change the result.
//
// GFLOP/s of the direct algorithm's work on one thread of an AMD EPYC (Zen 4), level avx512_bf16,
// the best of ten runs or more on a machine shared with others. The multipliers can do 117 in
// float32, 234 in bfloat16. oneDNN: float32 by PyTorch 2.13, the best of three layouts.
//   channels, pixels       float32   bfloat16   winograd.cpp   oneDNN
//   8 -> 8, 256x256           96        184         156           54
//   16 -> 16, 128x128        103        200         226          108
//   16 -> 16, 256x256         96        197         228           92
//   16 -> 16, 1280x720        89        177         210           57
//   32 -> 32, 128x128        103        211         304          104
//   64 -> 64, 64x64          102        215         364          106
//   64 -> 64, 320x180         97        208         320          112
#include "conv_finish.h"
#include "conv_plan.h"
#include "conv_tile.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// The part of the output that a task writes, and where it finds what it needs.
struct Work {
  const ConvArgs* args;
  const ConvPlan* plan;
  const Finish* finish;
  int64_t group;
  int64_t first_row, rows, first_column, vectors;  // in steps, and in vectors of steps
  int64_t row_phase;
  int64_t* taps;
  float* sums;
  char* block;
};

// The places in the block of one phase's taps, in the order of the packed weights.
static int64_t list_taps(const ConvPlan& plan, int64_t row_phase, int64_t column_phase,
                         int64_t* list) {
  int64_t count = 0, down, right;
  for (int64_t u = 0; u < plan.rows.kernel; u++) {
    if (!tap_offset(plan.rows, row_phase, u, &down)) continue;
    for (int64_t v = 0; v < plan.columns.kernel; v++) {
      if (!tap_offset(plan.columns, column_phase, v, &right)) continue;
      down -= plan.rows.low;
      right -= plan.columns.low;
      list[count++] = down * plan.window.row_pitch +
                      right % plan.window.phases * plan.window.phase_pitch +
                      right / plan.window.phases;
      down += plan.rows.low;
    }
  }
  return count;
}

// Where the input of a vector of steps begins in the block, and its outputs in y.
struct Place {
  int64_t block;
  int64_t row, column;
};

// Goes through the places of a block, row by row.
struct Walk {
  int64_t row = 0, vector = 0;  // of the block
};

static inline Place next_place(const Work& work, Walk& walk) {
  const ConvPlan& plan = *work.plan;
  const Place place{walk.row * plan.rows.in_step * plan.window.row_pitch + walk.vector * lanes,
                    (work.first_row + walk.row) * plan.rows.out_step + work.row_phase,
                    (work.first_column + walk.vector * lanes) * plan.columns.out_step};
  if (++walk.vector == work.vectors) {
    walk.vector = 0;
    walk.row++;
  }
  return place;
}

// Writes a vector of steps from a tile's sums: one vector of y, or several where it has phases.
template <int channels, int vectors>
static inline void finish_place(const Work& work, const float* sums, int64_t channel,
                                const Place& place) {
  const int64_t phases = work.plan->columns.out_step, width = work.args->y.width;
  constexpr int64_t pitch = vectors * lanes;
  float* const joined = work.sums + phases * channels * pitch;
  if (phases > 1) {
    for (int64_t i = 0; i < channels; i++)
      interleave(joined + i * phases * lanes, sums + i * pitch, phases, channels * pitch);
  }
  for (int64_t p = 0; p < phases; p++) {
    const int64_t column = place.column + p * lanes, left = width - column;
    if (left <= 0) break;
    finish_spot(*work.finish, phases > 1 ? joined + p * lanes : sums,
                phases > 1 ? phases * lanes : pitch, channel, channels,
                Spot{place.row, column, left < lanes ? left : lanes});
  }
}

// The sums of phase p go to the buffer, or to y if that is all there is to do.
template <int channels, int vectors>
static inline Outlet<vectors> find_outlet(const Work& work, const Place* places, int64_t channel,
                                          int64_t phase) {
  const Finish& finish = *work.finish;
  const bool straight = finish.alone && work.plan->columns.out_step == 1;
  Outlet<vectors> outlet{{}, vectors * lanes, false, false, 0.0f, false};
  bool whole = true;
  for (int j = 0; j < vectors; j++) whole &= places[j].column + lanes <= finish.y.width;
  if (!straight || !whole) {
    float* const sums = work.sums + phase * channels * vectors * lanes;
    for (int j = 0; j < vectors; j++) outlet.to[j] = sums + j * lanes;
    return outlet;
  }
  outlet.stride = finish.y.channel_stride;
  outlet.half = finish.half;
  outlet.has_slope = finish.has_slope;
  outlet.slope = finish.slope;
  outlet.stream = finish.stream;
  for (int j = 0; j < vectors; j++)
    outlet.to[j] = locate_y(finish, channel, places[j].row, places[j].column);
  return outlet;
}

// One tile at as many places as it has vectors.
template <int channels, int vectors, class Lane>
static inline void run_places(const Work& work, const Place (&places)[vectors], int64_t count,
                              int64_t channel, const float* bias) {
  const ConvPlan& plan = *work.plan;
  const WeightOrder order{plan.in_lanes, plan.group_out};
  const int64_t y_channel = work.group * plan.group_out + channel;
  const Lane* x[vectors];
  for (int j = 0; j < vectors; j++) {
    x[j] = reinterpret_cast<const Lane*>(work.block) + places[j].block;
    fetch(*work.finish, y_channel, channels, places[j].row, places[j].column);
  }
  const int64_t* taps = work.taps;
  bool straight = false;
  for (int64_t p = 0; p < plan.columns.out_step; p++) {
    const int64_t here = phase_taps(plan.rows, plan.columns, work.row_phase, p);
    const Lane* const weights =
        static_cast<const Lane*>(work.args->weights) + work.group * plan.group_weights +
        tile_begin(order, plan.rows, plan.columns, work.row_phase, p, channel);
    const auto outlet = find_outlet<channels, vectors>(work, places, y_channel, p);
    straight = outlet.to[0] != work.sums + p * channels * vectors * lanes;
    convolve_tile<channels, vectors>(
        outlet, x, Taps{taps, here, plan.in_lanes, plan.window.channel_pitch}, weights, bias);
    taps += here;
  }
  if (straight) return;
  for (int64_t j = 0; j < count; j++)
    finish_place<channels, vectors>(work, work.sums + j * lanes, y_channel, places[j]);
}

// One tile of channels of the output, [channel, channel + channels) of the group, at all places of
// the block.
template <int channels, class Lane>
static void run_tile(const Work& work, int64_t channel, int64_t rows) {
  constexpr int vectors = tile_vectors(channels);
  const int64_t total = rows * work.vectors;
  const int64_t y_channel = work.group * work.plan->group_out + channel;
  float bias[channels] = {};
  for (int i = 0; i < channels && work.args->bias; i++) bias[i] = work.args->bias[y_channel + i];
  Walk walk;
  for (int64_t first = 0; first < total; first += vectors) {
    // Behind the last place its own sums are computed again.
    const int64_t count = total - first < vectors ? total - first : vectors;
    Place places[vectors];
    for (int j = 0; j < vectors; j++)
      places[j] = j < count ? next_place(work, walk) : places[count - 1];
    run_places<channels, vectors, Lane>(work, places, count, channel, bias);
  }
}

template <class Lane>
static void run_tile_of(int64_t channels, const Work& work, int64_t channel, int64_t rows) {
  switch (channels) {
    case 1: return run_tile<1, Lane>(work, channel, rows);
    case 2: return run_tile<2, Lane>(work, channel, rows);
    case 3: return run_tile<3, Lane>(work, channel, rows);
    case 4: return run_tile<4, Lane>(work, channel, rows);
#if EA_REGISTERS == 32
    case 6: return run_tile<6, Lane>(work, channel, rows);
    case 8: return run_tile<8, Lane>(work, channel, rows);
#endif
  }
}

// The channels [begin, end) of the group, all phases of the rows.
static void run_block(Work& work, int64_t begin, int64_t end) {
  const ConvPlan& plan = *work.plan;
  for (int64_t f = 0; f < plan.rows.out_step; f++) {
    work.row_phase = f;
    // Steps whose output row of this phase exists.
    const int64_t exist = (work.args->y.height - f + plan.rows.out_step - 1) / plan.rows.out_step;
    const int64_t rows = exist - work.first_row < work.rows ? exist - work.first_row : work.rows;
    int64_t* list = work.taps;
    for (int64_t p = 0; p < plan.columns.out_step; p++) list += list_taps(plan, f, p, list);
    int64_t channel = 0;
    while (channel < end) {
      const int64_t channels = tile_channels(plan.group_out - channel);
      if (channel >= begin) {
        if (work.args->compute == BF16)
          run_tile_of<int32_t>(channels, work, channel, rows);
        else
          run_tile_of<float>(channels, work, channel, rows);
      }
      channel += channels;
    }
  }
}

static void run_task(const ConvArgs& args, const ConvPlan& plan, const Finish& finish, int64_t task,
                     int64_t thread) {
  Work work{&args, &plan, &finish, 0, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr};
  char* const memory = static_cast<char*>(args.scratch) + thread * plan.thread_bytes;
  work.taps = reinterpret_cast<int64_t*>(memory);
  work.sums = reinterpret_cast<float*>(memory + plan.taps_bytes);
  work.block = memory + plan.taps_bytes + plan.sums_bytes;

  const int64_t part = task % plan.parts, across = task / plan.parts % plan.blocks_across;
  const int64_t band = task / plan.parts / plan.blocks_across % plan.bands;
  work.group = task / plan.parts / plan.blocks_across / plan.bands;
  work.first_row = band * plan.band_rows;
  work.rows = plan.steps_down - work.first_row < plan.band_rows ? plan.steps_down - work.first_row
                                                                : plan.band_rows;
  const int64_t first_vector = across * plan.block_vectors;
  work.first_column = first_vector * lanes;
  work.vectors = plan.vectors - first_vector < plan.block_vectors ? plan.vectors - first_vector
                                                                  : plan.block_vectors;

  Window window = plan.window;
  window.top = work.first_row * plan.rows.in_step + plan.rows.low;
  window.left = work.first_column * plan.columns.in_step + plan.columns.low;
  window.rows = (work.rows - 1) * plan.rows.in_step + plan.rows.high - plan.rows.low + 1;
  window.columns = work.vectors * lanes + plan.halo_columns;
  const int64_t first = work.group * plan.group_in;
  if (args.compute == BF16)
    pack_block(reinterpret_cast<uint32_t*>(work.block), args.sources, first, plan.group_in, window);
  else
    pack_block(reinterpret_cast<float*>(work.block), args.sources, first, plan.group_in, window);
  run_block(work, part * plan.part_channels, plan.group_out < (part + 1) * plan.part_channels
                                                 ? plan.group_out
                                                 : (part + 1) * plan.part_channels);
  if (finish.stream) flush_stores();
}

static void conv(const void* arguments, Team& team) {
  const ConvArgs& args = *static_cast<const ConvArgs*>(arguments);
  const ConvPlan plan = make_plan(args, team.size());
  Finish finish = make_finish(args);
  finish.stream = may_stream(finish.y, lanes);
  const int64_t tasks = plan.group * plan.bands * plan.blocks_across * plan.parts;
  parallel(team, tasks, [&](int64_t task, int64_t thread) {
    run_task(args, plan, finish, task, thread);
  });
}

static int64_t conv_scratch(const void* arguments, int64_t threads) {
  return threads * make_plan(*static_cast<const ConvArgs*>(arguments), threads).thread_bytes;
}

}  // namespace

EA_ENTRIES(conv, {"conv", conv, conv_scratch, sizeof(ConvArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
