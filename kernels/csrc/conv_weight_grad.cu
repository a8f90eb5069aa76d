// conv_weight_grad in float32 on CUDA cores, and what the other kernels of it share: the last sum,
// and the sum of x over pixels where no tile meets them all.
#include "conv_weight_grad.cuh"

namespace edgeadapt {
namespace weight_grad {

// A lane has four channels of grad_y and two of x, and lanes that are left over share the columns
// of a row: narrow channels then leave no lane idle.
struct Lanes {
  int quads, pairs, columns;  // of channels of grad_y, of x, and lanes for each

  EA_DEVICE Lanes(const Block& block, const Share& share)
      : quads(power_of_two(block.grad_y.channels - share.out, 4)),
        pairs(power_of_two(block.x.channels - share.in, 2)),
        columns(warp_size / (quads * pairs)) {}

  // Of the sums of all lanes, those of one weight.
  EA_DEVICE float sum(const float* sums, int o, int c) const {
    const float* p = sums + (c % 2 * 4 + o % 4) * warp_size + c / 2 * quads + o / 4;
    float result = 0.0f;
    for (int i = 0; i < columns; ++i) result += p[i * quads * pairs];
    return result;
  }

 private:
  // How many lanes have `each` of up to warp_side channels.
  EA_DEVICE static int power_of_two(int channels, int each) {
    int lanes = 1;
    while (lanes * each < smaller(channels, warp_side)) lanes *= 2;
    return lanes;
  }
};

struct Floats {
  using Place = Lanes;

  EA_DEVICE static void add(const ConvWeightGradArgs& a, const Block& block, const Share& share,
                            const uint32_t* x, const uint32_t* grad_y,
                            float (&sums)[reach * reach][2][4]) {
    const Lanes lanes(block, share);
    const int lane = threadIdx.x % warp_size, of_pixel = lane % (lanes.quads * lanes.pairs);
    const int out = share.out + 4 * (of_pixel % lanes.quads);
    const int in = share.in + 2 * (of_pixel / lanes.quads);
    const Steps by(a, block);
    x += share.row * by.down + share.column * by.across + in;
    for (int row = share.split; row < (int)a.tile_rows; row += share.splits) {
      const int first = lane / (lanes.quads * lanes.pairs);
      for (int column = first; column < span; column += lanes.columns) {
        const auto* const g = reinterpret_cast<const TwoWords*>(
            grad_y + (row * span + column) * pitch(block.grad_y) + out);
        add_pixel(g[0], g[1], x + row * by.row + column * by.column, share, by, sums);
      }
    }
  }

 private:
  EA_DEVICE static void add_pixel(TwoWords low, TwoWords high, const uint32_t* x,
                                  const Share& share, const Steps& by,
                                  float (&sums)[reach * reach][2][4]) {
    const float grad[4] = {float_of(low.first), float_of(low.second), float_of(high.first),
                           float_of(high.second)};
#pragma unroll
    for (int i = 0; i < reach * reach; ++i) {
      if (i / reach >= share.rows || i % reach >= share.columns) continue;
      const uint32_t* const p = x + i / reach * by.down + i % reach * by.across;
      const TwoWords two = *reinterpret_cast<const TwoWords*>(p);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[i][0][k] += grad[k] * float_of(two.first);
        sums[i][1][k] += grad[k] * float_of(two.second);
      }
    }
  }
};

}  // namespace weight_grad

EA_KERNEL(conv_weight_grad_f32, ConvWeightGradArgs, weight_grad::threads) {
  weight_grad::run<weight_grad::Singles, weight_grad::Floats>(args);
}

struct ChannelSumsArgs {
  Image x[4];
  float* parts;  // (chunks, channels)
  int64_t sources, channels, chunks;
};

// A block sums up to eight channels over a chunk of the pixels.
EA_KERNEL(conv_weight_grad_channels, ChannelSumsArgs, weight_grad::threads) {
  using namespace weight_grad;
  EA_SHARED(float, shared, [unit][threads]);
  const int first = (int)blockIdx.x * unit;
  const int channels = smaller((int)args.channels - first, unit);
  const Side side = {args.x, (int)args.sources, first, channels, unit};
  const int64_t width = args.x[0].width, pixels = args.x[0].height * width;
  const int64_t end = (blockIdx.y + 1) * pixels / args.chunks;
  float sums[unit] = {};
  for (int64_t i = blockIdx.y * pixels / args.chunks + threadIdx.x; i < end; i += threads) {
#pragma unroll
    for (int c = 0; c < unit; ++c) {
      float value[1];
      elements(side, first + c, (int)(i / width), (int)(i % width), value);
      sums[c] += value[0];
    }
  }
#pragma unroll
  for (int c = 0; c < unit; ++c) shared[c][threadIdx.x] = sums[c];
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
#pragma unroll
    for (int c = 0; c < unit; ++c) shared[c][threadIdx.x] += shared[c][threadIdx.x + half];
  }
  if (threadIdx.x == 0) {
    for (int c = 0; c < channels; ++c)
      args.parts[blockIdx.y * args.channels + first + c] = shared[c][0];
  }
}

struct PartSumsArgs {
  // (weight_chunks, weights), each in the order of the parameter; with taps (1, O, taps, inputs),
  // as cuDNN gives them.
  const float* weight_parts;
  const float* bias_parts;    // (bias_chunks, biases)
  float* weight;
  float* bias;
  int64_t weights, biases, weight_chunks, bias_chunks;
  int64_t add_weight, add_bias;  // += instead of =
  int64_t taps, inputs;
};

// Where weight i of the parameter (O, inputs, taps) is in (O, taps, inputs).
EA_DEVICE int64_t channels_last(int64_t i, int64_t taps, int64_t inputs) {
  const int64_t output = i / (inputs * taps), input = i / taps % inputs, tap = i % taps;
  return (output * taps + tap) * inputs + input;
}

// Adds up the chunks: eight threads for each of 32 sums, then one. The first blocks have weights,
// the others biases.
EA_KERNEL(conv_weight_grad_sum, PartSumsArgs, weight_grad::threads) {
  using namespace weight_grad;
  EA_SHARED(float, shared, [warps][warp_size]);
  const int64_t weight_blocks = ceil_div<int64_t>(args.weights, warp_size);
  const bool is_bias = blockIdx.x >= weight_blocks;
  const int lane = threadIdx.x % warp_size, part = threadIdx.x / warp_size;
  const int64_t i = (blockIdx.x - (is_bias ? weight_blocks : 0)) * warp_size + lane;
  const int64_t count = is_bias ? args.biases : args.weights;
  const int64_t chunks = is_bias ? args.bias_chunks : args.weight_chunks;
  const float* const parts = is_bias ? args.bias_parts : args.weight_parts;
  const int64_t at = is_bias || args.taps == 0 ? i : channels_last(i, args.taps, args.inputs);
  float sum = 0.0f;
  if (i < count) {
#pragma unroll 4
    for (int64_t chunk = part; chunk < chunks; chunk += warps) sum += parts[chunk * count + at];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part > 0 || i >= count) return;
  for (int other = 1; other < warps; ++other) sum += shared[other][lane];
  float* const to = (is_bias ? args.bias : args.weight) + i;
  *to = (is_bias ? args.add_bias : args.add_weight) ? *to + sum : sum;
}

}  // namespace edgeadapt
