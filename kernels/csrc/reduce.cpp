// Sums, products and extremes over some axes. A block is reduced in float32 vectors, blocks are put
// together in float64 and in a fixed order: millions of elements are summed to float32's own
// accuracy, and the number of threads changes no bit.
#include "elementary.h"
#include "team.h"
#include "walk.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

enum How : int64_t { SUM, MAX, MIN, PROD };
enum Before : int64_t { NOTHING, ABS, SQUARE };

struct ReduceArgs {
  Tensor x;
  Tensor y;  // the same axes; length 1 where reduced
  int64_t how, before;
  int64_t axes;  // bit a: axis a is reduced
  int64_t root;  // of the scaled result
  double scale;
  void* scratch;
};

using Reduced = Walk<1>;  // x
using Kept = Walk<2>;     // x, y

struct Work {
  Reduced reduced;
  Kept kept;
};

constexpr int64_t part_blocks = 64;  // one part is what one task reduces for one result

static Work plan_work(const ReduceArgs& args) {
  Work work;
  const Tensor* operands[2] = {&args.x, &args.y};
  start_walk(work.reduced, args.x, args.axes, operands, 1);
  start_walk(work.kept, args.x, ~args.axes, operands, 2);
  return work;
}

// Either way any axes and strides give the right result; this says which loop is the inner one.
static bool is_along_reduced(const Work& work) {
  if (work.kept.size < lanes) return true;
  if (work.reduced.size < 2 * lanes) return false;
  const int64_t reduced = work.reduced.strides[0][work.reduced.rank - 1];
  const int64_t kept = work.kept.strides[0][work.kept.rank - 1];
  return reduced == 1 || kept != 1;
}

static int64_t count_parts(const Work& work) {
  return is_along_reduced(work) ? ceil_div(work.reduced.blocks, part_blocks) : 1;
}

static double neutral(int64_t how) {
  switch (how) {
    case MAX: return -__builtin_inf();
    case MIN: return __builtin_inf();
    case PROD: return 1.0;
    default: return 0.0;
  }
}

static double join(int64_t how, double a, double b) {
  switch (how) {
    case MAX: return a > b || a != a ? a : b;
    case MIN: return a < b || a != a ? a : b;
    case PROD: return a * b;
    default: return a + b;
  }
}

// Calls use(join, before) with both as functions of vectors.
template <class Use>
EA_INLINE void with_before(const ReduceArgs& args, Use use) {
  if (args.before == ABS) return use([](Vec v) { return magnitude(v); });
  if (args.before == SQUARE) return use([](Vec v) { return v * v; });
  use([](Vec v) { return v; });
}

template <class Use>
EA_INLINE void with_functions(const ReduceArgs& args, Use use) {
  with_before(args, [&](auto first) {
    switch (args.how) {
      case MAX: return use([](Vec a, Vec b) { return maximum(a, b); }, first);
      case MIN: return use([](Vec a, Vec b) { return minimum(a, b); }, first);
      case PROD: return use([](Vec a, Vec b) { return a * b; }, first);
      default: return use([](Vec a, Vec b) { return a + b; }, first);
    }
  });
}

template <class Join, class First>
EA_INLINE double fold(const float* x, int64_t count, double total, int64_t how, Join join_vectors,
                      First first) {
  int64_t i = 0;
  if (count >= 4 * lanes) {
    // A sum waits for the one before it: four run at a time.
    Vec a = first(load(x)), b = first(load(x + lanes)), c = first(load(x + 2 * lanes)),
        d = first(load(x + 3 * lanes));
    for (i = 4 * lanes; i + 4 * lanes <= count; i += 4 * lanes) {
      a = join_vectors(a, first(load(x + i)));
      b = join_vectors(b, first(load(x + i + lanes)));
      c = join_vectors(c, first(load(x + i + 2 * lanes)));
      d = join_vectors(d, first(load(x + i + 3 * lanes)));
    }
    const Vec all = join_vectors(join_vectors(a, b), join_vectors(c, d));
    for (int lane = 0; lane < lanes; ++lane) total = join(how, total, all[lane]);
  }
  for (; i < count; ++i) total = join(how, total, first(splat(x[i]))[0]);
  return total;
}

static double fold_block(const ReduceArgs& args, const float* x, int64_t count, double total) {
  with_functions(args, [&](auto join_vectors, auto first) {
    total = fold(x, count, total, args.how, join_vectors, first);
  });
  return total;
}

static float finish(const ReduceArgs& args, double total) {
  total *= args.scale;
  return (float)(args.root ? __builtin_sqrt(total) : total);
}

// Index `number` of the walk, in the offsets of tensor `t`.
template <int tensors>
static int64_t offset_of(const Walk<tensors>& walk, int64_t number, int64_t t) {
  int64_t offset = 0;
  for (int64_t axis = walk.rank - 1; axis >= 0; --axis) {
    offset += number % walk.shape[axis] * walk.strides[t][axis];
    number /= walk.shape[axis];
  }
  return offset;
}

static Tensor moved(const Tensor& x, int64_t offset) {
  Tensor result = x;
  const int64_t bytes = x.dtype == F32 ? 4 : x.dtype == BF16 ? 2 : 1;
  result.data = static_cast<char*>(x.data) + offset * bytes;
  return result;
}

