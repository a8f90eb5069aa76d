// Convolution with 3x3 kernels by Winograd's F(4x4, 3x3): 36 multiplications where the direct way
// (conv.cpp) has 144, and additions instead. Float32, stride 1; the transposed one as well, which is
// a convolution with the kernel turned around.
//
// A task transforms the input of its squares to 36 parts that stay in the L2 cache, those of a
// channel next to each other: they are written at once, and to as many pages of memory as there are
// parts it would take twice the time. Each part is a matrix product, for which conv_tile.h does, a
// tile of channels and a few vectors of squares at a time. Then the 36 results are transformed back
// and finished (winograd_finish.h).
#include "winograd_finish.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct Work {
  const ConvArgs* args;
  const WinogradPlan* plan;
  const Finish* finish;
  int64_t first_row, rows, first_vector, vectors;
  float *input, *transformed, *products, *joined;
  int64_t* offsets;
};

// Where a vector of squares begins in y.
struct Place {
  int64_t row, column;
};

static inline Place find_place(const Work& work, int64_t index) {
  return Place{square * (work.first_row + index / work.vectors),
               square * lanes * (work.first_vector + index % work.vectors)};
}

// One vector of squares: four vectors of four rows of y for each channel of the tile.
template <int channels, int vectors>
static inline void finish_squares(const Work& work, const float* products, const float* bias,
                                  int64_t channel, Place place) {
  const Finish& finish = *work.finish;
  const Plane& y = finish.y;
  constexpr int64_t across = square * lanes, row_pitch = channels * across;
  constexpr int64_t step = vectors * lanes, pitch = channels * step;
  const bool whole = place.row + square <= y.height && place.column + across <= y.width;
  if (whole && (finish.single || finish.half)) {
    for (int64_t i = 0; i < channels; i++, products += step) {
      if (finish.single)
        finish_whole_squares<float>(finish, products, pitch, bias[i], channel + i, place.row,
                                    place.column);
      else
        finish_whole_squares<uint16_t>(finish, products, pitch, bias[i], channel + i, place.row,
                                       place.column);
    }
    return;
  }
  for (int64_t i = 0; i < channels; i++)
    join_squares(work.joined + i * across, row_pitch, products + i * step, pitch, bias[i]);
  for (int64_t part = 0; part < square * square; part++) {
    const int64_t row = place.row + part / square, column = place.column + part % square * lanes;
    const int64_t left = y.width - column;
    if (row >= y.height || left <= 0) continue;
    finish_spot(finish, work.joined + part / square * row_pitch + part % square * lanes, across,
                channel, channels, Spot{row, column, left < lanes ? left : lanes});
  }
}

// Asks for a share of what finish_squares() will need, of `square` rows of y for each channel.
template <int channels, int vectors>
static inline void fetch_share(const Work& work, int64_t channel, int64_t part,
                               const Place (&places)[vectors]) {
  constexpr int64_t total = square * square * channels;
  for (int64_t i = part * total / parts; i < (part + 1) * total / parts; i++) {
    const int64_t row = i / square % square, column = i % square * lanes;
    for (const Place& place : places)
      fetch(*work.finish, channel + i / square / square, 1, place.row + row, place.column + column);
  }
}

