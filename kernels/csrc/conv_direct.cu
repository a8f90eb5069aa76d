// Convolution in float32 arithmetic, for narrow layers and for results in full precision.
//
// A block computes tile_rows x 32 positions and parts * `channels` channels of y, a thread 4
// positions of a row and `channels` channels. A chunk is 8 channels of the input: a plane of the
// window for each, so that a thread reads neighbouring positions at once. `across` taps that follow
// each other in a row of the kernel share what is read.
//
// 3x3 16 -> 16 at 1280x720 in float32 moves 118 MB, 25 us at 4.8 TB/s (H200) and 0.58 ms at 204.8
// GB/s (AGX Orin), and computes 4.2 GFLOP, 63 us at 67 TFLOP/s and 0.80 ms at 5.3: arithmetic
// decides. For 96 multiplications a thread reads 6 positions and 24 weights, which a warp shares:
// about half of the time that shared memory has.
#include "conv_stage.cuh"

namespace edgeadapt {

constexpr int direct_columns = 4;  // of a thread
constexpr int direct_tile_columns = 32;
constexpr int direct_chunk = 8;

EA_DEVICE int direct_pitch(const ConvArgs& args) { return ((int)args.window_columns + 3) / 4 * 4; }

// From one channel's plane to the next: multiples of 16 bytes, and an odd number of them, so that
// channels of one pixel are written to different banks.
EA_DEVICE int direct_plane(const ConvArgs& args) {
  return (int)args.window_rows * direct_pitch(args) / 8 * 8 + 12;
}

// How a unit of 4 channels of a pixel comes into the window.
struct Planes {
  using Raw = float;
  using Unit = Packet<16>;
  static constexpr int count = 4, batch = 2;
  static constexpr bool copies = false;  // four channels lie apart
  float* window;
  int pitch, plane;

  EA_DEVICE static Unit unit(const float (&values)[count]) {
    Unit result;
    memcpy(&result, values, sizeof result);
    return result;
  }
  EA_DEVICE void put(int index, ConvPixel pixel, int lane, const Unit& unit) const {
    float values[count];
    memcpy(values, &unit, sizeof unit);
#pragma unroll
    for (int k = 0; k < count; ++k) put_one(index, pixel, lane, k, values[k]);
  }
  EA_DEVICE void put_one(int, ConvPixel pixel, int lane, int k, float value) const {
    window[(lane * count + k) * plane + pixel.row * pitch + pixel.column] = value;
  }
};

// (tap, chunk's channel, parts * channels) of a phase.
EA_DEVICE void stage_weights(const ConvArgs& args, const ConvTile& tile, const ConvAxis& rows,
                             const ConvAxis& columns, int first, int channels, float* weights) {
  const ConvCommon& common = args.common;
  const int across = columns.taps, items = (int)rows.taps * across * direct_chunk * channels;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int k = item % channels, c = item / channels % direct_chunk;
    const int tap = item / channels / direct_chunk, down = tap / across;
    const int64_t u = rows.first_tap + down * rows.tap_step;
    const int64_t v = columns.first_tap + (tap - down * across) * columns.tap_step;
    const int64_t matrix = (tile.group * args.kernel_rows + u) * args.kernel_columns + v;
    const int64_t at = (matrix * common.in_channels + first + c) * common.padded_channels;
    const int channel = tile.channel + k;
    const bool real = first + c < common.in_channels && channel < common.padded_channels;
    weights[item] = real ? read(common.weights, common.weights_dtype, at + channel) : 0.0f;
  }
}

// Where a thread works within its block.
struct DirectThread {
  int row, column, channel;
};

template <int across, int channels>
EA_DEVICE void direct_tap(const float* x, int step, const float* weights, int stride,
                          float (&sums)[direct_columns][channels]) {
  float values[direct_columns + across - 1];
  if constexpr (across == 3) {
    float first[4], last[2];
    load(x, first);
    load(x + 4, last);
#pragma unroll
    for (int i = 0; i < 6; ++i) values[i] = i < 4 ? first[i % 4] : last[i % 2];
  } else {
#pragma unroll
    for (int i = 0; i < direct_columns; ++i) values[i] = x[i * step];
  }
#pragma unroll
  for (int v = 0; v < across; ++v) {
    float weight[channels];
    load(weights + v * stride, weight);
#pragma unroll
    for (int i = 0; i < direct_columns; ++i) {
#pragma unroll
      for (int k = 0; k < channels; ++k) sums[i][k] += values[i + v] * weight[k];
    }
  }
}

