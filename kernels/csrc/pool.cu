// Pooling of images (1, C, H, W) -> (1, C, OH, OW), and its adjoints. Padding to the right and
// below is whatever the size of y (of grad_y) asks for.
//   avg_pool       y = mean over the window, padding counted as zeros
//   avg_pool_grad  the adjoint: every window's grad_y / (kh * kw) to each of its pixels
//   max_pool       y = largest of the window; padding never wins; a NaN does; -inf without a pixel
//   max_pool_grad  every window's grad_y to its first largest pixel, row by row; to its last NaN
// The first two add `add` if it is there. Adjoints are gathered: a pixel asks its windows.
// _by_4 and _by_8: so many channels a thread, which are neighbours in memory. y is written with =.
#include "lines.cuh"

namespace edgeadapt {

struct AvgPoolArgs {
  Image x, add, y;  // x is grad_y of avg_pool_grad
  int64_t kernel[2], strides[2], pads[2];  // pads: above, to the left
  int64_t channels_last;                   // whether threads lie along the channels of y
};

struct MaxPoolArgs {
  Image x, grad_y, y;  // max_pool has no grad_y
  int64_t kernel[2], strides[2], pads[2], dilations[2];
  int64_t channels_last;
};

// The pixels of an axis that window i holds.
EA_DEVICE Range window(const AvgPoolArgs& a, int axis, int i, int size) {
  const int first = i * (int)a.strides[axis] - (int)a.pads[axis];
  return {larger(first, 0), smaller(first + (int)a.kernel[axis], size)};
}

// The windows of an axis, `size` of them, that hold pixel i.
EA_DEVICE Range windows(const AvgPoolArgs& a, int axis, int i, int size) {
  const int step = (int)a.strides[axis], last = i + (int)a.pads[axis];
  const int before = last - (int)a.kernel[axis];  // the first window begins behind this place
  return {before < 0 ? 0 : before / step + 1, smaller(last / step + 1, size)};
}

template <int V, bool adjoint>
EA_DEVICE void average(const AvgPoolArgs& a, int channel, int i, int j) {
  float sum[V] = {};
  const int height = (int)a.x.height, width = (int)a.x.width;
  const Range rows = adjoint ? windows(a, 0, i, height) : window(a, 0, i, height);
  const Range columns = adjoint ? windows(a, 1, j, width) : window(a, 1, j, width);
  with_type(a.x.dtype, [&](auto type) {
    add_rectangle<V, decltype(type)>(a.x, channel, rows, columns, sum);
  });
  const float share = 1.0f / (float)(a.kernel[0] * a.kernel[1]);
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] *= share;
  finish<V>(a.y, a.add, channel, i, j, sum);
}

// Pixels of one axis of a window: at first, first + step, ... of those, the taps from `from` up to
// `to` lie in the image.
struct Taps {
  int first, step, from, to;
};

EA_DEVICE Taps taps_of(const MaxPoolArgs& a, int axis, int i, int size) {
  const int first = i * (int)a.strides[axis] - (int)a.pads[axis], step = (int)a.dilations[axis];
  const int from = first < 0 ? ceil_div(-first, step) : 0;
  const int to = first < size ? ceil_div(size - first, step) : 0;
  return {first, step, from, smaller(to, (int)a.kernel[axis])};
}

template <int V>
EA_DEVICE void maximum(const MaxPoolArgs& a, int channel, int i, int j) {
  float best[V];
#pragma unroll
  for (int k = 0; k < V; ++k) best[k] = float_of(0xff800000);  // minus infinity
  const Taps rows = taps_of(a, 0, i, (int)a.x.height);
  const Taps columns = taps_of(a, 1, j, (int)a.x.width);
  with_type(a.x.dtype, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(a.x.data);
    for (int u = rows.from; u < rows.to; ++u)
      for (int v = columns.from; v < columns.to; ++v) {
        float values[V];
        const int row = rows.first + u * rows.step, column = columns.first + v * columns.step;
        get(x + offset(a.x, channel, row, column), values);
#pragma unroll
        for (int k = 0; k < V; ++k)
          if (values[k] > best[k] || values[k] != values[k]) best[k] = values[k];
      }
  });
  finish<V>(a.y, Image{}, channel, i, j, best);
}

// Whether `own` has to give way to a pixel that comes before or behind it in their window.
EA_DEVICE bool beaten(float own, float other, bool before) {
  if (before) return own == own && !(other < own);
  return own == own ? !(other <= own) : other != other;
}

