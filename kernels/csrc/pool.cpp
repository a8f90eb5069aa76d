// Pooling of images (1, C, H, W) -> (1, C, OH, OW), and its adjoints. Padding to the right and
// below is whatever the size of y (of grad_y) asks for.
//   avg_pool       y = mean over the window, padding counted as zeros
//   avg_pool_grad  the adjoint: every window's grad_y / (kh * kw) to each of its pixels
//   max_pool       y = largest of the window; padding never wins; a NaN does; -inf without a pixel
//   max_pool_grad  every window's grad_y to its first largest pixel, row by row
// The first two add `add` if it is there.
#include "resample.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

struct AvgPoolArgs {
  Plane x, add, y;
  int64_t kernel[2], strides[2], pads[2];  // pads: above, to the left
  void* scratch;
};

struct MaxPoolArgs {
  Plane x, grad_y, y;  // max_pool has no grad_y
  int64_t kernel[2], strides[2], pads[2], dilations[2];
  void* scratch;
};

Resample job_of(const AvgPoolArgs& a, bool adjoint) {
  Resample job{a.x, a.add, a.y, {}, {}};
  for (int axis = 0; axis < 2; ++axis) {
    const float weight = 1.0f / a.kernel[axis];
    Axis& to = axis == 0 ? job.rows : job.columns;
    to = {a.strides[axis], -a.pads[axis], a.kernel[axis], adjoint, Border::zero, false, weight};
  }
  return job;
}

void avg_pool(const void* arguments, Team& team) {
  const auto& a = *static_cast<const AvgPoolArgs*>(arguments);
  resample(job_of(a, false), a.scratch, team);
}

int64_t avg_pool_scratch(const void* arguments, int64_t threads) {
  return resample_scratch(job_of(*static_cast<const AvgPoolArgs*>(arguments), false), threads);
}

void avg_pool_grad(const void* arguments, Team& team) {
  const auto& a = *static_cast<const AvgPoolArgs*>(arguments);
  resample(job_of(a, true), a.scratch, team);
}

int64_t avg_pool_grad_scratch(const void* arguments, int64_t threads) {
  return resample_scratch(job_of(*static_cast<const AvgPoolArgs*>(arguments), true), threads);
}

// The largest of each window of one row so far, and where in the plane it is; -1: nowhere yet.
struct Best {
  float* value;
  int32_t* place;
};

// x[j * step] for the lanes j; `readable` elements from x on exist.
template <class X>
EA_INLINE bool load_strided(const X* x, int64_t step, int64_t readable, Vec* v) {
  if (readable < step * lanes || step > 2) return false;
  *v = step == 1 ? load_row(x) : evens(load_row(x), load_row(x + lanes));
  return true;
}

// One tap of every window of a row: x[j * step + shift], at `place` + j * step + shift of the plane
template <class X>
void meet_tap(const Best& best, const X* x, int64_t width, int64_t outputs, int64_t step,
              int64_t shift, int64_t place) {
  const int64_t begin = larger(0, ceil_div(-shift, step));
  const int64_t end = smaller(outputs, ceil_div(width - shift, step));
  VecInt steps;
  for (int lane = 0; lane < lanes; ++lane) steps[lane] = (int32_t)(lane * step);
  for (int64_t j = begin; j < end;) {
    const int64_t at = j * step + shift;
    Vec v;
    if (j + lanes <= end && load_strided(x + at, step, width - at, &v)) {
      VecInt places;
      const Vec value = load(best.value + j);
      __builtin_memcpy(&places, best.place + j, sizeof places);
      const VecInt wins = (v > value) | (v != v) | (places < 0);
      store(best.value + j, wins ? v : value);
      places = wins ? steps + (int32_t)(place + at) : places;
      __builtin_memcpy(best.place + j, &places, sizeof places);
      j += lanes;
    } else {
      const float one = to_float(x[at]);
      if (one > best.value[j] || one != one || best.place[j] < 0) {
        best.value[j] = one;
        best.place[j] = (int32_t)(place + at);
      }
      ++j;
    }
  }
}

template <class X>
void find_best(const MaxPoolArgs& a, int64_t channel, int64_t row, int64_t outputs,
               const Best& best) {
  for (int64_t j = 0; j < outputs; ++j) {
    best.value[j] = -__builtin_inff();
    best.place[j] = -1;
  }
  for (int64_t u = 0; u < a.kernel[0]; ++u) {
    const int64_t i = row * a.strides[0] + u * a.dilations[0] - a.pads[0];
    if (i < 0 || i >= a.x.height) continue;
    for (int64_t v = 0; v < a.kernel[1]; ++v)
      meet_tap(best, row_of<const X>(a.x, channel, i), a.x.width, outputs, a.strides[1],
               v * a.dilations[1] - a.pads[1], i * a.x.width);
  }
}

