// Resizing, average pooling and their adjoints are one thing: rows, then columns, of the image
// times a band matrix, the same for every channel. `resample` does any of them; factors of 2 have
// loops of their own in resample_two.h.
#pragma once

#include "bands.h"
#include "resample_two.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct Resample {
  Plane x, add, y;  // add.data may be null; y may lie in the same place
  Axis rows, columns;
};

enum class Shape { any, enlarge_linear, reduce_linear, enlarge_pairs, reduce_pairs };

struct Work {
  Resample job;
  Bands rows, columns;
  Shape shape;   // which loop of resample_two.h does the columns
  int64_t left;  // elements of a thread's row before x's first
};

Shape shape_of(const Bands& bands) {
  const bool two = bands.phases == 2, half = bands.phases == 1 && bands.step == 2;
  const int64_t first = bands.first[0], count = bands.count[0];
  if (two && bands.border == Border::nearest && count == 2) return Shape::enlarge_linear;
  if (two && first == 0 && count == 1 && bands.first[1] == 0 && bands.count[1] == 1)
    return Shape::enlarge_pairs;
  if (half && bands.border == Border::mirrored) return Shape::reduce_linear;
  if (half && first == 0 && count == 2) return Shape::reduce_pairs;
  return Shape::any;
}

// The rows of x that row `i` of y is made of, from tap `*t` on: four, or as many as are left.
template <class X>
Mixture<X> next_sources(const Work& work, int64_t channel, int64_t i, int64_t* t) {
  const Plane& x = work.job.x;
  const Bands& bands = work.rows;
  const int64_t r = i % bands.phases, begin = i / bands.phases * bands.step + bands.first[r];
  Mixture<X> mixture;
  mixture.count = 0;
  mixture.width = x.width;
  mixture.row_stride = x.row_stride;
  for (; *t < bands.count[r] && mixture.count < 4; ++*t) {
    const int64_t source = stand_in(begin + *t, x.height, bands.border);
    if (source < 0) continue;
    mixture.rows[mixture.count] = row_of<const X>(x, channel, source);
    mixture.weights[mixture.count++] = bands.weights[r * bands.most + *t];
  }
  return mixture;
}

template <int N, class X>
EA_INLINE void add_rows(float* row, const Mixture<X>& mixture, bool fresh) {
  // The row has room for whole vectors.
  for (int64_t j = 0; j < mixture.width; j += lanes) {
    const Vec v = mixture.template at<N>(j);
    store(row + j, fresh ? v : load(row + j) + v);
  }
}

// One row of the image, as row `i` of y needs it.
template <class X>
void mix_rows(const Work& work, int64_t channel, int64_t i, float* row) {
  int64_t t = 0;
  bool fresh = true;
  for (;;) {
    const Mixture<X> mixture = next_sources<X>(work, channel, i, &t);
    switch (mixture.count) {
      case 0:
        if (fresh) add_rows<0>(row, mixture, true);
        return;
      case 1: add_rows<1>(row, mixture, fresh); break;
      case 2: add_rows<2>(row, mixture, fresh); break;
      case 3: add_rows<3>(row, mixture, fresh); break;
      default: add_rows<4>(row, mixture, fresh);
    }
    fresh = false;
  }
}

void fill_borders(const Work& work, float* row, int64_t right) {
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

// One phase, neighbours read neighbours (step 1) or every second element (step 2).
template <int STEP, class Y>
void sum_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
  for (int64_t q = 0; q < sink.width; q += lanes) {
    const float* from = row + q * STEP + bands.first[0];
    Vec v = {};
    for (int64_t t = 0; t < bands.count[0]; ++t) {
      const Vec a = load(from + t);
      v += bands.weights[t] * (STEP == 1 ? a : evens(a, load(from + t + lanes)));
    }
    sink.write(q, v);
  }
}

