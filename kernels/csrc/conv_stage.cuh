// What a block of a convolution brings into shared memory: a window of its input, some channels at
// a time ("chunk"). What lies outside of the input is zero, and so are channels that do not exist.
#pragma once

#include "conv.cuh"

namespace edgeadapt {

// The window's pixels one after the other; a thread takes every `step`-th.
struct ConvWindow {
  int row, column;    // of the input, at the window's first pixel
  int height, width;  // of the input
  int columns, pixels;
  int first, step;   // of this thread
  uint32_t inverse;  // of `columns` times 2^20, rounded up: exact for the windows that there are
};

// `lanes` threads share a pixel.
EA_DEVICE ConvWindow conv_window(const ConvArgs& args, const ConvTile& tile, int lanes) {
  const int columns = args.window_columns;
  return {(int)(args.origin_row + tile.row * args.row_step),
          (int)(args.origin_column + tile.column * args.column_step),
          (int)args.common.sources[0].height,
          (int)args.common.sources[0].width,
          columns,
          (int)args.window_rows * columns,
          (int)threadIdx.x / lanes,
          (int)blockDim.x / lanes,
          (1u << 20) / columns + 1};
}

struct ConvPixel {
  int row, column;  // in the window
};

EA_DEVICE ConvPixel conv_pixel(const ConvWindow& window, int index) {
  const int row = (int)((uint32_t)index * window.inverse >> 20);
  return {row, index - row * window.columns};
}

EA_DEVICE bool conv_inside(const ConvWindow& window, const ConvPixel& pixel) {
  return (uint32_t)(window.row + pixel.row) < (uint32_t)window.height &&
         (uint32_t)(window.column + pixel.column) < (uint32_t)window.width;
}

// Neighbouring channels of a pixel that lie in one source. Within a window, places fit 32 bits.
struct ConvRun {
  const void* data;  // null: there are no such channels
  int64_t first;     // element at the window's first pixel, which may be none of the input's
  int dtype, row_stride, pixel_stride;
  bool vector;  // `count` channels may be read at once
};

// The channels from `channel` of the group on.
EA_DEVICE ConvRun conv_run(const ConvCommon& common, int group, int channel, int count,
                           const ConvWindow& window) {
  if (channel >= common.in_channels) return {};
  int64_t local = group * common.in_channels + channel;
  int source = 0;
  while (local >= common.sources[source].channels) local -= common.sources[source++].channels;
  const Image& image = common.sources[source];
  const bool vector = conv_vectors(common, source) && local % count == 0 &&
                      local + count <= image.channels && channel + count <= common.in_channels;
  return {image.data, offset(image, local, window.row, window.column), (int)image.dtype,
          (int)image.row_stride, (int)image.pixel_stride, vector};
}

EA_DEVICE int64_t conv_place(const ConvRun& run, const ConvPixel& pixel) {
  return run.first + (pixel.row * run.row_stride + pixel.column * run.pixel_stride);
}

template <class T, class U>
constexpr bool same_type = false;
template <class T>
constexpr bool same_type<T, T> = true;

// A Cell says how the window lies in shared memory. One thread brings a Cell::Unit, Cell::count
// channels of a pixel, which in memory may be the same bytes if they are of type Cell::Raw:
//   Unit unit(const float (&values)[count]);
//   void put(int pixel, ConvPixel, int lane, const Unit&), void put_one(..., int k, float value);
// and, if Cell::copies: Unit* place(int pixel, int lane), where the bytes of type Raw belong.
template <class Cell>
EA_DEVICE typename Cell::Unit conv_fetch(const Cell& cell, const ConvRun& run, int64_t place) {
  typename Cell::Unit unit = {};
  with_type(run.dtype, [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(run.data) + place;
    if constexpr (same_type<T, typename Cell::Raw>) {
      unit = *reinterpret_cast<const typename Cell::Unit*>(data);
    } else {
      float values[Cell::count];
      load(data, values);
      unit = cell.unit(values);
    }
  });
  return unit;
}

// Channel by channel: for few channels, and for strides that allow no vectors. Several pixels are
// under way before the first is waited for.
template <class T, class Cell>
EA_DEVICE void conv_stage_channel(const ConvRun& run, int lane, int k, const ConvWindow& window,
                                  const Cell& cell) {
  constexpr int batch = 5;
  for (int index = window.first; index < window.pixels; index += batch * window.step) {
    T values[batch] = {};
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = index + i * window.step;
      const ConvPixel pixel = conv_pixel(window, at);
      const bool real = run.data != nullptr && at < window.pixels && conv_inside(window, pixel);
      if (real) values[i] = static_cast<const T*>(run.data)[conv_place(run, pixel)];
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int at = index + i * window.step;
      if (at < window.pixels) {
        cell.put_one(at, conv_pixel(window, at), lane, k, to_float(values[i]));
      }
    }
  }
}

template <class Cell>
EA_DEVICE void conv_stage_single(const ConvCommon& common, int group, int channel, int lane,
                                 const ConvWindow& window, const Cell& cell) {
#pragma unroll 1
  for (int k = 0; k < Cell::count; ++k) {
    const ConvRun run = conv_run(common, group, channel + k, 1, window);
    with_type(run.dtype, [&](auto type) {
      conv_stage_channel<decltype(type)>(run, lane, k, window, cell);
    });
  }
}

// What is the same in memory goes there by itself, while this thread does something else.
template <class Cell>
EA_DEVICE void conv_copy(const ConvCommon& common, const ConvRun& run, int lane,
                         const ConvWindow& window, const Cell& cell) {
  const auto* data = static_cast<const typename Cell::Raw*>(run.data);
#pragma unroll 1
  for (int index = window.first; index < window.pixels; index += window.step) {
    const ConvPixel pixel = conv_pixel(window, index);
    const bool real = data != nullptr && conv_inside(window, pixel);
    const void* from = real ? data + conv_place(run, pixel) : common.weights;
    copy_ahead(cell.place(index, lane), from, real);
  }
}

// Channels first ... first + 2 * Cell::count of the group; two threads share a pixel.
// Cell::batch loads are under way before the first is waited for. If Cell::copies, it is all there
// only when the group of copies is, which the caller ends.
template <class Cell>
EA_DEVICE void conv_stage(const ConvArgs& args, const ConvTile& tile, int first, const Cell& cell) {
  const ConvWindow window = conv_window(args, tile, 2);
  const int lane = threadIdx.x % 2, channel = first + lane * Cell::count;
  const ConvRun run = conv_run(args.common, tile.group, channel, Cell::count, window);
  if (run.data != nullptr && !run.vector) {
    return conv_stage_single(args.common, tile.group, channel, lane, window, cell);
  }
  if constexpr (Cell::copies) {
    if (run.data == nullptr || run.dtype == dtype_of<typename Cell::Raw>) {
      return conv_copy(args.common, run, lane, window, cell);
    }
  }
  for (int index = window.first; index < window.pixels; index += Cell::batch * window.step) {
    typename Cell::Unit units[Cell::batch] = {};
#pragma unroll
    for (int k = 0; k < Cell::batch; ++k) {
      const int at = index + k * window.step;
      const ConvPixel pixel = conv_pixel(window, at);
      if (run.data == nullptr || at >= window.pixels || !conv_inside(window, pixel)) continue;
      units[k] = conv_fetch(cell, run, conv_place(run, pixel));
    }
#pragma unroll
    for (int k = 0; k < Cell::batch; ++k) {
      const int at = index + k * window.step;
      if (at < window.pixels) cell.put(at, conv_pixel(window, at), lane, units[k]);
    }
  }
}

}  // namespace edgeadapt