template <int across, int channels>
EA_DEVICE void direct_chunk_sums(const ConvArgs& args, const DirectThread& thread,
                                 const ConvAxis& rows, const ConvAxis& columns, int inputs,
                                 const float* window, const float* weights,
                                 float (&sums)[direct_columns][channels]) {
  const int pitch = direct_pitch(args), plane = direct_plane(args), taps = columns.taps;
  const int block_channels = channels * (int)args.parts;
  const int row = thread.row * (int)args.row_step + (int)rows.offset;
  const int column = thread.column * (int)args.column_step + (int)columns.offset;
  const int tap_stride = direct_chunk * block_channels;
  for (int c = 0; c < inputs; ++c) {
    for (int u = 0; u < rows.taps; ++u) {
      const float* x = window + c * plane + (row + u * (int)rows.offset_step) * pitch + column;
      const float* weight = weights + (u * taps * direct_chunk + c) * block_channels;
      for (int v = 0; v < taps; v += across) {
        direct_tap<across>(x + v * (int)columns.offset_step, (int)args.column_step,
                           weight + v * tap_stride + thread.channel, tap_stride, sums);
      }
    }
  }
}

template <int across, int channels>
EA_DEVICE void direct_phase(const ConvArgs& args, const ConvTile& tile, const DirectThread& thread,
                            const ConvAxis& rows, const ConvAxis& columns, bool staged,
                            float* pool) {
  const ConvCommon& common = args.common;
  const int channel = tile.channel + thread.channel;
  const Planes cell = {pool, direct_pitch(args), direct_plane(args)};
  float* weights = pool + direct_chunk * cell.plane;
  float sums[direct_columns][channels];
#pragma unroll
  for (int k = 0; k < channels; ++k) {
    const float bias = conv_bias(common, tile.group, channel + k);
#pragma unroll
    for (int i = 0; i < direct_columns; ++i) sums[i][k] = bias;
  }
  for (int first = 0; first < common.in_channels; first += direct_chunk) {
    __syncthreads();  // all have read what lies there
    if (!staged) conv_stage(args, tile, first, cell);
    stage_weights(args, tile, rows, columns, first, channels * (int)args.parts, weights);
    __syncthreads();
    const int inputs = smaller((int)common.in_channels - first, direct_chunk);
    direct_chunk_sums<across>(args, thread, rows, columns, inputs, cell.window, weights, sums);
  }
  const int row = tile.row + thread.row, column = tile.column + thread.column;
#pragma unroll
  for (int i = 0; i < direct_columns; ++i) {
    if (row >= rows.count || column + i >= columns.count) continue;
    conv_finish(common, tile.group, channel, (int)(rows.first + row * args.out_row_step),
                (int)(columns.first + (column + i) * args.out_column_step), sums[i]);
  }
}

// Phases as in conv_mma.cuh.
template <int across, int channels, int pool_floats>
EA_DEVICE void conv_direct(const ConvArgs& args) {
  EA_SHARED(float, pool, [pool_floats]);
  const ConvTile tile = conv_tile(args, (int)args.parts * channels);
  const int threads_across = direct_tile_columns / direct_columns;
  const int rest = threadIdx.x / threads_across, rows = args.tile_rows;
  const DirectThread thread = {rest % rows, (int)threadIdx.x % threads_across * direct_columns,
                               rest / rows * channels};
  const bool single = args.common.in_channels <= direct_chunk;
#pragma unroll 1
  for (int phase = 0; phase < args.row_phases * args.column_phases; ++phase) {
    direct_phase<across, channels>(args, tile, thread, args.rows[phase / args.column_phases],
                                   args.columns[phase % args.column_phases], single && phase > 0,
                                   pool);
  }
}

// conv_direct_<across>_<channels of a thread>
EA_KERNEL(conv_direct_1_4, ConvArgs, EA_CONV_THREADS) { conv_direct<1, 4, 12288>(args); }
EA_KERNEL(conv_direct_1_8, ConvArgs, EA_CONV_THREADS) { conv_direct<1, 8, 12288>(args); }
EA_KERNEL(conv_direct_3_4, ConvArgs, EA_CONV_THREADS) { conv_direct<3, 4, 8192>(args); }
EA_KERNEL(conv_direct_3_8, ConvArgs, EA_CONV_THREADS) { conv_direct<3, 8, 8192>(args); }

}  // namespace edgeadapt