void find_best(const MaxPoolArgs& a, int64_t channel, int64_t row, int64_t outputs,
               const Best& best) {
  if (a.x.dtype == F32)
    find_best<float>(a, channel, row, outputs, best);
  else
    find_best<uint16_t>(a, channel, row, outputs, best);
}

int64_t best_bytes(int64_t outputs) { return round_up(8 * outputs); }

Best best_in(char* memory, int64_t outputs) {
  float* value = reinterpret_cast<float*>(memory);
  return {value, reinterpret_cast<int32_t*>(value + outputs)};
}

template <class Y>
void write_values(Y* y, const float* values, int64_t count) {
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) store_row(y + j, load(values + j));
  for (; j < count; ++j) put(y + j, values[j]);
}

void write_values(const Plane& y, int64_t channel, int64_t row, const float* values) {
  if (y.dtype == F32)
    write_values(row_of<float>(y, channel, row), values, y.width);
  else
    write_values(row_of<uint16_t>(y, channel, row), values, y.width);
}

void max_pool(const void* arguments, Team& team) {
  const auto& a = *static_cast<const MaxPoolArgs*>(arguments);
  const int64_t outputs = a.y.width;
  const int64_t height = larger(1, 16384 / outputs), blocks = ceil_div(a.y.height, height);
  parallel(team, a.y.channels * blocks, [&](int64_t task, int64_t thread) {
    char* memory = static_cast<char*>(a.scratch) + thread * best_bytes(outputs);
    const Best best = best_in(memory, outputs);
    const int64_t channel = task / blocks, begin = task % blocks * height;
    for (int64_t i = begin; i < smaller(begin + height, a.y.height); ++i) {
      find_best(a, channel, i, outputs, best);
      write_values(a.y, channel, i, best.value);
    }
  });
}

int64_t max_pool_scratch(const void* arguments, int64_t threads) {
  return threads * best_bytes(static_cast<const MaxPoolArgs*>(arguments)->y.width);
}

// Windows may overlap, so sums are kept in float32, in a plane of the thread's own.
int64_t plane_bytes(const MaxPoolArgs& a) { return round_up(4 * a.y.height * a.y.width); }

void max_pool_grad(const void* arguments, Team& team) {
  const auto& a = *static_cast<const MaxPoolArgs*>(arguments);
  const Plane& grad_y = a.grad_y;
  parallel(team, a.y.channels, [&](int64_t channel, int64_t thread) {
    const int64_t bytes = best_bytes(grad_y.width) + plane_bytes(a);
    char* memory = static_cast<char*>(a.scratch) + thread * bytes;
    const Best best = best_in(memory, grad_y.width);
    float* sums = reinterpret_cast<float*>(memory + best_bytes(grad_y.width));
    __builtin_memset(sums, 0, 4 * a.y.height * a.y.width);
    for (int64_t i = 0; i < grad_y.height; ++i) {
      find_best(a, channel, i, grad_y.width, best);
      const bool wide = grad_y.dtype == F32;
      const float* full = row_of<const float>(grad_y, channel, wide ? i : 0);
      const uint16_t* half = row_of<const uint16_t>(grad_y, channel, wide ? 0 : i);
      for (int64_t j = 0; j < grad_y.width; ++j)
        if (best.place[j] >= 0) sums[best.place[j]] += wide ? full[j] : from_bf16(half[j]);
    }
    for (int64_t i = 0; i < a.y.height; ++i) write_values(a.y, channel, i, sums + i * a.y.width);
  });
}

int64_t max_pool_grad_scratch(const void* arguments, int64_t threads) {
  const auto& a = *static_cast<const MaxPoolArgs*>(arguments);
  return threads * (best_bytes(a.grad_y.width) + plane_bytes(a));
}

}  // namespace

EA_ENTRIES(pool, {"avg_pool", avg_pool, avg_pool_scratch, sizeof(AvgPoolArgs)},
           {"avg_pool_grad", avg_pool_grad, avg_pool_grad_scratch, sizeof(AvgPoolArgs)},
           {"max_pool", max_pool, max_pool_scratch, sizeof(MaxPoolArgs)},
           {"max_pool_grad", max_pool_grad, max_pool_grad_scratch, sizeof(MaxPoolArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
