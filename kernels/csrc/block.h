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

#include "elements.h"
#include "tensor.h"

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

// The source that has channel `channel` of their concatenation, which becomes its own.
static inline const Plane& find_source(const Plane* sources, int64_t* channel) {
  for (; !sources->data || *channel >= sources->channels; sources++)
    if (sources->data) *channel -= sources->channels;
  return *sources;
}

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
    const char* const data = static_cast<const char*>(x.data);
    return Row{data + offset * (x.dtype == F32 ? 4 : 2), x.dtype, x.width};
  }
  return Row{nullptr, F32, 0};
}

// Two channels read as one, for pairs: an element is the bits of both.
template <class Even, class Odd>
struct Pair {
  Even even;
  Odd odd;
  Pair operator+(int64_t i) const { return Pair{even + i, odd + i}; }
};

struct Nothing {  // in the place of the partner of the last of an odd count
  Nothing operator+(int64_t) const { return Nothing{}; }
};

EA_INLINE VecInt bits_of(Nothing) { return VecInt{}; }
EA_INLINE uint32_t bits_of_one(Nothing) { return 0; }
EA_INLINE uint32_t bits_of_one(const float* p) { return to_bf16(*p); }
EA_INLINE uint32_t bits_of_one(const uint16_t* p) { return *p; }

template <class Even, class Odd>
EA_INLINE Vec load_any(Pair<Even, Odd> p) {
  return (Vec)(bits_of(p.even) | (bits_of(p.odd) << 16));
}

template <class Even, class Odd>
EA_INLINE uint32_t load_one(Pair<Even, Odd> p) {
  return bits_of_one(p.even) | bits_of_one(p.odd) << 16;
}

EA_INLINE void store_any(uint32_t* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
EA_INLINE void store_one(uint32_t* p, uint32_t v) { *p = v; }

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
static void copy_elements(To* to, From from, int64_t count, int64_t step) {
  if (step == 1 && count >= lanes) {
    copy_vectors(to, count, [=](int64_t i) { store_any(to + i, load_any(from + i)); });
    return;
  }
  for (int64_t i = 0; i < count; i++) store_one(to + i, load_one(from + i * step));
}

// Consecutive elements to one vector for each of as many phases as there are vectors.
EA_INLINE void take_apart(Vec (&v)[2]) {
  const Vec even = every_second(v[0], v[1]);
  v[1] = every_other(v[0], v[1]);
  v[0] = even;
}

EA_INLINE void take_apart(Vec (&v)[4]) {
  const Vec even = every_second(v[0], v[1]), even2 = every_second(v[2], v[3]);
  const Vec odd = every_other(v[0], v[1]), odd2 = every_other(v[2], v[3]);
  v[0] = every_second(even, even2);
  v[1] = every_second(odd, odd2);
  v[2] = every_other(even, even2);
  v[3] = every_other(odd, odd2);
}

// to[p][i] = from[phases * i + p] for i < count.
template <int phases, class From, class To>
static void split_elements(To* const (&to)[phases], From from, int64_t count) {
  const auto split = [&](int64_t i) {
    Vec v[phases];
    for (int p = 0; p < phases; p++) v[p] = load_any(from + (phases * i + p * lanes));
    take_apart(v);
    for (int p = 0; p < phases; p++) store_any(to[p] + i, v[p]);
  };
  if (count >= lanes) {
    for (int64_t i = 0; i + lanes <= count; i += lanes) split(i);
    split(count - lanes);
    return;
  }
  for (int64_t i = 0; i < count; i++)
    for (int p = 0; p < phases; p++) store_one(to[p] + i, load_one(from + (phases * i + p)));
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

// All phases in one pass, what lies in the image of them.
template <int phases, class From, class To>
static void split_row(To* row, From from, int64_t width, const Window& window) {
  const int64_t begin = window.left > 0 ? window.left : 0;
  const int64_t behind = window.left + phases * window.columns;
  const int64_t end = behind < width ? behind : width;
  if (begin >= end) return;
  const auto place = [&](int64_t column) {
    const int64_t i = column - window.left;
    return row + i % phases * window.phase_pitch + i / phases;
  };
  To* to[phases];
  for (int p = 0; p < phases; p++) to[p] = place(begin + p);
  const int64_t whole = (end - begin) / phases;
  split_elements(to, from + begin, whole);
  for (int64_t i = begin + phases * whole; i < end; i++) store_one(place(i), load_one(from + i));
}

// One row of the block; `from` is column 0 of the image's, of which there are `width`.
template <class From, class To>
static void fill_row(To* to, From from, int64_t width, const Window& window) {
  const bool split = window.phases == 2 || window.phases == 4;
  for (int64_t p = 0; p < window.phases; p++) {
    To* const phase = to + p * window.phase_pitch;
    const int64_t left = window.left + p;
    const Span span = inside(left, window.columns, window.phases, width);
    clear(phase, span.begin);
    clear(phase + span.end, window.columns - span.end);
    if (split || span.end == span.begin) continue;
    copy_elements(phase + span.begin, from + (left + span.begin * window.phases),
                  span.end - span.begin, window.phases);
  }
  if (window.phases == 2) split_row<2>(to, from, width, window);
  if (window.phases == 4) split_row<4>(to, from, width, window);
}

template <class To>
static void fill_from(To* to, Row row, Row, const Window& window) {
  if (row.dtype == F32)
    fill_row(to, static_cast<const float*>(row.data), row.width, window);
  else
    fill_row(to, static_cast<const uint16_t*>(row.data), row.width, window);
}

template <class Even>
static void fill_pairs(uint32_t* to, Even even, Row odd, int64_t width, const Window& window) {
  typedef const float* Single;
  typedef const uint16_t* Half;
  if (!odd.data)
    fill_row(to, Pair<Even, Nothing>{even, {}}, width, window);
  else if (odd.dtype == F32)
    fill_row(to, Pair<Even, Single>{even, static_cast<Single>(odd.data)}, width, window);
  else
    fill_row(to, Pair<Even, Half>{even, static_cast<Half>(odd.data)}, width, window);
}

static inline void fill_from(uint32_t* to, Row even, Row odd, const Window& window) {
  if (even.dtype == F32)
    fill_pairs(to, static_cast<const float*>(even.data), odd, even.width, window);
  else
    fill_pairs(to, static_cast<const uint16_t*>(even.data), odd, even.width, window);
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

// How many channels an element of the block holds.
template <class To>
constexpr int64_t channels_in(const To*) { return 1; }
constexpr int64_t channels_in(const uint32_t*) { return 2; }

// Fills the block with channels [first, first + count) of the sources.
template <class To>
static void pack_block(To* block, const Plane* sources, int64_t first, int64_t count,
                       const Window& window) {
  const int64_t together = channels_in(block);
  for (int64_t c = 0; c < count; c += together) {
    for (int64_t r = 0; r < window.rows; r++) {
      const int64_t y = window.top + r;
      for (int64_t next = c + together; next < c + 2 * together; next++)
        fetch_row(find_row(sources, first + next, y), window);
      const Row row = find_row(sources, first + c, y);
      const bool partner = together == 2 && c + 1 < count;
      const Row other = partner ? find_row(sources, first + c + 1, y) : Row{nullptr, F32, 0};
      To* const to = block + c / together * window.channel_pitch + r * window.row_pitch;
      if (row.data) {
        fill_from(to, row, other, window);
        continue;
      }
      for (int64_t p = 0; p < window.phases; p++)
        clear(to + p * window.phase_pitch, window.columns);
    }
  }
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
