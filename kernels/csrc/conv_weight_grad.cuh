// The gradient of a convolution in its weight, and the sum of one operand over pixels:
//   weight[o, c, u, v] = sum over i, j of grad_y[o, i, j] * x[c, i * stride + u * dilation - pad,
//                                                            j * stride + v * dilation - pad]
//
// A product of matrices whose sum runs over pixels. A block takes up to 32 channels of either side
// and one chunk of the image: tile after tile it stages grad_y and x with its halo in shared memory
// and adds up all taps from there, so that either is read from memory once. A warp keeps 16 x 16
// channels and up to nine taps in registers; warps that share those split the rows of a tile. At
// the end a block writes one partial sum for each weight, and another kernel adds up the chunks.
// How the image is cut follows from sizes alone, and each sum has one order: results repeat.
//
// 3x3, 16 -> 16 channels, 1280x720, f16: x and grad_y are 59 MB, the products 4.2 GFLOP.
//   H200        12 us of memory at 4.8 TB/s,  4.3 us of tensor cores at 989 TFLOP/s
//   AGX Orin   288 us of memory at 205 GB/s,  100 us at 42.6 TFLOP/s
//   Orin Nano  868 us of memory at  68 GB/s,  416 us at 10.2 TFLOP/s
// So memory is what it should wait for. Halos come from the L2 cache, where the tile above has left
// them; partial sums are 4 % of that traffic.
#pragma once

#include "conv_weight_grad_words.cuh"

namespace edgeadapt {

// kernels/cuda/conv_weight_grad.py has the same fields and says how they are chosen.
struct ConvWeightGradArgs {
  Image x[4];
  Image grad_y;
  float* weight_parts;  // (chunks, weights), each in the order of the parameter
  float* bias_parts;    // (chunks, channels); null if there is no bias here
  int64_t bias_of_x;    // of grad_y otherwise
  int64_t sources, group;
  int64_t outputs, inputs;  // channels of a group
  int64_t kernel[2], strides[2], pads[2], dilations[2];
  int64_t taps[2];       // of a block, rows and columns
  int64_t block_out, block_in;    // channels of a block, multiples of 8 up to 32
  int64_t blocks_out, blocks_in;  // of a group
  int64_t tile_rows;              // of grad_y, even
  // Of x, in a tile: rows and columns of words; which pixels those are, each so many from the last;
  // how many words lie between what two neighbours of grad_y meet, and two taps.
  int64_t window[2], pixel_steps[2], word_steps[2], tap_steps[2];
  int64_t tiles[2];               // rows and columns of tiles
  int64_t chunks;
};

namespace weight_grad {

constexpr int span = 16;      // words in a row of a tile of grad_y
constexpr int warp_side = 16;  // channels of a warp on either side
constexpr int reach = 3;       // rows and columns of taps that a warp takes at most
constexpr int slots = 8;       // sums of a thread for one tap, as 2 x 4
constexpr int shared_words = 12160;  // kernels/cuda/conv_weight_grad.py counts on it

// What one block computes.
struct Block {
  Side x, grad_y;
  int tap_row, tap_column, tap_rows, tap_columns;
  int group;
  bool sums_bias;
};

// What one warp of it computes.
struct Share {
  int out, in;                 // first channels within the block
  int row, rows;               // of taps, within the block's
  int column, columns;
  int split, splits;           // rows of a tile that it takes: split, split + splits ...
};

EA_DEVICE Block locate(const ConvWeightGradArgs& a) {
  int place = (int)blockIdx.x;
  const int in = place % (int)a.blocks_in * (int)a.block_in;
  place /= (int)a.blocks_in;
  const int out = place % (int)a.blocks_out * (int)a.block_out;
  place /= (int)a.blocks_out;
  const int group = place % (int)a.group, rectangle = place / (int)a.group;
  const int across = (int)ceil_div(a.kernel[1], a.taps[1]);
  Block block;
  block.group = group;
  block.x = {a.x, (int)a.sources, group * (int)a.inputs + in,
             (int)smaller(a.block_in, a.inputs - in), (int)a.block_in};
  block.grad_y = {&a.grad_y, 1, group * (int)a.outputs + out,
                  (int)smaller(a.block_out, a.outputs - out), (int)a.block_out};
  block.tap_row = rectangle / across * (int)a.taps[0];
  block.tap_column = rectangle % across * (int)a.taps[1];
  block.tap_rows = (int)smaller(a.taps[0], a.kernel[0] - block.tap_row);
  block.tap_columns = (int)smaller(a.taps[1], a.kernel[1] - block.tap_column);
  block.sums_bias = a.bias_parts != nullptr && rectangle == 0 && (a.bias_of_x ? out : in) == 0;
  return block;
}

// What a block's threads look up rather than keep in registers, which sums fill.
struct Plan {
  Block block;
  int pieces;           // of channels and of taps, each done by as many warps as there are
  Share shares[warps];  // warps below `pieces` come first in each
};

EA_DEVICE void plan_warp(const ConvWeightGradArgs& a, Plan& plan, int warp) {
  const Block block = locate(a);
  const int across = ceil_div((int)a.block_in, warp_side);
  const int rows = ceil_div((int)a.taps[0], reach), columns = ceil_div((int)a.taps[1], reach);
  const int pieces = ceil_div((int)a.block_out, warp_side) * across * rows * columns;
  int piece = warp % pieces;
  Share& share = plan.shares[warp];
  share.split = warp / pieces;
  share.splits = warps / pieces;
  const int column = piece % columns;
  piece /= columns;
  const int row = piece % rows;
  piece /= rows;
  share.row = block.tap_rows * row / rows;
  share.rows = block.tap_rows * (row + 1) / rows - share.row;
  share.column = block.tap_columns * column / columns;
  share.columns = block.tap_columns * (column + 1) / columns - share.column;
  share.in = piece % across * warp_side;
  share.out = piece / across * warp_side;
  if (warp > 0) return;
  plan.block = block;
  plan.pieces = pieces;
}

// Of a tile, the pixels of x and of grad_y.
struct Tile {
  Window x, grad_y;
};

template <class Words>
EA_DEVICE Tile tile_at(const ConvWeightGradArgs& a, const Block& block, int row, int column) {
  const int y = row * (int)a.tile_rows, x = column * span * Words::pixels;
  Tile tile;
  tile.grad_y = {y, x, (int)a.tile_rows, span, 1, 1, span};
  tile.x = {y * (int)a.strides[0] + block.tap_row * (int)a.dilations[0] - (int)a.pads[0],
            x * (int)a.strides[1] + block.tap_column * (int)a.dilations[1] - (int)a.pads[1],
            (int)a.window[0], (int)a.window[1], (int)a.pixel_steps[0], (int)a.pixel_steps[1],
            span * (int)a.strides[1]};
  return tile;
}

// What lies between words of x in shared memory.
struct Steps {
  int row, column;      // that neighbours of grad_y meet
  int down, across;  // of two neighbouring taps

