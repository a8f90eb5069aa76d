// Frames (H, W, 3) of bytes to network images in [-1, 1] and back, what edgeadapt.image does on the
// CPU. A pixel moves 3 bytes of the frame and, in f32, 12 of the image; levels of the pyramid add a
// third. Bound by memory, and on boards where a frame stays in the host's memory by that: where it
// allows, a frame is moved in words.
#include "device.cuh"

namespace edgeadapt {

constexpr int channels = 3, threads = 256;

// Bytes, rows `row_stride` of them apart, pixels side by side.
struct Frame {
  uint8_t* data;
  int64_t height, width, row_stride;
};

constexpr int most_levels = 6;
constexpr int side = 32, levels_of_tile = 5;  // a tile of the image is one pixel of the fifth level

struct ImageInArgs {
  Frame frame;
  Image y;
  Image levels[most_levels];  // half of y, half of that, ...
  int64_t level_count;
};

// Four pixels of a frame as words, if they begin at a multiple of four bytes.
constexpr int group = 4, words_of_group = group * channels / 4;

EA_DEVICE bool in_words(const Frame& frame) {
  return aligned(frame.data, 4) && frame.row_stride % 4 == 0;
}

// The float nearest to level / 127.5 - 1 = (2 * level - 255) / 255, for each of the 256 levels: by
// the leading bits of 1 / 255 the product is exact, so there is one rounding, with or without FMA.
EA_DEVICE float value_of(uint32_t level) {
  const float numerator = (float)(2 * (int32_t)level - 255);
  return numerator * 0x1.01p-8f + numerator * 0x1.010102p-24f;
}

// The pixel that stands for pixel i of a row or column: back and forth, the edge once.
EA_DEVICE int64_t reflected(int64_t i, int64_t size) {
  if (i < size || size == 1) return i < size ? i : 0;
  const int64_t period = 2 * (size - 1), along = i % period;
  return smaller(along, period - along);
}

// As the image holds it: a level is made of what can be read of the one before.
EA_DEVICE float stored(int64_t dtype, float value) {
  with_type(dtype, [&](auto zero) { value = to_float(from_float<decltype(zero)>(value)); });
  return value;
}

using Tile = float[channels][side][side + 1];
using HalfTile = float[channels][side / 2][side / 2 + 1];

// Pixels from (row, column) on of what the frame and its reflection are.
EA_DEVICE void read_tile(const Frame& frame, int64_t dtype, int64_t row, int64_t column,
                         Tile& tile) {
  const int i = threadIdx.x / (side / group), j = threadIdx.x % (side / group) * group;
  const uint8_t* from = frame.data + reflected(row + i, frame.height) * frame.row_stride;
  uint8_t bytes[group * channels];
  if (in_words(frame) && column + j + group <= frame.width) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(from + (column + j) * channels);
    uint32_t part[words_of_group];
#pragma unroll
    for (int k = 0; k < words_of_group; ++k) part[k] = words[k];
    memcpy(bytes, part, sizeof part);
  } else {
#pragma unroll
    for (int k = 0; k < group; ++k) {
      const int64_t pixel = reflected(column + j + k, frame.width) * channels;
#pragma unroll
      for (int c = 0; c < channels; ++c) bytes[k * channels + c] = from[pixel + c];
    }
  }
#pragma unroll
  for (int k = 0; k < group; ++k) {
#pragma unroll
    for (int c = 0; c < channels; ++c)
      tile[c][i][j + k] = stored(dtype, value_of(bytes[k * channels + c]));
  }
}

// The tile to where it belongs in y; neighbouring threads have neighbouring pixels.
EA_DEVICE void write_tile(const Image& y, int64_t row, int64_t column, const Tile& tile) {
  const int j = threadIdx.x % side;
  if (column + j >= y.width) return;
  for (int i = threadIdx.x / side; i < side && row + i < y.height; i += threads / side) {
#pragma unroll
    for (int c = 0; c < channels; ++c)
      write(y.data, y.dtype, offset(y, c, row + i, column + j), tile[c][i][j]);
  }
}

// In avg_pool's order, so that nobody can tell who made a level.
EA_DEVICE float mean(float a, float b, float c, float d) { return (((a + b) + c) + d) * 0.25f; }

// Means of 2x2 pixels of `from`, `width` of them in a row and column, to `to` and to the level.
template <class From, class To>
EA_DEVICE void halve(const Image& level, int width, int64_t row, int64_t column, const From& from,
                     To& to) {
  const int i = threadIdx.x / width, j = threadIdx.x % width;
  if (i >= width || row + i >= level.height || column + j >= level.width) return;
#pragma unroll
  for (int c = 0; c < channels; ++c) {
    const auto& x = from[c];
    const float value = mean(x[2 * i][2 * j], x[2 * i][2 * j + 1], x[2 * i + 1][2 * j],
                             x[2 * i + 1][2 * j + 1]);
    to[c][i][j] = stored(level.dtype, value);
    write(level.data, level.dtype, offset(level, c, row + i, column + j), value);
  }
}

