// Resizing, average pooling and their adjoints are one thing: rows, then columns, of the image
// times a band matrix, the same for every channel.
//
// Reduction: y[q] = sum over t < taps of weight(t) * x[q * factor + first + t]
// Its adjoint, seen from the element that is written, so that each is written once:
//   y[q * factor + r] = sum over t = r - first (mod factor) of
//                       weight(t) * x[q + (r - first - t) / factor]
// Enlarging is the adjoint of a reduction, and the adjoint of enlarging is that reduction.
#pragma once

#include "rows.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// What lies outside of x. Mirrored repeats the edge itself: what linear enlargement, which repeats
// the edge, added up outside of the image comes back to it.
enum class Border : int64_t { zero, nearest, mirrored };

struct Axis {
  int64_t factor, first, taps;
  bool adjoint;
  Border border;
  bool hat;      // weights fall linearly from the middle tap to both sides; else all are the same
  float weight;  // of every tap
};

static float weight_of(const Axis& axis, int64_t t) {
  if (!axis.hat) return axis.weight;
  const float distance = (t + axis.first + 0.5f) / axis.factor - 0.5f;
  return distance < 0 ? 1 + distance : 1 - distance;
}

// One output element in `phases` reads x from q * step + first[phase] on, with its own weights.
struct Bands {
  int64_t phases, step, most;  // most: of the counts
  Border border;
  int64_t* first;
  int64_t* count;
  float* weights;  // weights[phase * most + t]
};

static int64_t phases_of(const Axis& axis) { return axis.adjoint ? axis.factor : 1; }
static int64_t most_of(const Axis& axis) {
  return axis.adjoint ? ceil_div(axis.taps, axis.factor) : axis.taps;
}
static int64_t floor_div(int64_t a, int64_t b) { return -ceil_div(-a, b); }
static int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t bands_bytes(const Axis& axis) {
  return round_up(phases_of(axis) * (16 + 4 * most_of(axis)));
}

static Bands make_bands(const Axis& axis, char* memory) {
  const int64_t phases = phases_of(axis), most = most_of(axis);
  int64_t* first = reinterpret_cast<int64_t*>(memory);
  float* weights = reinterpret_cast<float*>(first + 2 * phases);
  const Bands bands{phases, axis.adjoint ? 1 : axis.factor, most, axis.border,
                    first,  first + phases,                 weights};
  for (int64_t r = 0; r < phases; ++r) {
    int64_t lowest = 0, stride = 1, count = axis.taps;
    first[r] = axis.first;
    if (axis.adjoint) {
      const int64_t last = floor_div(r - axis.first, axis.factor);
      lowest = r - axis.first - last * axis.factor;  // the tap that meets x[q + last]
      stride = axis.factor;
      count = lowest < axis.taps ? ceil_div(axis.taps - lowest, stride) : 0;
      first[r] = last - count + 1;
    }
    bands.count[r] = count;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tap = axis.adjoint ? lowest + (count - 1 - t) * stride : t;
      weights[r * most + t] = weight_of(axis, tap);
    }
  }
  return bands;
}

// How far a row is read to the left of x, and how many of its elements there must be, counted from
// the leftmost; known without the bands.
static int64_t reach_left(const Axis& axis) {
  const int64_t lowest =
      axis.adjoint ? floor_div(-axis.first, axis.factor) - most_of(axis) : axis.first;
  return larger(0, -lowest);
}
static int64_t row_length(const Axis& axis, int64_t from, int64_t to) {
  const int64_t last =
      axis.adjoint ? (to - 1) / axis.factor + floor_div(axis.factor - 1 - axis.first, axis.factor)
                   : (to - 1) * axis.factor + axis.first + axis.taps - 1;
  // Vectors are loaded in full, two at a time and one tap further.
  return reach_left(axis) + larger(from, last + 1) + 4 * lanes;
}

// The element of x (size) that stands for element i, or -1 for zero.
static int64_t stand_in(int64_t i, int64_t size, Border border) {
  if (i >= 0 && i < size) return i;
  if (border == Border::zero) return -1;
  if (border == Border::nearest) return i < 0 ? 0 : size - 1;
  return i < 0 ? -1 - i : 2 * size - 1 - i;
}

struct Resample {
  Plane x, add, y;  // add.data may be null; y may lie in the same place
  Axis rows, columns;
};