// The products of a tile of channels with `vectors` vectors of squares, of which `count` exist.
template <int channels, int vectors>
static inline void run_squares(const Work& work, const float* weights, const float* bias,
                               int64_t channel, int64_t first, int64_t count) {
  const WinogradPlan& plan = *work.plan;
  const Taps inputs{work.offsets, plan.inputs, 1, 0};
  const float none[channels] = {};
  Outlet<vectors> outlet{{}, vectors * lanes, false, false, 0.0f, false};
  Place places[vectors];
  const float* x[vectors];
  for (int64_t j = 0; j < vectors; j++) {
    const int64_t index = first + (j < count ? j : count - 1);
    places[j] = find_place(work, index);
    x[j] = work.transformed + index * plan.vector_pitch;
    outlet.to[j] = work.products + j * lanes;
  }
  for (int64_t part = 0; part < parts; part++) {
    fetch_share<channels>(work, channel, part, places);
    convolve_tile<channels, vectors>(outlet, x, inputs, weights, none);
    for (int64_t j = 0; j < vectors; j++) {
      outlet.to[j] = static_cast<float*>(outlet.to[j]) + channels * vectors * lanes;
      x[j] += lanes;
    }
    weights += plan.inputs * channels;
  }
  for (int64_t j = 0; j < count; j++)
    finish_squares<channels, vectors>(work, work.products + j * lanes, bias, channel, places[j]);
}

// One tile of channels, at all squares of the task.
template <int channels>
static void run_tile(const Work& work, int64_t channel) {
  constexpr int vectors = tile_vectors(channels), few = (vectors + 1) / 2;
  const float* const weights = static_cast<const float*>(work.args->weights) +
                               channel * work.plan->inputs * parts;
  float bias[channels] = {};
  for (int i = 0; i < channels && work.args->bias; i++) bias[i] = work.args->bias[channel + i];
  const int64_t total = work.rows * work.vectors;
  for (int64_t first = 0; first < total;) {
    const int64_t left = total - first;
    if (left > few) {
      run_squares<channels, vectors>(work, weights, bias, channel, first,
                                     left < vectors ? left : vectors);
      first += vectors;
    } else {
      run_squares<channels, few>(work, weights, bias, channel, first, left);
      first += few;
    }
  }
}

static void run_tiles(const Work& work) {
  for (int64_t channel = 0; channel < work.plan->outputs;) {
    const int64_t channels = tile_channels(work.plan->outputs - channel);
    switch (channels) {
      case 1: run_tile<1>(work, channel); break;
      case 2: run_tile<2>(work, channel); break;
      case 3: run_tile<3>(work, channel); break;
      case 4: run_tile<4>(work, channel); break;
#if EA_REGISTERS == 32
      case 6: run_tile<6>(work, channel); break;
      case 8: run_tile<8>(work, channel); break;
#endif
    }
    channel += channels;
  }
}

// One channel of a vector of squares of each row of the task: from where it lies in memory, or by
// way of a copy that has the zeros around the image.
static void transform_vector(const Work& work, int64_t channel, int64_t vector) {
  const WinogradPlan& plan = *work.plan;
  float* const to = work.transformed + channel * plan.channel_pitch + vector * plan.vector_pitch;
  const int64_t next = work.vectors * plan.vector_pitch;
  const int64_t top = square * work.first_row + plan.top;
  const int64_t left = square * lanes * (work.first_vector + vector) + plan.left;
  const int64_t high = square * work.rows + 2, wide = square * lanes + 2;
  int64_t within = channel;
  const Plane& x = find_source(work.args->sources, &within);
  if (top < 0 || left < 0 || top + high > x.height || left + wide > x.width) {
    const Window window{top, left, high, wide, 1, 0, plan.row_pitch, 0};
    pack_block(work.input, work.args->sources, channel, 1, window);
    transform_squares(to, work.input, plan.row_pitch, work.rows, next);
    return;
  }
  const int64_t at = within * x.channel_stride + top * x.row_stride + left;
  if (x.dtype == F32)
    transform_squares(to, static_cast<const float*>(x.data) + at, x.row_stride, work.rows, next);
  else
    transform_squares(to, static_cast<const uint16_t*>(x.data) + at, x.row_stride, work.rows, next);
}

static void transform_task(const Work& work) {
  const WinogradPlan& plan = *work.plan;
  for (int64_t c = 0; c < plan.inputs; c++) {
    for (int64_t v = 0; v < work.vectors; v++) transform_vector(work, c, v);
    work.offsets[c] = c * plan.channel_pitch;
  }
}

