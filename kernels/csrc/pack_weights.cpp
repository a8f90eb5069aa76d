// Brings a convolution's weights into the order of conv_shape.h, once for each change of them.
#include "conv_args.h"
#include "conv_shape.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct PackPlan {
  Axis rows, columns;
  WeightOrder order;
  int64_t taps, in_stride, out_stride;  // elements of the weight
};

// How many input channels a lane holds.
constexpr int64_t channels_of(const float*) { return 1; }
constexpr int64_t channels_of(const uint32_t*) { return 2; }

EA_INLINE void put(float* to, float even, float) { *to = even; }
EA_INLINE void put(uint32_t* to, float even, float odd) {
  *to = (uint32_t)to_bf16(even) | (uint32_t)to_bf16(odd) << 16;
}

// One tile in one phase; `weight` is the first one of its first output channel.
template <class Lane>
static void pack_phase(const PackWeightsArgs& args, const PackPlan& plan, int64_t row_phase,
                       int64_t column_phase, const float* weight, int64_t channels, Lane* to) {
  int64_t offset;
  for (int64_t c = 0; c < args.in_channels; c += channels_of(to)) {
    const int64_t partner = c + 1 < args.in_channels ? plan.in_stride : -1;
    for (int64_t u = 0; u < args.kernel[0]; u++) {
      if (!tap_offset(plan.rows, row_phase, u, &offset)) continue;
      for (int64_t v = 0; v < args.kernel[1]; v++) {
        if (!tap_offset(plan.columns, column_phase, v, &offset)) continue;
        const float* from = weight + c * plan.in_stride + u * args.kernel[1] + v;
        for (int64_t i = 0; i < channels; i++, from += plan.out_stride)
          put(to++, *from, partner < 0 ? 0.0f : from[partner]);
      }
    }
  }
}

// All phases of the tile that begins at output channel `channel` of a group of those wanted.
template <class Lane>
static void pack_tile(const PackWeightsArgs& args, const PackPlan& plan, int64_t group,
                      int64_t channel, int64_t channels) {
  const int64_t lanes_of_group = plan.order.in_lanes * plan.order.channels * plan.taps;
  const float* const weight = args.weight + (args.first + channel) * plan.out_stride +
                              group * args.in_channels * args.out_channels * plan.taps;
  Lane* const to = static_cast<Lane*>(args.y) + group * lanes_of_group;
  for (int64_t f = 0; f < plan.rows.out_step; f++) {
    for (int64_t p = 0; p < plan.columns.out_step; p++) {
      pack_phase(args, plan, f, p, weight, channels,
                 to + tile_begin(plan.order, plan.rows, plan.columns, f, p, channel));
    }
  }
}

static PackPlan plan_pack(const PackWeightsArgs& args) {
  PackPlan plan{};
  plan.rows = make_axis(args.kernel[0], args.strides[0], args.pads[0], args.dilations[0],
                        args.transposed);
  plan.columns = make_axis(args.kernel[1], args.strides[1], args.pads[1], args.dilations[1],
                           args.transposed);
  plan.taps = args.kernel[0] * args.kernel[1];
  plan.in_stride = (args.transposed ? args.out_channels : 1) * plan.taps;
  plan.out_stride = (args.transposed ? 1 : args.in_channels) * plan.taps;
  plan.order.in_lanes = args.compute == BF16 ? divide_up(args.in_channels, 2) : args.in_channels;
  plan.order.channels = args.count / args.group;
  return plan;
}

static void pack_weights(const void* arguments, Team& team) {
  const PackWeightsArgs& args = *static_cast<const PackWeightsArgs*>(arguments);
  const PackPlan plan = plan_pack(args);
  const int64_t channels = plan.order.channels;
  // A task for each place a tile may begin at: most of them do.
  const int64_t places = divide_up(channels, widest_tile) + 2;
  parallel(team, places * args.group, [&](int64_t task, int64_t) {
    int64_t channel = 0;
    for (int64_t skip = task % places; skip > 0 && channel < channels; skip--)
      channel += tile_channels(channels - channel);
    if (channel >= channels) return;
    const int64_t wide = tile_channels(channels - channel);
    if (args.compute == BF16)
      pack_tile<uint32_t>(args, plan, task / places, channel, wide);
    else
      pack_tile<float>(args, plan, task / places, channel, wide);
  });
}

static int64_t no_scratch(const void*, int64_t) { return 0; }

}  // namespace

EA_ENTRIES(pack_weights, {"pack_weights", pack_weights, no_scratch, sizeof(PackWeightsArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
