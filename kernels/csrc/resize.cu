// resize: y = x enlarged or reduced by a whole number, with half-pixel centres ("linear") or by
// repeating and skipping pixels ("nearest"); resize_grad: its adjoint. Both add `add` if given.
//   resize       x (1, C, H, W) -> y (1, C, H * factor, W * factor), or sizes divided by factor
//   resize_grad  x, which is grad_y -> y, the other way round; left out pixels get 0
// _by_4 and _by_8: so many channels a thread, which are neighbours in memory. y is written with =.
#include "lines.cuh"

namespace edgeadapt {

struct ResizeArgs {
  Image x, add, y;
  int64_t factor;
  int64_t enlarge;  // of the resize, also when this is its adjoint
  int64_t linear;
  int64_t channels_last;  // whether threads lie along the channels of y
};

// The two pixels of an axis of x that make one of y, and the weight of the second.
struct Between {
  int low, high;
  float fraction;
};

// One pixel alone is met twice, at half its weight: 0 times what is not asked for may be NaN.
EA_DEVICE Between alone(int at) { return {at, at, 0.5f}; }

// N: the factor, or 0 if it is not known beforehand.
template <int N>
EA_DEVICE Between between(const ResizeArgs& a, int i, int size) {
  const int n = N ? N : (int)a.factor;
  if (!a.enlarge) {
    const int middle = i * n + (n - 1) / 2;
    return n % 2 ? alone(middle) : Between{middle, middle + 1, 0.5f};
  }
  // From the centre of x's first pixel to that of y's i-th, in units of 1 / (2 n).
  const int position = larger(2 * i + 1 - n, 0), low = position / (2 * n);
  if (low >= size - 1) return alone(size - 1);
  const int rest = position - low * 2 * n;
  return rest ? Between{low, low + 1, rest / (2.0f * n)} : alone(low);
}

template <int V, class X>
EA_DEVICE void mix(const Image& x, int channel, const Between& rows, const Between& columns,
                   float (&sum)[V]) {
  const int64_t left = columns.low * x.pixel_stride, right = columns.high * x.pixel_stride;
  const int64_t upper = offset(x, channel, rows.low, 0);
  const int64_t lower = offset(x, channel, rows.high, 0);
  const float above = 1 - rows.fraction, before = 1 - columns.fraction;
  add_scaled<V, X>(x.data, upper + left, above * before, sum);
  add_scaled<V, X>(x.data, upper + right, above * columns.fraction, sum);
  add_scaled<V, X>(x.data, lower + left, rows.fraction * before, sum);
  add_scaled<V, X>(x.data, lower + right, rows.fraction * columns.fraction, sum);
}

template <int V>
EA_DEVICE void resize_place(const ResizeArgs& a, int channel, int i, int j) {
  float sum[V] = {};
  const int n = (int)a.factor, height = (int)a.x.height, width = (int)a.x.width;
  with_type(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    if (!a.linear) {
      const int row = a.enlarge ? i / n : i * n, column = a.enlarge ? j / n : j * n;
      add_scaled<V, X>(a.x.data, offset(a.x, channel, row, column), 1.0f, sum);
    } else if (n == 2) {
      mix<V, X>(a.x, channel, between<2>(a, i, height), between<2>(a, j, width), sum);
    } else {
      mix<V, X>(a.x, channel, between<0>(a, i, height), between<0>(a, j, width), sum);
    }
  });
  finish<V>(a.y, a.add, channel, i, j, sum);
}

// A pixel that linear enlargement took from beyond the edge was the edge's, which therefore gets
// what it gave, as if the image went on as its mirror image.
EA_DEVICE int mirrored(int i, int size) { return i < 0 ? -1 - i : i < size ? i : 2 * size - 1 - i; }

// sum += what the pixels of x that pixel (i, j) was enlarged to give back: its share of each falls
// linearly with the distance.
template <int N, int V, class X>
EA_DEVICE void gather_enlarged(const ResizeArgs& a, int channel, int i, int j, float (&sum)[V]) {
  const int n = N ? N : (int)a.factor, taps = 2 * n - n % 2;
  const int top = i * n - n / 2, left = j * n - n / 2;
  const int height = (int)a.x.height, width = (int)a.x.width;
  const auto share = [n](int t) {
    const int distance = 2 * (t - n / 2) + 1 - n;  // in units of 1 / (2 n)
    return 1 - (distance < 0 ? -distance : distance) * (0.5f / n);
  };
#pragma unroll(N ? 2 * N : 1)
  for (int u = 0; u < taps; ++u) {
    const int64_t row = offset(a.x, channel, mirrored(top + u, height), 0);
#pragma unroll(N ? 2 * N : 1)
    for (int v = 0; v < taps; ++v) {
      const int64_t at = row + mirrored(left + v, width) * a.x.pixel_stride;
      add_scaled<V, X>(a.x.data, at, share(u) * share(v), sum);
    }
  }
}

// sum += what the one pixel of x gives back that pixel (i, j) was reduced to, if there is one.
template <int V, class X>
EA_DEVICE void gather_reduced(const ResizeArgs& a, int channel, int i, int j, float (&sum)[V]) {
  const int n = (int)a.factor, first = a.linear ? (n - 1) / 2 : 0;
  const int last = a.linear ? n / 2 : 0;  // of the n pixels, those that were read
  const int row = i / n, column = j / n, u = i - row * n, v = j - column * n;
  if (row >= a.x.height || column >= a.x.width) return;
  if (u < first || u > last || v < first || v > last) return;
  add_scaled<V, X>(a.x.data, offset(a.x, channel, row, column), first < last ? 0.25f : 1, sum);
}

template <int V>
EA_DEVICE void resize_grad_place(const ResizeArgs& a, int channel, int i, int j) {
  float sum[V] = {};
  const int n = (int)a.factor;
  with_type(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    if (!a.enlarge)
      gather_reduced<V, X>(a, channel, i, j, sum);
    else if (!a.linear)
      add_rectangle<V, X>(a.x, channel, {i * n, i * n + n}, {j * n, j * n + n}, sum);
    else if (n == 2)
      gather_enlarged<2, V, X>(a, channel, i, j, sum);
    else
      gather_enlarged<0, V, X>(a, channel, i, j, sum);
  });
  finish<V>(a.y, a.add, channel, i, j, sum);
}

template <int V>
EA_DEVICE void run_resize(const ResizeArgs& a) {
  at_own_place<V>(a.y, a.channels_last,
                  [&](int channel, int i, int j) { resize_place<V>(a, channel, i, j); });
}

template <int V>
EA_DEVICE void run_resize_grad(const ResizeArgs& a) {
  at_own_place<V>(a.y, a.channels_last,
                  [&](int channel, int i, int j) { resize_grad_place<V>(a, channel, i, j); });
}

EA_KERNEL(resize, ResizeArgs, line_threads) { run_resize<1>(args); }
EA_KERNEL(resize_by_4, ResizeArgs, line_threads) { run_resize<4>(args); }
EA_KERNEL(resize_by_8, ResizeArgs, line_threads) { run_resize<8>(args); }
EA_KERNEL(resize_grad, ResizeArgs, line_threads) { run_resize_grad<1>(args); }
EA_KERNEL(resize_grad_by_4, ResizeArgs, line_threads) { run_resize_grad<4>(args); }
EA_KERNEL(resize_grad_by_8, ResizeArgs, line_threads) { run_resize_grad<8>(args); }

}  // namespace edgeadapt