  EA_DEVICE Steps(const ConvWeightGradArgs& a, const Block& block)
      : row((int)a.word_steps[0] * (int)a.window[1] * pitch(block.x)),
        column((int)a.word_steps[1] * pitch(block.x)),
        down((int)a.tap_steps[0] * (int)a.window[1] * pitch(block.x)),
        across((int)a.tap_steps[1] * pitch(block.x)) {}
};

// This thread's part of the sum over a tile of one channel. Tiles of x overlap: each but the last
// counts what no later one begins with.
template <class Words>
EA_DEVICE float bias_of_tile(const ConvWeightGradArgs& a, const Block& block, const Tile& tile,
                             bool last_row, bool last_column, const uint32_t* x,
                             const uint32_t* grad_y) {
  if (!a.bias_of_x)
    return channel_sum<Words>(block.grad_y, tile.grad_y, tile.grad_y.rows, span, span, grad_y);
  const int rows = (int)(a.tile_rows * a.strides[0]), columns = span * (int)a.strides[1];
  return channel_sum<Words>(block.x, tile.x, last_row ? tile.x.rows : rows,
                            last_column && Words::pixels == 1 ? tile.x.columns : columns,
                            last_column ? tile.x.columns : columns, x);
}

// Writes one tap of each share, of which every thread has the sum of one weight.
template <class Products>
EA_DEVICE void write_tap(const ConvWeightGradArgs& a, const Plan& plan, int row, int column,
                         const float* shared) {
  const Block& block = plan.block;
  const int o = threadIdx.x / warp_side, c = threadIdx.x % warp_side;
  const int64_t taps = a.kernel[0] * a.kernel[1];
  float* const to = a.weight_parts + blockIdx.y * (a.group * a.outputs * a.inputs * taps);
  for (int piece = 0; piece < plan.pieces; ++piece) {
    const Share& share = plan.shares[piece];
    const int out = share.out + o, in = share.in + c;
    if (row >= share.rows || column >= share.columns) continue;
    if (out >= block.grad_y.channels || in >= block.x.channels) continue;
    const typename Products::Place place(block, share);
    float sum = 0.0f;
    for (int split = 0; split < share.splits; ++split)
      sum += place.sum(shared + (split * plan.pieces + piece) * slots * warp_size, o, c);
    const int64_t i = (block.grad_y.first + out) * a.inputs + block.x.first -
                      block.group * a.inputs + in;
    to[i * taps + (block.tap_row + share.row + row) * a.kernel[1] + block.tap_column +
       share.column + column] = sum;
  }
}

// Adds up what the warps have for each weight, one tap of each share at a time.
template <class Products>
EA_DEVICE void write_weights(const ConvWeightGradArgs& a, const Plan& plan,
                             const float (&sums)[reach * reach][2][4], float* shared) {
  float* const own = shared + threadIdx.x / warp_size * slots * warp_size + threadIdx.x % warp_size;
#pragma unroll
  for (int i = 0; i < reach * reach; ++i) {
    if (i / reach >= a.taps[0] || i % reach >= a.taps[1]) continue;
    __syncthreads();
#pragma unroll
    for (int slot = 0; slot < slots; ++slot) own[slot * warp_size] = sums[i][slot / 4][slot % 4];
    __syncthreads();
    write_tap<Products>(a, plan, i / reach, i % reach, shared);
  }
}

EA_DEVICE void write_bias(const ConvWeightGradArgs& a, const Block& block, float bias,
                          float* shared) {
  const Side side = a.bias_of_x ? block.x : block.grad_y;
  const int64_t channels = a.group * (a.bias_of_x ? a.inputs : a.outputs);
  __syncthreads();
  shared[threadIdx.x] = bias;
  __syncthreads();
  if (threadIdx.x >= side.channels) return;
  float sum = 0.0f;
  for (int part = 0; part < threads / side.width; ++part)
    sum += shared[part * side.width + threadIdx.x];
  a.bias_parts[blockIdx.y * channels + side.first + threadIdx.x] = sum;
}

// The whole of a block. Products adds what a share of a tile contributes to its warp's sums.
template <class Words, class Products>
EA_DEVICE void run(const ConvWeightGradArgs& a) {
  EA_SHARED(uint32_t, words, [shared_words]);
  EA_SHARED(Plan, plan, [1]);
  const int warp = threadIdx.x / warp_size;
  if (threadIdx.x % warp_size == 0) plan_warp(a, plan[0], warp);
  const int64_t tiles = a.tiles[0] * a.tiles[1];
  const int end = (int)((blockIdx.y + 1) * tiles / a.chunks);
  float sums[reach * reach][2][4] = {}, bias = 0.0f;
#pragma unroll 1
  for (int i = (int)(blockIdx.y * tiles / a.chunks); i < end; ++i) {
    __syncthreads();
    const Block& block = plan->block;
    const int row = i / (int)a.tiles[1], column = i % (int)a.tiles[1];
    const Tile tile = tile_at<Words>(a, block, row, column);
    uint32_t* const grad_y = words + (int)(a.window[0] * a.window[1]) * pitch(block.x);
    stage<Words>(block.x, tile.x, words);
    stage<Words>(block.grad_y, tile.grad_y, grad_y);
    __syncthreads();
    const Share& share = plan->shares[warp];
    if (share.split < share.splits) Products::add(a, block, share, words, grad_y, sums);
    if (block.sums_bias)
      bias += bias_of_tile<Words>(a, block, tile, row + 1 == a.tiles[0], column + 1 == a.tiles[1],
                                  words, grad_y);
  }
  float* const shared = reinterpret_cast<float*>(words);
  write_weights<Products>(a, plan[0], sums, shared);
  if (plan->block.sums_bias) write_bias(a, plan->block, bias, shared);
}

}  // namespace weight_grad
}  // namespace edgeadapt