// One part of one result: up to part_blocks blocks along the reduced axes.
static double reduce_part(const ReduceArgs& args, const Work& work, int64_t result, int64_t part) {
  alignas(64) float buffer[block_size];
  const Tensor x = moved(args.x, offset_of(work.kept, result, 0));
  const int64_t end = smaller((part + 1) * part_blocks, work.reduced.blocks);
  double total = neutral(args.how);
  for (int64_t b = part * part_blocks; b < end; ++b) {
    const Block block = find_block(work.reduced, b);
    const float* data = find_row(work.reduced, block, 0, x);
    if (!data) {
      read_block(buffer, work.reduced, block, 0, x);
      data = buffer;
    }
    total = fold_block(args, data, block.count, total);
  }
  return total;
}

static void write_result(const ReduceArgs& args, const Work& work, int64_t result, double total) {
  const float value = finish(args, total);
  write_any(args.y.data, &value, args.y.dtype, offset_of(work.kept, result, 1), 1, 1);
}

static void reduce_along(const ReduceArgs& args, const Work& work, Team& team) {
  const int64_t results = work.kept.size, parts = count_parts(work);
  if (parts == 1) {
    const int64_t results_of_task = larger(1, part_blocks * block_size / work.reduced.size);
    parallel(team, ceil_div(results, results_of_task), [&](int64_t task, int64_t) {
      const int64_t end = smaller((task + 1) * results_of_task, results);
      for (int64_t r = task * results_of_task; r < end; ++r)
        write_result(args, work, r, reduce_part(args, work, r, 0));
    });
    return;
  }
  double* totals = static_cast<double*>(args.scratch);
  parallel(team, results * parts, [&](int64_t task, int64_t) {
    totals[task] = reduce_part(args, work, task / parts, task % parts);
  });
  for (int64_t r = 0; r < results; ++r) {
    double total = neutral(args.how);
    for (int64_t p = 0; p < parts; ++p) total = join(args.how, total, totals[r * parts + p]);
    write_result(args, work, r, total);
  }
}

constexpr int64_t group = 32;  // elements of one result that are added up in float32
constexpr int64_t together = 4;  // of them are read at a time

// sums[i] = how(sums[i], before(rows[0][i]), before(rows[1][i]), ...).
template <class Join, class First>
EA_INLINE void join_rows(float* sums, const float* const* rows, int64_t count, int64_t width,
                         Join join_vectors, First first) {
  if (count == together) {
    for (int64_t i = 0; i < width; i += lanes) {
      const Vec a = join_vectors(first(load(rows[0] + i)), first(load(rows[1] + i)));
      const Vec b = join_vectors(first(load(rows[2] + i)), first(load(rows[3] + i)));
      store(sums + i, join_vectors(load(sums + i), join_vectors(a, b)));
    }
    return;
  }
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < width; i += lanes)
      store(sums + i, join_vectors(load(sums + i), first(load(rows[r] + i))));
}

struct Sums {
  alignas(64) double totals[block_size];
  alignas(64) float sums[block_size];
  alignas(64) float rows[together][block_size];
};

// Adds elements [begin, end) of every result of a block to room.sums.
static void add_elements(const ReduceArgs& args, const Work& work, const Block& block,
                         int64_t begin, int64_t end, Sums& room) {
  const int64_t width = ceil_div(block.count, lanes) * lanes;
  for (int64_t i = 0; i < width; i += lanes) store(room.sums + i, splat((float)neutral(args.how)));
  for (int64_t r = begin; r < end; r += together) {
    const float* rows[together];
    const int64_t count = smaller(together, end - r);
    for (int64_t k = 0; k < count; ++k) {
      const Tensor x = moved(args.x, offset_of(work.reduced, r + k, 0));
      rows[k] = find_vectors(work.kept, block, 0, x);
      if (rows[k]) continue;
      read_block(room.rows[k], work.kept, block, 0, x);
      rows[k] = room.rows[k];
    }
    with_functions(args, [&](auto join_vectors, auto first) {
      join_rows(room.sums, rows, count, width, join_vectors, first);
    });
  }
}

// A block of results, one reduced element after the other.
static void reduce_across_block(const ReduceArgs& args, const Work& work, const Block& block) {
  Sums room;
  const int64_t count = block.count, size = work.reduced.size;
  add_elements(args, work, block, 0, smaller(group, size), room);
  for (int64_t i = 0; i < count; ++i) room.totals[i] = room.sums[i];
  for (int64_t begin = group; begin < size; begin += group) {
    add_elements(args, work, block, begin, smaller(begin + group, size), room);
    for (int64_t i = 0; i < count; ++i)
      room.totals[i] = join(args.how, room.totals[i], room.sums[i]);
  }
  for (int64_t i = 0; i < count; ++i) room.sums[i] = finish(args, room.totals[i]);
  write_block(room.sums, work.kept, block, 1, args.y);
}

void reduce(const void* arguments, Team& team) {
  const ReduceArgs& args = *static_cast<const ReduceArgs*>(arguments);
  const Work work = plan_work(args);
  if (is_along_reduced(work)) return reduce_along(args, work, team);
  parallel(team, work.kept.blocks, [&](int64_t task, int64_t) {
    reduce_across_block(args, work, find_block(work.kept, task));
  });
}

int64_t reduce_scratch(const void* arguments, int64_t) {
  const Work work = plan_work(*static_cast<const ReduceArgs*>(arguments));
  const int64_t parts = count_parts(work);
  return parts == 1 ? 0 : work.kept.size * parts * (int64_t)sizeof(double);
}

}  // namespace

EA_ENTRIES(reduce, {"reduce", reduce, reduce_scratch, sizeof(ReduceArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