// One block per tile of y: the image, and up to five levels of it. What is in a tile of a level is
// needed for nothing outside of it.
EA_KERNEL(image_in, ImageInArgs, threads) {
  EA_SHARED(float, even, [channels][side][side + 1]);
  EA_SHARED(float, odd, [channels][side / 2][side / 2 + 1]);
  const int64_t across = ceil_div(args.y.width, (int64_t)side);
  const int64_t row = blockIdx.x / across * side, column = blockIdx.x % across * side;
  read_tile(args.frame, args.y.dtype, row, column, even);
  __syncthreads();
  write_tile(args.y, row, column, even);
  for (int n = 1; n <= levels_of_tile && n <= args.level_count; ++n) {
    if (n % 2)
      halve(args.levels[n - 1], side >> n, row >> n, column >> n, even, odd);
    else
      halve(args.levels[n - 1], side >> n, row >> n, column >> n, odd, even);
    __syncthreads();
  }
}

struct ImageHalfArgs {
  Image x, y;
};

// A level beyond those of a tile, from the one before: one thread per pixel of y.
EA_KERNEL(image_half, ImageHalfArgs, threads) {
  const int64_t number = (int64_t)blockIdx.x * threads + threadIdx.x;
  if (number >= args.y.height * args.y.width) return;
  const int64_t i = number / args.y.width, j = number % args.y.width;
#pragma unroll
  for (int c = 0; c < channels; ++c) {
    const auto pixel = [&](int64_t below, int64_t beside) {
      return read(args.x.data, args.x.dtype, offset(args.x, c, 2 * i + below, 2 * j + beside));
    };
    const float value = mean(pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1));
    write(args.y.data, args.y.dtype, offset(args.y, c, i, j), value);
  }
}

struct ImageOutArgs {
  Image x;
  Frame frame;
  int64_t blocks;
  int64_t* not_numbers;
  int64_t* scratch;  // (blocks)
};

// Half of a level to the even one; what is not a number is black.
EA_DEVICE uint8_t level_of(float x) {
  const float level = (x + 1.0f) * 127.5f;
  return (uint8_t)rintf(level > 0.0f ? smaller(level, 255.0f) : 0.0f);
}

// The sum of all threads' numbers, in thread 0.
template <class Number>
EA_DEVICE Number add_threads(Number number, Number (&numbers)[threads]) {
  const int thread = threadIdx.x;
  numbers[thread] = number;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) numbers[thread] += numbers[thread + half];
  }
  return numbers[0];
}

// Four pixels of a row, or what there is of them. Returns how many values are not numbers.
EA_DEVICE int write_group(const ImageOutArgs& args, int64_t i, int64_t j) {
  const Frame& frame = args.frame;
  uint8_t bytes[group * channels] = {};
  int found = 0;
#pragma unroll
  for (int k = 0; k < group; ++k) {
    if (j + k >= frame.width) continue;
#pragma unroll
    for (int c = 0; c < channels; ++c) {
      const float x = read(args.x.data, args.x.dtype, offset(args.x, c, i, j + k));
      found += x != x;
      bytes[k * channels + c] = level_of(x);
    }
  }
  uint8_t* to = frame.data + i * frame.row_stride + j * channels;
  if (in_words(frame) && j + group <= frame.width) {
    uint32_t words[words_of_group];
    memcpy(words, bytes, sizeof words);
#pragma unroll
    for (int k = 0; k < words_of_group; ++k) reinterpret_cast<uint32_t*>(to)[k] = words[k];
    return found;
  }
#pragma unroll
  for (int k = 0; k < group * channels; ++k) {
    if (j + k / channels < frame.width) to[k] = bytes[k];
  }
  return found;
}

EA_KERNEL(image_out, ImageOutArgs, threads) {
  EA_SHARED(int32_t, counts, [threads]);
  const int64_t number = (int64_t)blockIdx.x * threads + threadIdx.x;
  const int64_t groups = ceil_div(args.frame.width, (int64_t)group);
  const int64_t i = number / groups, j = number % groups * group;
  const int count = add_threads(i < args.frame.height ? write_group(args, i, j) : 0, counts);
  if (threadIdx.x == 0) args.scratch[blockIdx.x] = count;
}

// One block.
EA_KERNEL(image_out_count, ImageOutArgs, threads) {
  EA_SHARED(int64_t, counts, [threads]);
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < args.blocks; i += threads) count += args.scratch[i];
  count = add_threads(count, counts);
  if (threadIdx.x == 0) *args.not_numbers = count;
}

}  // namespace edgeadapt
