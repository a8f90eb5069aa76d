// The inner loop of the weight gradient: dot products along pixels between a few channels of grad_y
// and a few streams of x. A stream is an input channel as one tap of the kernel sees it, that is,
// the packed channel from another element on. Every accumulator is a vector of partial sums; they
// are folded to numbers once per call, so a call should cover a thousand pixels or more.
#pragma once

#include "weight_grad_ahead.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// What a vector of pixels is: of float32 `lanes` pixels, of bfloat16 twice as many.
EA_INLINE Vec load_pixels(const float* p) { return load(p); }
EA_INLINE VecInt load_pixels(const uint16_t* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
EA_INLINE Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
EA_INLINE Vec multiply_add(Vec sum, VecInt a, VecInt b) { return dot(sum, a, b); }

template <class T>
constexpr int64_t pixels_per_vector = 4 * lanes / (int64_t)sizeof(T);

template <int... I>
struct Indices {};
template <int N, int... I>
struct CountUp : CountUp<N - 1, N - 1, I...> {};
template <int... I>
struct CountUp<0, I...> {
  using Type = Indices<I...>;
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EA_SHUFFLEVECTOR 1
#endif
#endif

template <int... I>
EA_INLINE Vec pick(Vec a, Vec b) {
#if defined(EA_SHUFFLEVECTOR)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, VecInt{I...});
#endif
}

// `a` and `b` hold sums as runs of 2 * half lanes; the result holds them as runs of half lanes,
// those of a first.
template <int half, int... I>
EA_INLINE Vec fold(Vec a, Vec b, Indices<I...>) {
  return pick<(I / half * 2 * half + I % half)...>(a, b) +
         pick<(I / half * 2 * half + I % half + half)...>(a, b);
}

// Sums of `count` vectors (a multiple of lanes) into the first count / lanes of them, in order.
template <int count, int half = lanes / 2>
EA_INLINE void fold_all(Vec* v) {
  using All = typename CountUp<lanes>::Type;
#pragma GCC unroll 32
  for (int i = 0; i < count / 2; i++) v[i] = fold<half>(v[2 * i], v[2 * i + 1], All{});
  if constexpr (half > 1) fold_all<count / 2, half / 2>(v);
}

// One block of pixels: `rows` runs of `vectors` vectors, some elements apart.
template <class T>
struct Pixels {
  int64_t rows, vectors, row_pitch, grad_row_pitch;
};

// out[o * out_pitch + j] = or += sum over pixels of grad[o * grad_pitch + p] * x[offsets[j] + p].
// Meanwhile a run of cache lines for each row is fetched from `ahead`.
template <class T, int O, int J>
static __attribute__((noinline)) void tile(const Pixels<T>& pixels, const T* grad,
                                           int64_t grad_pitch, const T* x, const int64_t* offsets,
                                           const char* const* ahead, float* out,
                                           int64_t out_pitch, bool add) {
  constexpr int padded = (O * J + lanes - 1) / lanes * lanes;
  Vec sums[padded] = {};
  const T* streams[J];
  for (int j = 0; j < J; j++) streams[j] = x + offsets[j];
  for (int64_t r = 0; r < pixels.rows; r++, grad += pixels.grad_row_pitch - pixels.row_pitch) {
    const int64_t begin = r * pixels.row_pitch;
    const int64_t end = begin + pixels.vectors * pixels_per_vector<T>;
    const char* fetch = ahead[r];
    for (int64_t p = begin; p < end; p += pixels_per_vector<T>) {
      using V = decltype(load_pixels(grad));
      __builtin_prefetch(fetch, 0, 2);
      __builtin_prefetch(fetch + cache_line, 0, 2);
      fetch += lines_per_vector * cache_line;
      // The smaller side stays in registers, the other passes through one.
      if constexpr (O <= J) {
        V held[O];
#pragma GCC unroll 16
        for (int o = 0; o < O; o++) held[o] = load_pixels(grad + o * grad_pitch + p);
#pragma GCC unroll 16
        for (int j = 0; j < J; j++) {
          const V passing = load_pixels(streams[j] + p);
#pragma GCC unroll 16
          for (int o = 0; o < O; o++)
            sums[o * J + j] = multiply_add(sums[o * J + j], held[o], passing);
        }
      } else {
        V held[J];
#pragma GCC unroll 16
        for (int j = 0; j < J; j++) held[j] = load_pixels(streams[j] + p);
#pragma GCC unroll 16
        for (int o = 0; o < O; o++) {
          const V passing = load_pixels(grad + o * grad_pitch + p);
#pragma GCC unroll 16
          for (int j = 0; j < J; j++)
            sums[o * J + j] = multiply_add(sums[o * J + j], passing, held[j]);
        }
      }
    }
  }
  fold_all<padded>(sums);
  float numbers[padded];
  for (int i = 0; i < padded / lanes; i++) store(numbers + i * lanes, sums[i]);
  for (int o = 0; o < O; o++) {
    for (int j = 0; j < J; j++) {
      float& to = out[o * out_pitch + j];
      to = add ? to + numbers[o * J + j] : numbers[o * J + j];
    }
  }
}

template <class T>
using Tile = void (*)(const Pixels<T>&, const T*, int64_t, const T*, const int64_t*,
                      const char* const*, float*, int64_t, bool);

// As many accumulators as the registers hold beside one vector of each held channel and one that
// passes: streams per call for 1, 2, 3, 4 channels of grad_y.
constexpr int most_channels = 4;
#if EA_REGISTERS == 32
constexpr int most_streams[most_channels] = {9, 9, 9, 6};
#else
constexpr int most_streams[most_channels] = {9, 6, 4, 3};
#endif

template <class T, int O, int... I>
EA_INLINE Tile<T> find_tile(int64_t streams, Indices<I...>) {
  static const Tile<T> tiles[] = {tile<T, O, I + 1>...};
  return tiles[streams - 1];
}

template <class T>
static Tile<T> find_tile(int64_t channels, int64_t streams) {
  switch (channels) {
    case 1: return find_tile<T, 1>(streams, typename CountUp<most_streams[0]>::Type{});
    case 2: return find_tile<T, 2>(streams, typename CountUp<most_streams[1]>::Type{});
    case 3: return find_tile<T, 3>(streams, typename CountUp<most_streams[2]>::Type{});
    default: return find_tile<T, 4>(streams, typename CountUp<most_streams[3]>::Type{});
  }
}

// Parts of nearly equal size, none above `most`: [begin(i), begin(i + 1)) for i < parts.
struct Split {
  int64_t count, parts;
  Split(int64_t count, int64_t most) : count(count), parts((count + most - 1) / most) {}
  int64_t begin(int64_t part) const { return count * part / parts; }
};

// out[o * out_pitch + s] = or += the dot products of `channels` channels of grad with all streams.
template <class T>
static void all_tiles(const Pixels<T>& pixels, const T* grad, int64_t grad_pitch, int64_t channels,
                      const T* x, const int64_t* offsets, int64_t streams, Ahead& ahead, float* out,
                      int64_t out_pitch, bool add) {
  const Split across(channels, most_channels);
  for (int64_t a = 0; a < across.parts; a++) {
    const int64_t o = across.begin(a), wide = across.begin(a + 1) - o;
    // There are many calls, and to divide for each would take as long as its last sums: first the
    // tiles of one more stream.
    const Split along(streams, most_streams[wide - 1]);
    const int64_t least = streams / along.parts, wider = streams % along.parts * (least + 1);
    for (int64_t s = 0; s < streams;) {
      const int64_t end = s < wider ? wider : streams, step = s < wider ? least + 1 : least;
      const Tile<T> run = find_tile<T>(wide, step);
      for (; s < end; s += step)
        run(pixels, grad + o * grad_pitch, grad_pitch, x, offsets + s, ahead.take(pixels.rows),
            out + o * out_pitch + s, out_pitch, add);
    }
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