static void run_task(const ConvArgs& args, const WinogradPlan& plan, const Finish& finish,
                     int64_t task, int64_t thread) {
  Work work{};
  work.args = &args;
  work.plan = &plan;
  work.finish = &finish;
  work.first_row = task / plan.blocks_across * plan.band_rows;
  work.first_vector = task % plan.blocks_across * plan.block_vectors;
  work.rows = plan.rows - work.first_row;
  if (work.rows > plan.band_rows) work.rows = plan.band_rows;
  work.vectors = plan.vectors - work.first_vector;
  if (work.vectors > plan.block_vectors) work.vectors = plan.block_vectors;
  char* memory = static_cast<char*>(args.scratch) + thread * plan.thread_bytes;
  work.offsets = reinterpret_cast<int64_t*>(memory);
  work.products = reinterpret_cast<float*>(memory += plan.offset_bytes);
  work.joined = work.products + parts * 24 * lanes;
  work.input = reinterpret_cast<float*>(memory += plan.product_bytes);
  work.transformed = reinterpret_cast<float*>(memory += plan.input_bytes);
  transform_task(work);
  run_tiles(work);
  if (finish.stream) flush_stores();
}

static void winograd(const void* arguments, Team& team) {
  const ConvArgs& args = *static_cast<const ConvArgs*>(arguments);
  const WinogradPlan plan = make_winograd_plan(args, team.size());
  Finish finish = make_finish(args);
  finish.stream = may_stream(finish.y, square * lanes);
  parallel(team, plan.bands * plan.blocks_across, [&](int64_t task, int64_t thread) {
    run_task(args, plan, finish, task, thread);
  });
}

static int64_t winograd_scratch(const void* arguments, int64_t threads) {
  const ConvArgs& args = *static_cast<const ConvArgs*>(arguments);
  return threads * make_winograd_plan(args, threads).thread_bytes;
}

// Order: [tile][part][input channel][output channel of the tile].
static void pack_tile(const PackWeightsArgs& args, int64_t channel, int64_t channels) {
  const int64_t inputs = args.in_channels;
  const int64_t in_stride = (args.transposed ? args.out_channels : 1) * 9;
  const int64_t out_stride = (args.transposed ? 1 : inputs) * 9;
  float* const to = static_cast<float*>(args.y) + channel * inputs * parts;
  constexpr int64_t pitch = widest_tile > lanes ? widest_tile : lanes;
  float kernels[9 * pitch] = {}, made[parts * pitch];
  for (int64_t c = 0; c < inputs; c++) {
    for (int64_t i = 0; i < channels; i++) {
      const float* from = args.weight + (args.first + channel + i) * out_stride + c * in_stride;
      for (int k = 0; k < 9; k++) kernels[k * pitch + i] = from[args.transposed ? 8 - k : k];
    }
    for (int64_t i = 0; i < channels; i += lanes) transform_kernels(made + i, kernels + i, pitch);
    for (int64_t part = 0; part < parts; part++) {
      for (int64_t i = 0; i < channels; i++)
        to[(part * inputs + c) * channels + i] = made[part * pitch + i];
    }
  }
}

static void pack(const void* arguments, Team& team) {
  const PackWeightsArgs& args = *static_cast<const PackWeightsArgs*>(arguments);
  parallel(team, divide_up(args.count, widest_tile) + 2, [&](int64_t task, int64_t) {
    int64_t channel = 0;
    for (int64_t skip = task; skip > 0 && channel < args.count; skip--)
      channel += tile_channels(args.count - channel);
    if (channel < args.count) pack_tile(args, channel, tile_channels(args.count - channel));
  });
}

static int64_t no_scratch(const void*, int64_t) { return 0; }

}  // namespace

EA_ENTRIES(winograd, {"winograd", winograd, winograd_scratch, sizeof(ConvArgs)},
           {"winograd_weights", pack, no_scratch, sizeof(PackWeightsArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
