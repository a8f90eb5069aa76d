// Copies a block of an image into working memory, where a kernel can read it without looking at
// borders: what lies outside the image becomes zero, a concatenation of up to four sources becomes
// one array, elements become the type of the arithmetic, and columns that a stride sets apart
// become neighbours. Element (c, r, p, i) of the block is
//   x[first_channel + c, top + r, left + p + i * phases]
// at c * channel_pitch + r * row_pitch + p * phase_pitch + i of one of these arrays:
//   float     any type of x
//   uint16_t  the same as bfloat16
//   uint32_t  a pair of bfloat16 channels (2c, 2c + 1), the even one in the lower half; the partner
//             of the last of an odd count is zero
#pragma once

#include "simd.h"
#include "tensor.h"

// Elements of two vectors, counted through both.
#if defined(__clang__)
#define EA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

namespace edgeadapt {
namespace EA_LEVEL {

struct Window {
  int64_t top, left;     // may lie outside of the image
  int64_t rows, columns;  // columns of each phase
  int64_t phases;        // 1, or the horizontal stride
  int64_t channel_pitch, row_pitch, phase_pitch;  // elements of the block
};

// A row pitch for `columns` elements of four bytes: whole vectors, and rows (and what lies three or
// five rows apart) do not fall on the same few sets of the L1 cache.
EA_INLINE int64_t block_pitch(int64_t columns) {
  int64_t pitch = (columns + lanes - 1) / lanes * lanes;
  const int64_t line = 16;
  pitch = (pitch + line - 1) / line * line;
  return pitch % (8 * line) == 0 ? pitch + line : pitch;
}

namespace {

constexpr int64_t max_sources = 4;

struct Row {
  const void* data;  // null: a row of zeros
  int64_t dtype;
  int64_t width;
};

// Row `y` of channel `channel` of the concatenated sources.
static inline Row find_row(const Plane* sources, int64_t channel, int64_t y) {
  for (int64_t s = 0; s < max_sources; s++) {
    const Plane& x = sources[s];
    if (!x.data) continue;
    if (channel >= x.channels) {
      channel -= x.channels;
      continue;
    }
    if (y < 0 || y >= x.height) break;
    const int64_t offset = channel * x.channel_stride + y * x.row_stride;
    const void* data = x.dtype == F32 ? (const void*)(static_cast<const float*>(x.data) + offset)
                                      : (const void*)(static_cast<const uint16_t*>(x.data) + offset);
    return Row{data, x.dtype, x.width};
  }
  return Row{nullptr, F32, 0};
}

EA_INLINE Vec load_any(const float* p) { return load(p); }
EA_INLINE float load_one(const float* p) { return *p; }
EA_INLINE float load_one(const uint16_t* p) { return from_bf16(*p); }

EA_INLINE Vec load_any(const uint16_t* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, VecInt) << 16);
}

EA_INLINE void store_any(float* p, Vec v) { store(p, v); }
EA_INLINE void store_one(float* p, float v) { *p = v; }
EA_INLINE void store_one(uint16_t* p, float v) { *p = to_bf16(v); }

// To nearest even, as to_bf16(); the instruction takes numbers below 2^-126 for zero.
EA_INLINE VecHalf round_bf16(Vec v) {
#if defined(__AVX512BF16__)
  return (VecHalf)_mm512_cvtneps_pbh((__m512)v);
#else
  const VecInt bits = (VecInt)v;
  const VecInt upper = (bits >> 16) & 0xffff;
  const VecInt rounded = (bits + 0x7fff + (upper & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : (upper | 0x40), VecHalf);
#endif
}

EA_INLINE void store_any(uint16_t* p, Vec v) {
  const VecHalf half = round_bf16(v);
  __builtin_memcpy(p, &half, sizeof half);
}

// Bits of bfloat16, in the lower halves of the lanes.
EA_INLINE VecInt bits_of(const uint16_t* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, VecInt);
}

EA_INLINE VecInt bits_of(const float* p) {
  return __builtin_convertvector(round_bf16(load(p)), VecInt);
}

// Even and odd ones of 2 * lanes consecutive elements.
#if EA_LANES == 16
EA_INLINE Vec every_second(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
EA_INLINE Vec every_other(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#elif EA_LANES == 8
EA_INLINE Vec every_second(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
EA_INLINE Vec every_other(Vec a, Vec b) { return EA_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
#else
EA_INLINE Vec every_second(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 2, 4, 6); }
EA_INLINE Vec every_other(Vec a, Vec b) { return EA_SHUFFLE(a, b, 1, 3, 5, 7); }
#endif

// Elements of two vectors in turn: the first and the second half of the result.
#if EA_LANES == 16
EA_INLINE Vec mix_low(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
EA_INLINE Vec mix_high(Vec a, Vec b) {
  return EA_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif EA_LANES == 8
EA_INLINE Vec mix_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
EA_INLINE Vec mix_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
EA_INLINE Vec mix_low(Vec a, Vec b) { return EA_SHUFFLE(a, b, 0, 4, 1, 5); }
EA_INLINE Vec mix_high(Vec a, Vec b) { return EA_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// The next index at which `to` is aligned to a vector: the vectors before and at it overlap.
template <class To>
EA_INLINE int64_t next_aligned(const To* to) {
  constexpr uintptr_t size = sizeof(To) * lanes;
  return (int64_t)((size - (uintptr_t)to % size) / sizeof(To));
}

// to[i] = vector_at(i)[0] for i < count, a count of at least one vector: the first and the last
// vector overlap their neighbours, so that those between are aligned and no single element is left.
template <class To, class VectorAt>
EA_INLINE void copy_vectors(To* to, int64_t count, VectorAt vector_at) {
  vector_at(0);
  for (int64_t i = next_aligned(to); i + lanes <= count; i += lanes) vector_at(i);
  vector_at(count - lanes);
}

// to[i] = from[i * step] for i < count.
template <class From, class To>
static void copy_elements(To* to, const From* from, int64_t count, int64_t step) {
  if (step == 1 && count >= lanes) {
    copy_vectors(to, count, [=](int64_t i) { store_any(to + i, load_any(from + i)); });
    return;
  }
  for (int64_t i = 0; i < count; i++) store_one(to + i, load_one(from + i * step));
}

// Zeros; most often there is one, for which the compiler's memset would be a detour.
template <class To>
static inline void clear(To* to, int64_t count) {
  for (; count >= 4; count -= 4, to += 4) to[0] = to[1] = to[2] = to[3] = To{};
  for (; count > 0; count--) {
    *to++ = To{};
    asm volatile("");
  }
}

// The part [begin, end) of a phase's columns that lies in the image; the rest is zero.
struct Span {
  int64_t begin, end;
};

static inline Span inside(int64_t left, int64_t columns, int64_t step, int64_t width) {
  const int64_t begin = left < 0 ? (-left + step - 1) / step : 0;
  const int64_t end = left < width ? (width - left + step - 1) / step : 0;
  Span span{begin < columns ? begin : columns, end < columns ? end : columns};
  if (span.end < span.begin) span.end = span.begin;
  return span;
}

template <class To>
static void copy_row(To* to, Row row, int64_t left, int64_t columns, int64_t step) {
  const Span span = inside(left, columns, step, row.data ? row.width : 0);
  clear(to, span.begin);
  const int64_t first = left + span.begin * step, count = span.end - span.begin;
  if (count > 0) {
    if (row.dtype == F32)
      copy_elements(to + span.begin, static_cast<const float*>(row.data) + first, count, step);
    else
      copy_elements(to + span.begin, static_cast<const uint16_t*>(row.data) + first, count, step);
  }
  clear(to + span.end, columns - span.end);
}

// to[i] = even[i * step] in the lower half, odd[i * step] in the upper one.
template <class From>
static void join_elements(uint32_t* to, const From* even, const From* odd, int64_t count,
                          int64_t step) {
  if (step == 1 && count >= lanes) {
    copy_vectors(to, count, [=](int64_t i) {
      const VecInt pair = bits_of(even + i) | (bits_of(odd + i) << 16);
      __builtin_memcpy(to + i, &pair, sizeof pair);
    });
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    to[i] = (uint32_t)to_bf16(load_one(even + i * step)) |
            (uint32_t)to_bf16(load_one(odd + i * step)) << 16;
  }
}

// One of a pair: into the lower (shift 0) or the upper half, with zero in the other or keeping it.
static inline void place_half(uint32_t* to, Row row, int64_t left, Span span, int64_t step,
                              int shift) {
  for (int64_t i = span.begin; i < span.end; i++) {
    const int64_t column = left + i * step;
    const uint16_t bits = row.dtype == F32 ? to_bf16(static_cast<const float*>(row.data)[column])
                                           : static_cast<const uint16_t*>(row.data)[column];
    to[i] |= (uint32_t)bits << shift;
  }
}

static inline void copy_pair(uint32_t* to, Row even, Row odd, int64_t left, int64_t columns,
                             int64_t step) {
  const Span span = inside(left, columns, step, even.data ? even.width : 0);
  const int64_t first = left + span.begin * step, count = span.end - span.begin;
  clear(to, span.begin);
  clear(to + span.end, columns - span.end);
  if (count <= 0) return;
  if (odd.data && even.dtype == odd.dtype) {
    if (even.dtype == F32)
      join_elements(to + span.begin, static_cast<const float*>(even.data) + first,
                    static_cast<const float*>(odd.data) + first, count, step);
    else
      join_elements(to + span.begin, static_cast<const uint16_t*>(even.data) + first,
                    static_cast<const uint16_t*>(odd.data) + first, count, step);
    return;
  }
  clear(to + span.begin, count);
  place_half(to, even, left, span, step, 0);
  if (odd.data) place_half(to, odd, left, span, step, 16);
}

// Both phases of a stride of two in one pass: even columns of the image go to one of them, odd ones
// to the other.
template <class From, class To>
static void split_row(To* to, const From* from, int64_t width, const Window& window) {
  const auto place = [&](int64_t column) {
    const int64_t i = column - window.left;
    return to + (i & 1) * window.phase_pitch + i / 2;
  };
  const int64_t begin = window.left > 0 ? window.left : 0;
  const int64_t behind = window.left + 2 * window.columns, end = behind < width ? behind : width;
  int64_t column = begin;
  if (column & 1 && column < end) {
    store_one(place(column), load_one(from + column));
    column++;
  }
  const int64_t pairs = end > column ? (end - column) / 2 : 0;
  To* const even = place(column);
  To* const odd = place(column + 1);
  const From* const source = from + column;
  const auto split = [&](int64_t i) {
    const Vec a = load_any(source + 2 * i), b = load_any(source + 2 * i + lanes);
    store_any(even + i, every_second(a, b));
    store_any(odd + i, every_other(a, b));
  };
  int64_t i = 0;
  if (pairs >= lanes) {
    for (; i + lanes <= pairs; i += lanes) split(i);
    if (i < pairs) split(pairs - lanes);
    i = pairs;
  }
  for (; i < pairs; i++) {
    store_one(even + i, load_one(source + 2 * i));
    store_one(odd + i, load_one(source + 2 * i + 1));
  }
  column += 2 * pairs;
  if (column < end) store_one(place(column), load_one(from + column));
}

template <class To>
static void copy_two_phases(To* to, Row row, const Window& window) {
  for (int64_t p = 0; p < 2; p++) {
    To* const phase = to + p * window.phase_pitch;
    const Span span =
        inside(window.left + p, window.columns, 2, row.data ? row.width : 0);
    clear(phase, span.begin);
    clear(phase + span.end, window.columns - span.end);
  }
  if (!row.data) return;
  if (row.dtype == F32)
    split_row(to, static_cast<const float*>(row.data), row.width, window);
  else
    split_row(to, static_cast<const uint16_t*>(row.data), row.width, window);
}

// Asks the cache for the part of a row that is in the window. Rows of one channel follow each other
// in memory, but a new channel is a new place that the processor does not foresee.
static inline void fetch_row(Row row, const Window& window) {
  if (!row.data) return;
  const int64_t size = row.dtype == F32 ? 4 : 2, line = 64;
  const int64_t behind = window.left + window.columns * window.phases;
  const char* const data = static_cast<const char*>(row.data);
  const char* const end = data + size * (behind < row.width ? behind : row.width);
  for (const char* p = data + (window.left > 0 ? size * window.left : 0); p < end; p += line)
    __builtin_prefetch(p);
}

// Fills the block with channels [first, first + count) of the sources.
template <class To>
static void pack_block(To* block, const Plane* sources, int64_t first, int64_t count,
                       const Window& window) {
  for (int64_t c = 0; c < count; c++) {
    for (int64_t r = 0; r < window.rows; r++) {
      const Row row = find_row(sources, first + c, window.top + r);
      fetch_row(find_row(sources, first + c + 1, window.top + r), window);
      To* to = block + c * window.channel_pitch + r * window.row_pitch;
      if (window.phases == 2) {
        copy_two_phases(to, row, window);
        continue;
      }
      for (int64_t p = 0; p < window.phases; p++)
        copy_row(to + p * window.phase_pitch, row, window.left + p, window.columns, window.phases);
    }
  }
}

template <>
void pack_block(uint32_t* block, const Plane* sources, int64_t first, int64_t count,
                const Window& window) {
  const Row none{nullptr, F32, 0};
  for (int64_t c = 0; c < count; c += 2) {
    for (int64_t r = 0; r < window.rows; r++) {
      const int64_t y = window.top + r;
      fetch_row(find_row(sources, first + c + 2, y), window);
      fetch_row(find_row(sources, first + c + 3, y), window);
      const Row even = find_row(sources, first + c, y);
      const Row odd = c + 1 < count ? find_row(sources, first + c + 1, y) : none;
      uint32_t* to = block + c / 2 * window.channel_pitch + r * window.row_pitch;
      for (int64_t p = 0; p < window.phases; p++)
        copy_pair(to + p * window.phase_pitch, even, odd, window.left + p, window.columns,
                  window.phases);
    }
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