struct Work {
  Resample job;
  Bands rows, columns;
  int64_t left;  // elements of a thread's row before x's first
};

// row[j] = (or +=) sum over n < N of weights[n] * sources[n][j]
template <int N, class X>
EA_INLINE void add_rows(float* row, const X* const* sources, const float* weights, int64_t width,
                        bool fresh) {
  const auto sum = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
    Vec v = fresh ? Vec{} : load(row + j);
    for (int n = 0; n < N; ++n)
      v += weights[n] * (count < 0 ? load_row(sources[n] + j) : load_part(sources[n] + j, count));
    store(row + j, v);  // the row has room for whole vectors
  };
  int64_t j = 0;
  for (; j + lanes <= width; j += lanes) sum(j, -1);
  if (j < width) sum(j, width - j);
}

// One row of the image, as row `i` of y needs it, with what lies to its left and right.
template <class X>
static void mix_rows(const Work& work, int64_t channel, int64_t i, float* row) {
  const Plane& x = work.job.x;
  const Bands& bands = work.rows;
  const int64_t r = i % bands.phases, begin = i / bands.phases * bands.step + bands.first[r];
  const X* sources[4];
  float weights[4];
  int n = 0;
  bool fresh = true;
  const auto flush = [&] {
    switch (n) {
      case 0: if (fresh) add_rows<0>(row, sources, weights, x.width, true); break;
      case 1: add_rows<1>(row, sources, weights, x.width, fresh); break;
      case 2: add_rows<2>(row, sources, weights, x.width, fresh); break;
      case 3: add_rows<3>(row, sources, weights, x.width, fresh); break;
      default: add_rows<4>(row, sources, weights, x.width, fresh); break;
    }
    fresh = false;
    n = 0;
  };
  for (int64_t t = 0; t < bands.count[r]; ++t) {
    const int64_t source = stand_in(begin + t, x.height, bands.border);
    if (source < 0) continue;
    if (n == 4) flush();
    sources[n] = row_of<const X>(x, channel, source);
    weights[n++] = bands.weights[r * bands.most + t];
  }
  flush();
}

static void fill_borders(const Work& work, float* row, int64_t right) {
  const int64_t width = work.job.x.width;
  const auto fill = [&](int64_t j) {
    const int64_t source = stand_in(j, width, work.columns.border);
    row[j] = source < 0 ? 0.0f : row[source];
  };
  for (int64_t j = -work.left; j < 0; ++j) fill(j);
  for (int64_t j = width; j < right; ++j) fill(j);
}

// Where results go: y = v + add, at most `count` lanes of it.
template <class Y>
struct Sink {
  Y* y;
  const void* add;
  int64_t add_dtype;
  int64_t width;

  __attribute__((always_inline)) void write(int64_t j, Vec v) const {
    const int64_t count = width - j;
    if (count >= lanes) {
      if (add)
        v += add_dtype == F32 ? load_row((const float*)add + j)
                              : load_row((const uint16_t*)add + j);
      store_row(y + j, v);
    } else if (count > 0) {
      if (add)
        v += add_dtype == F32 ? load_part((const float*)add + j, count)
                              : load_part((const uint16_t*)add + j, count);
      store_part(y + j, v, count);
    }
  }
};

// Neighbours read neighbours: stride-1 pooling, and one phase of a larger factor.
// TAPS 0: as many as the bands say.
template <int TAPS>
EA_INLINE Vec sum_taps(const float* row, const float* weights, int64_t count) {
  Vec v = {};
  for (int64_t t = 0; t < (TAPS ? TAPS : count); ++t) v += weights[t] * load(row + t);
  return v;
}

// Phases 2, step 1: enlarging by 2.
template <int TAPS, class Y>
static void double_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
  const float* weights = bands.weights;
  for (int64_t q = 0; 2 * q < sink.width; q += lanes) {
    const Vec a = sum_taps<TAPS>(row + q + bands.first[0], weights, bands.count[0]);
    const Vec b = sum_taps<TAPS>(row + q + bands.first[1], weights + bands.most, bands.count[1]);
    sink.write(2 * q, interleave_low(a, b));
    sink.write(2 * q + lanes, interleave_high(a, b));
  }
}