template <class Y>
void any_row(const Bands& bands, const float* row, const Sink<Y>& sink) {
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
Sink<Y> sink_of(const Work& work, int64_t channel, int64_t i) {
  const Plane &add = work.job.add, &y = work.job.y;
  const int64_t offset = channel * add.channel_stride + i * add.row_stride;
  const int64_t bytes = add.dtype == F32 ? 4 : 2;
  const void* sum = add.data ? static_cast<const char*>(add.data) + offset * bytes : nullptr;
  return {row_of<Y>(y, channel, i), sum, add.dtype, y.width};
}

// False if the row of y is not made of as many rows as the loop for its shape adds up.
template <class X, class Y>
bool resample_row_by_two(const Work& work, int64_t channel, int64_t i) {
  int64_t t = 0;
  if (work.shape == Shape::any || work.rows.most > 4) return false;
  const Mixture<X> x = next_sources<X>(work, channel, i, &t);
  const Sink<Y> sink = sink_of<Y>(work, channel, i);
  const float* weights = work.columns.weights;
  if (work.shape == Shape::enlarge_linear && x.count == 2)
    enlarge_linear<2>(x, weights, sink);
  else if (work.shape == Shape::reduce_linear && x.count == 4)
    reduce_linear<4>(x, weights, sink);
  else if (work.shape == Shape::enlarge_pairs && x.count == 1)
    enlarge_pairs<1>(x, weights, sink);
  else if (work.shape == Shape::reduce_pairs && x.count == 2)
    reduce_pairs<2>(x, weights, sink);
  else
    return false;
  return true;
}

// `row` is working memory; its elements from -left to right are used.
template <class X, class Y>
void resample_row(const Work& work, int64_t channel, int64_t i, float* row, int64_t right) {
  if (resample_row_by_two<X, Y>(work, channel, i)) return;
  mix_rows<X>(work, channel, i, row);
  fill_borders(work, row, right);
  const Bands& bands = work.columns;
  const Sink<Y> sink = sink_of<Y>(work, channel, i);
  if (bands.phases > 1 || bands.step > 2)
    any_row(bands, row, sink);
  else if (bands.step == 1)
    sum_row<1>(bands, row, sink);
  else
    sum_row<2>(bands, row, sink);
}

int64_t row_bytes(const Resample& job) {
  return round_up(4 * row_length(job.columns, job.x.width, job.y.width));
}

int64_t resample_scratch(const Resample& job, int64_t threads) {
  return bands_bytes(job.rows) + bands_bytes(job.columns) + threads * row_bytes(job);
}

void resample(const Resample& job, void* scratch, Team& team) {
  char* memory = static_cast<char*>(scratch);
  char* behind = memory + bands_bytes(job.rows);
  char* buffers = behind + bands_bytes(job.columns);
  const Bands rows = make_bands(job.rows, memory), columns = make_bands(job.columns, behind);
  const Work work{job, rows, columns, shape_of(columns), reach_left(job.columns)};
  const int64_t right = row_length(job.columns, job.x.width, job.y.width) - work.left - 4 * lanes;
  const auto of_float =
      job.y.dtype == F32 ? resample_row<float, float> : resample_row<float, uint16_t>;
  const auto of_half =
      job.y.dtype == F32 ? resample_row<uint16_t, float> : resample_row<uint16_t, uint16_t>;
  const auto one = job.x.dtype == F32 ? of_float : of_half;
  // Enough of a task to be worth handing out, small enough for its rows to stay in the cache.
  const int64_t height = larger(1, 32768 / job.y.width), blocks = ceil_div(job.y.height, height);
  parallel(team, job.y.channels * blocks, [&](int64_t task, int64_t thread) {
    float* row = reinterpret_cast<float*>(buffers + thread * row_bytes(job)) + work.left;
    const int64_t channel = task / blocks, begin = task % blocks * height;
    for (int64_t i = begin; i < smaller(begin + height, job.y.height); ++i)
      one(work, channel, i, row, right);
  });
}

}  // namespace
}  // namespace EA_LEVEL
}  // namespace edgeadapt