// A bit for each of the V channels: whether tap (u, v) of a window is where its largest pixel is.
template <int V, class X>
EA_DEVICE uint32_t winners(const Image& x, int channel, const Taps& rows, const Taps& columns,
                           int u, int v, const float (&own)[V]) {
  uint32_t wins = (1u << V) - 1;
#pragma unroll 1
  for (int r = rows.from; r < rows.to; ++r)
#pragma unroll 1
    for (int c = columns.from; c < columns.to; ++c) {
      if (r == u && c == v) continue;
      const bool before = r < u || (r == u && c < v);
      float other[V];
      const int row = rows.first + r * rows.step, column = columns.first + c * columns.step;
      get(static_cast<const X*>(x.data) + offset(x, channel, row, column), other);
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (beaten(own[k], other[k], before)) wins &= ~(1u << k);
    }
  return wins;
}

// The window of which pixel i is tap t, or -1.
EA_DEVICE int window_with(const MaxPoolArgs& a, int axis, int i, int t, int64_t size) {
  const int begin = i + (int)a.pads[axis] - t * (int)a.dilations[axis];
  const int step = (int)a.strides[axis], at = begin / step;
  return begin < 0 || at * step != begin || at >= size ? -1 : at;
}

// sum += grad_y of window (p, q) for those channels where its tap (u, v), which is `own`, has won.
template <int V, class X>
EA_DEVICE void add_won(const MaxPoolArgs& a, int channel, int p, int q, int u, int v,
                       const float (&own)[V], float (&sum)[V]) {
  const Taps rows = taps_of(a, 0, p, (int)a.x.height);
  const Taps columns = taps_of(a, 1, q, (int)a.x.width);
  const uint32_t wins = winners<V, X>(a.x, channel, rows, columns, u, v, own);
  if (!wins) return;
  float given[V];
  const int64_t at = offset(a.grad_y, channel, p, q);
  with_type(a.grad_y.dtype, [&](auto type) {
    get(static_cast<const decltype(type)*>(a.grad_y.data) + at, given);
  });
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] += wins >> k & 1 ? given[k] : 0.0f;
}

template <int V>
EA_DEVICE void maximum_grad(const MaxPoolArgs& a, int channel, int i, int j) {
  float sum[V] = {};
  with_type(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    float own[V];
    get(static_cast<const X*>(a.x.data) + offset(a.x, channel, i, j), own);
#pragma unroll 1
    for (int u = (int)a.kernel[0] - 1; u >= 0; --u) {
      const int p = window_with(a, 0, i, u, a.grad_y.height);
      if (p < 0) continue;
#pragma unroll 1
      for (int v = (int)a.kernel[1] - 1; v >= 0; --v) {
        const int q = window_with(a, 1, j, v, a.grad_y.width);
        if (q >= 0) add_won<V, X>(a, channel, p, q, u, v, own, sum);
      }
    }
  });
  finish<V>(a.y, Image{}, channel, i, j, sum);
}

#define EA_POOL(name, Args, function, V)                                        \
  EA_KERNEL(name, Args, line_threads) {                                         \
    at_own_place<V>(args.y, args.channels_last, [&](int channel, int i, int j) { \
      function(args, channel, i, j);                                            \
    });                                                                         \
  }
EA_POOL(avg_pool, AvgPoolArgs, (average<1, false>), 1)
EA_POOL(avg_pool_by_4, AvgPoolArgs, (average<4, false>), 4)
EA_POOL(avg_pool_by_8, AvgPoolArgs, (average<8, false>), 8)
EA_POOL(avg_pool_grad, AvgPoolArgs, (average<1, true>), 1)
EA_POOL(avg_pool_grad_by_4, AvgPoolArgs, (average<4, true>), 4)
EA_POOL(avg_pool_grad_by_8, AvgPoolArgs, (average<8, true>), 8)
EA_POOL(max_pool, MaxPoolArgs, maximum<1>, 1)
EA_POOL(max_pool_by_4, MaxPoolArgs, maximum<4>, 4)
EA_POOL(max_pool_by_8, MaxPoolArgs, maximum<8>, 8)
EA_POOL(max_pool_grad, MaxPoolArgs, maximum_grad<1>, 1)
EA_POOL(max_pool_grad_by_4, MaxPoolArgs, maximum_grad<4>, 4)
EA_POOL(max_pool_grad_by_8, MaxPoolArgs, maximum_grad<8>, 8)
#undef EA_POOL

}  // namespace edgeadapt
