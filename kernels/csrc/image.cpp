// image_in: uint8 (H, W, 3) -> float32 (1, 3, Hp, Wp) in [-1, 1], padded below and to the right by
// reflection; also, while its rows are in the cache, the means of 2x2 pixels, of those, and so on.
// image_out: float32 or bfloat16 (1, 3, Hp, Wp) in [-1, 1] -> uint8 (H, W, 3), the upper left part,
// clamped and rounded half to even; counts what is not a number, which becomes 0.
// Both give the bits of core/image.py.
#include "rows.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t max_levels = 6;

struct ImageInArgs {
  const uint8_t* image;
  int64_t height, width, row_stride;  // in bytes; a pixel is three bytes
  Plane y;
  Plane levels[max_levels];  // half of y, half of that, ...
  int64_t level_count;
};

struct ImageOutArgs {
  Plane x;
  uint8_t* image;
  int64_t height, width, row_stride;
  int64_t* not_numbers;
  void* scratch;
};

constexpr int64_t group = 16;  // pixels whose bytes are reordered together
typedef uint8_t Bytes __attribute__((vector_size(16)));

#if defined(__clang__) || __GNUC__ >= 12
#define EA_BYTES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EA_BYTES(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

// r0 g0 b0 r1 ... of 16 pixels -> their reds, greens, blues.
EA_INLINE void split_channels(const uint8_t* from, Bytes* to) {
  Bytes a, b, c;
  __builtin_memcpy(&a, from, 16);
  __builtin_memcpy(&b, from + 16, 16);
  __builtin_memcpy(&c, from + 32, 16);
  const Bytes r = EA_BYTES(a, b, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
  const Bytes g = EA_BYTES(a, b, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
  const Bytes d = EA_BYTES(a, b, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
  to[0] = EA_BYTES(r, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
  to[1] = EA_BYTES(g, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
  to[2] = EA_BYTES(d, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
}

// And back.
EA_INLINE void join_channels(const Bytes* from, uint8_t* to) {
  const Bytes r = from[0], g = from[1], b = from[2];
  Bytes x = EA_BYTES(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  Bytes y = EA_BYTES(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  Bytes z = EA_BYTES(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  x = EA_BYTES(x, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
  y = EA_BYTES(y, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
  z = EA_BYTES(z, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  __builtin_memcpy(to, &x, 16);
  __builtin_memcpy(to + 16, &y, 16);
  __builtin_memcpy(to + 32, &z, 16);
}

// GCC converts vectors of bytes element by element, several times slower than what there is.
EA_INLINE VecInt integers_of(const uint8_t* bytes) {
#if defined(__AVX512F__)
  return (VecInt)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)bytes));
#elif defined(__AVX2__)
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes));
#else
  typedef uint8_t BytesOfVec __attribute__((vector_size(EA_LANES)));
  BytesOfVec some;
  __builtin_memcpy(&some, bytes, sizeof some);
  return __builtin_convertvector(some, VecInt);
#endif
}

// The lowest bytes of 16 integers.
EA_INLINE Bytes lowest_bytes(const int32_t* integers) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, _mm512_loadu_si512(integers));
#else
  Bytes parts[4];
  __builtin_memcpy(parts, integers, sizeof parts);
#define EA_EVEN_BYTES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
  const Bytes low = EA_BYTES(parts[0], parts[1], EA_EVEN_BYTES);
  const Bytes high = EA_BYTES(parts[2], parts[3], EA_EVEN_BYTES);
  return EA_BYTES(low, high, EA_EVEN_BYTES);
#endif
}

// The float nearest to level / 127.5 - 1 = (2 * level - 255) / 255, for each of the 256 levels: by
// the leading bits of 1 / 255 the product is exact, so there is one rounding, with or without FMA.
constexpr float leading = 0x1.01p-8f, trailing = 0x1.010102p-24f;

EA_INLINE float value_of(uint8_t level) {
  const float numerator = (float)(2 * level - 255);
  return numerator * leading + numerator * trailing;
}

EA_INLINE Vec values_of(const uint8_t* levels) {
  const VecInt numbers = integers_of(levels);
  const Vec numerator = __builtin_convertvector(2 * numbers - 255, Vec);
  return numerator * leading + numerator * trailing;
}

// The pixel that stands for pixel i of a row or column of `size`: back and forth, the edge once.
int64_t reflected(int64_t i, int64_t size) {
  if (i < size || size == 1) return i < size ? i : 0;
  const int64_t period = 2 * (size - 1), along = i % period;
  return smaller(along, period - along);
}

void read_row(const uint8_t* image, int64_t width, int64_t padded, float* const* rows) {
  int64_t j = 0;
  for (; j + group <= width; j += group) {
    Bytes channels[3];
    split_channels(image + 3 * j, channels);
    for (int c = 0; c < 3; ++c) {
      uint8_t bytes[group];
      __builtin_memcpy(bytes, &channels[c], group);
      for (int64_t i = 0; i < group; i += lanes) store(rows[c] + j + i, values_of(bytes + i));
    }
  }
  for (int c = 0; c < 3; ++c) {
    for (int64_t i = j; i < width; ++i) rows[c][i] = value_of(image[3 * i + c]);
    for (int64_t i = width; i < padded; ++i) rows[c][i] = rows[c][reflected(i, width)];
  }
}

void mean_row(const float* above, const float* below, int64_t count, float* y) {
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    const Vec a = load(above + 2 * j) + load(below + 2 * j);
    const Vec b = load(above + 2 * j + lanes) + load(below + 2 * j + lanes);
    store(y + j, 0.25f * (evens(a, b) + odds(a, b)));
  }
  for (; j < count; ++j)
    y[j] = 0.25f * ((above[2 * j] + below[2 * j]) + (above[2 * j + 1] + below[2 * j + 1]));
}

void image_in(const void* arguments, Team& team) {
  const auto& a = *static_cast<const ImageInArgs*>(arguments);
  // Whole rows of the smallest level; a few hundred kilobytes, so that they are still in the cache.
  const int64_t unit = (int64_t)1 << a.level_count;
  const int64_t block = ceil_div(larger(1, 16384 / a.y.width), unit) * unit;
  parallel(team, ceil_div(a.y.height, block), [&](int64_t task, int64_t) {
    const int64_t begin = task * block, end = smaller(begin + block, a.y.height);
    for (int64_t i = begin; i < end; ++i) {
      float* rows[3];
      for (int c = 0; c < 3; ++c) rows[c] = row_of<float>(a.y, c, i);
      read_row(a.image + reflected(i, a.height) * a.row_stride, a.width, a.y.width, rows);
    }
    const Plane* from = &a.y;
    for (int64_t level = 0; level < a.level_count; ++level) {
      const Plane* to = &a.levels[level];
      for (int c = 0; c < 3; ++c)
        for (int64_t i = begin >> (level + 1); i < end >> (level + 1); ++i)
          mean_row(row_of<float>(*from, c, 2 * i), row_of<float>(*from, c, 2 * i + 1), to->width,
                   row_of<float>(*to, c, i));
      from = to;
    }
  });
}

int64_t image_in_scratch(const void*, int64_t) { return 0; }

// Adding this to 0 ... 255 rounds half to even and leaves the integer in the lowest byte.
constexpr float rounding = 12582912.0f;

EA_INLINE uint8_t level_of(float x) {
  float v = (x + 1.0f) * 127.5f;
  v = v > 0.0f ? v : 0.0f;  // also what is not a number
  v = (v < 255.0f ? v : 255.0f) + rounding;
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  return (uint8_t)bits;
}

EA_INLINE VecInt levels_of(Vec x) {
  Vec v = (x + 1.0f) * 127.5f;
  v = v > 0.0f ? v : Vec{};
  v = (v < 255.0f ? v : splat(255.0f)) + rounding;
  return (VecInt)v & 255;
}

// Returns how many are not numbers.
template <class X>
int64_t write_row(const X* const* rows, int64_t width, uint8_t* image) {
  VecInt found = {};
  int64_t count = 0, j = 0;
  for (; j + group <= width; j += group) {
    Bytes channels[3];
    for (int c = 0; c < 3; ++c) {
      int32_t levels[group];
      for (int64_t i = 0; i < group; i += lanes) {
        const Vec x = load_row(rows[c] + j + i);
        found -= x != x;
        const VecInt some = levels_of(x);
        __builtin_memcpy(levels + i, &some, sizeof some);
      }
      channels[c] = lowest_bytes(levels);
    }
    join_channels(channels, image + 3 * j);
  }
  for (; j < width; ++j) {
    for (int c = 0; c < 3; ++c) {
      const float x = to_float(rows[c][j]);
      count += x != x;
      image[3 * j + c] = level_of(x);
    }
  }
  for (int lane = 0; lane < lanes; ++lane) count += found[lane];
  return count;
}

template <class X>
int64_t write_rows(const ImageOutArgs& a, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    const X* rows[3];
    for (int c = 0; c < 3; ++c) rows[c] = row_of<const X>(a.x, c, i);
    count += write_row(rows, a.width, a.image + i * a.row_stride);
  }
  return count;
}

int64_t block_height(const ImageOutArgs& a) { return larger(1, 16384 / a.width); }
int64_t block_count(const ImageOutArgs& a) { return ceil_div(a.height, block_height(a)); }

void image_out(const void* arguments, Team& team) {
  const auto& a = *static_cast<const ImageOutArgs*>(arguments);
  const int64_t height = block_height(a), blocks = block_count(a);
  int64_t* counts = static_cast<int64_t*>(a.scratch);
  parallel(team, blocks, [&](int64_t task, int64_t) {
    const int64_t begin = task * height, end = smaller(begin + height, a.height);
    counts[task] = a.x.dtype == F32 ? write_rows<float>(a, begin, end)
                                    : write_rows<uint16_t>(a, begin, end);
  });
  int64_t sum = 0;
  for (int64_t task = 0; task < blocks; ++task) sum += counts[task];
  *a.not_numbers = sum;
}

int64_t image_out_scratch(const void* arguments, int64_t) {
  return 8 * block_count(*static_cast<const ImageOutArgs*>(arguments));
}

}  // namespace

EA_ENTRIES(image, {"image_in", image_in, image_in_scratch, sizeof(ImageInArgs)},
           {"image_out", image_out, image_out_scratch, sizeof(ImageOutArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