// Phases 1, step 2: reducing by 2.
template <int TAPS, class Y>
static void halve_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
  const int64_t taps = TAPS ? TAPS : bands.count[0];
  for (int64_t q = 0; q < sink.width; q += lanes) {
    const float* from = row + 2 * q + bands.first[0];
    Vec v = {};
    int64_t t = 0;
    for (; t + 2 <= taps; t += 2) {
      const Vec a = load(from + t), b = load(from + t + lanes);
      v += bands.weights[t] * evens(a, b) + bands.weights[t + 1] * odds(a, b);
    }
    if (t < taps) v += bands.weights[t] * evens(load(from + t), load(from + t + lanes));
    sink.write(q, v);
  }
}

template <class Y>
static void same_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
  for (int64_t q = 0; q < sink.width; q += lanes)
    sink.write(q, sum_taps<0>(row + q + bands.first[0], bands.weights, bands.count[0]));
}

template <class Y>
static void any_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
  int64_t q = 0, r = 0;
  for (int64_t j = 0; j < sink.width; j += lanes) {
    Vec v = {};
    for (int64_t lane = 0; lane < smaller(lanes, sink.width - j); ++lane) {
      const float* from = row + q * bands.step + bands.first[r];
      float sum = 0;
      const float* weights = bands.weights + r * bands.most;
      for (int64_t t = 0; t < bands.count[r]; ++t) sum += weights[t] * from[t];
      v[lane] = sum;
      if (++r == bands.phases) r = 0, ++q;
    }
    sink.write(j, v);
  }
}

template <class Y>
static void write_row(const Work& work, int64_t channel, int64_t i, const float* row) {
  const Plane &add = work.job.add, &y = work.job.y;
  const Bands& bands = work.columns;
  const int64_t offset = channel * add.channel_stride + i * add.row_stride;
  const int64_t bytes = add.dtype == F32 ? 4 : 2;
  const void* sum = add.data ? static_cast<const char*>(add.data) + offset * bytes : nullptr;
  const Sink<Y> sink{row_of<Y>(y, channel, i), sum, add.dtype, y.width};
  if (bands.phases == 2 && bands.count[0] == 2 && bands.count[1] == 2) {
    double_row<2>(bands, row, sink);
  } else if (bands.phases == 2) {
    double_row<0>(bands, row, sink);
  } else if (bands.phases > 2 || bands.step > 2) {
    any_row(bands, row, sink);
  } else if (bands.step == 1) {
    same_row(bands, row, sink);
  } else if (bands.count[0] == 4) {
    halve_row<4>(bands, row, sink);
  } else if (bands.count[0] == 2) {
    halve_row<2>(bands, row, sink);
  } else {
    halve_row<0>(bands, row, sink);
  }
}

static int64_t row_bytes(const Resample& job) {
  return round_up(4 * row_length(job.columns, job.x.width, job.y.width));
}

static int64_t resample_scratch(const Resample& job, int64_t threads) {
  return bands_bytes(job.rows) + bands_bytes(job.columns) + threads * row_bytes(job);
}

static void resample(const Resample& job, void* scratch, Team& team) {
  char* memory = static_cast<char*>(scratch);
  char* rows = memory + bands_bytes(job.rows);
  char* buffers = rows + bands_bytes(job.columns);
  const Work work{job, make_bands(job.rows, memory), make_bands(job.columns, rows),
                  reach_left(job.columns)};
  const int64_t right = row_length(job.columns, job.x.width, job.y.width) - work.left - 4 * lanes;
  // Enough of a task to be worth handing out, small enough for its rows to stay in the cache.
  const int64_t height = larger(1, 32768 / job.y.width), blocks = ceil_div(job.y.height, height);
  parallel(team, job.y.channels * blocks, [&](int64_t task, int64_t thread) {
    float* row = reinterpret_cast<float*>(buffers + thread * row_bytes(job)) + work.left;
    const int64_t channel = task / blocks, begin = task % blocks * height;
    for (int64_t i = begin; i < smaller(begin + height, job.y.height); ++i) {
      if (job.x.dtype == F32)
        mix_rows<float>(work, channel, i, row);
      else
        mix_rows<uint16_t>(work, channel, i, row);
      fill_borders(work, row, right);
      if (job.y.dtype == F32)
        write_row<float>(work, channel, i, row);
      else
        write_row<uint16_t>(work, channel, i, row);
    }
  });
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
