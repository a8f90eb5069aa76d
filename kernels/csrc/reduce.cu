// Sums, products and extremes over axes. Each element of x is read once, 4 bytes in f32, 2 in f16
// and bf16: bound by memory. The threads of a block share the elements of one result or of several:
// each adds up to 64 of them in four running sums, a tree joins the threads, and a second launch
// joins the parts in float64. A sum of a million is thus as accurate as its last 20 additions, and
// which element goes where depends on sizes alone.
#include "walk.cuh"

namespace edgeadapt {

constexpr int threads = 256;

// In the order of HOW and BEFORE in kernels/reduce.py.
enum How : int64_t { SUM, MAX, MIN, PROD };
enum Before : int64_t { NOTHING, ABS, SQUARE };

struct ReduceArgs {
  void* x;
  void* y;
  int64_t x_dtype, y_dtype;
  Axes kept, reduced;  // of x
  int64_t x_kept[max_rank], x_reduced[max_rank], y_kept[max_rank];
  int64_t how, before, root;  // root: of the scaled result
  double scale;
  int64_t lanes;      // threads for one result, a power of two; the others have other results
  int64_t across;     // neighbouring threads have neighbouring results, not elements of one
  int64_t parts;      // blocks for one result
  int64_t part_size;  // elements of x
  void* scratch;      // with several parts, float (parts, results)
};

// What has been joined so far. A NaN among the operands of an extreme stays.
template <class Number>
EA_DEVICE Number join(int64_t how, Number a, Number b) {
  switch (how) {
    case MAX: return a > b || a != a ? a : b;
    case MIN: return a < b || a != a ? a : b;
    case PROD: return a * b;
    default: return a + b;
  }
}

EA_DEVICE float neutral(int64_t how) {
  const float infinity = float_of(0x7f800000);
  return how == MAX ? -infinity : how == MIN ? infinity : how == PROD ? 1.0f : 0.0f;
}

// Which result a thread works on, and as which of its lanes.
struct Share {
  int64_t result, part;
  int lane, seat;  // seat: where in `totals` the lane is, those of one result `step` apart
  int step;
};

EA_DEVICE Share find_share(const ReduceArgs& args, int64_t results) {
  const int lanes = (int)args.lanes, together = threads / lanes;
  const int64_t groups = ceil_div(results, (int64_t)together);
  const int local = args.across ? threadIdx.x % together : threadIdx.x / lanes;
  const int lane = args.across ? threadIdx.x / together : threadIdx.x % lanes;
  return {blockIdx.x % groups * together + local, (int64_t)(blockIdx.x / groups), lane,
          lane * together + local, together};
}

// Joins the lanes of every result, all threads of the block: the total of lane 0 is that of all.
template <class Number>
EA_DEVICE Number join_lanes(const ReduceArgs& args, const Share& share, Number total,
                            Number (&totals)[threads]) {
  totals[share.seat] = total;
  __syncthreads();
  for (int half = (int)args.lanes / 2; half > 0; half /= 2) {
    if (share.lane < half) {
      total = join(args.how, total, totals[share.seat + half * share.step]);
      totals[share.seat] = total;
    }
    __syncthreads();
  }
  return total;
}

EA_DEVICE void finish(const ReduceArgs& args, int64_t result, double total) {
  total *= args.scale;
  write(args.y, args.y_dtype, place(args.kept, args.y_kept, result),
        (float)(args.root ? sqrt(total) : total));
}

constexpr int running = 4;  // totals of a thread: loads and additions of four elements overlap

// Elements begin + lane, begin + lane + lanes, ... below end, of the result that lies at `first`.
EA_DEVICE float join_elements(const ReduceArgs& args, int64_t first, int64_t begin, int64_t end) {
  float totals[running];
#pragma unroll
  for (int k = 0; k < running; ++k) totals[k] = neutral(args.how);
  for (int64_t i = begin; i < end; i += running * args.lanes) {
    float values[running];
    with_any_type(args.x_dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* x = static_cast<const T*>(args.x) + first;
#pragma unroll
      for (int k = 0; k < running; ++k) {
        const int64_t number = i + k * args.lanes;
        values[k] = number < end ? to_float(x[place(args.reduced, args.x_reduced, number)]) : 0.0f;
      }
    });
#pragma unroll
    for (int k = 0; k < running; ++k) {
      if (i + k * args.lanes >= end) continue;
      const float v = values[k];
      const float value = args.before == ABS ? fabsf(v) : args.before == SQUARE ? v * v : v;
      totals[k] = join(args.how, totals[k], value);
    }
  }
  return join(args.how, join(args.how, totals[0], totals[1]),
              join(args.how, totals[2], totals[3]));
}

EA_KERNEL(reduce, ReduceArgs, threads) {
  EA_SHARED(float, totals, [threads]);
  const int64_t results = args.kept.count;
  const Share share = find_share(args, results);
  const bool some = share.result < results;
  float total = neutral(args.how);
  if (some) {
    const int64_t begin = share.part * args.part_size;
    const int64_t end = smaller(begin + args.part_size, args.reduced.count);
    total = join_elements(args, place(args.kept, args.x_kept, share.result), begin + share.lane,
                          end);
  }
  total = join_lanes(args, share, total, totals);
  if (!some || share.lane > 0) return;
  if (args.parts == 1) return finish(args, share.result, total);
  static_cast<float*>(args.scratch)[share.part * results + share.result] = total;
}

// Few numbers: float64 costs nothing here.
EA_KERNEL(reduce_parts, ReduceArgs, threads) {
  EA_SHARED(double, totals, [threads]);
  const int64_t results = args.kept.count;
  const Share share = find_share(args, results);
  const bool some = share.result < results;
  double total = neutral(args.how);
  for (int64_t part = share.lane; some && part < args.parts; part += args.lanes) {
    const float one = static_cast<const float*>(args.scratch)[part * results + share.result];
    total = join(args.how, total, (double)one);
  }
  total = join_lanes(args, share, total, totals);
  if (some && share.lane == 0) finish(args, share.result, total);
}

}  // namespace edgeadapt
