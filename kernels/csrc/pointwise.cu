// Small expressions of tensors. `pointwise` reads any expression from its arguments, step by step;
// what plans mostly hold (copies, sums, LeakyReLU and its gradient, a factor) has kernels without
// steps. Each reads an element of every input once and writes y once: 4 bytes each in f32, 2 in f16
// and bf16, 12 for the sum of two f32. All are bound by memory, but for long chains of elementary
// functions. y is written with = and may be the memory of an input that has the same strides: a
// thread has read all of its elements before it writes the first.
#include "walk.cuh"

namespace edgeadapt {

constexpr int max_inputs = 8, most_summed = 4;

// Functions and steps ---------------------------------------------------------------------------

// In the order of FUNCTIONS in kernels/pointwise.py.
enum Function : int {
  COPY, NEG, ABS, SIGN, SQRT, RECIPROCAL, EXP, LOG, SIN, COS, TANH, SIGMOID, SOFTPLUS, ERF, FLOOR,
  ROUND, NOT, ADD, SUB, MUL, DIV, POW, MAX, MIN, GT, GE, LT, LE, EQ, NE, AND, OR, WHERE, LEAKY,
  LEAKY_GRAD
};

// What is not a number stays so, whichever operand it is.
EA_DEVICE float maximum(float a, float b) { return a > b || a != a ? a : b; }
EA_DEVICE float minimum(float a, float b) { return a < b || a != a ? a : b; }

// With e^-|x|, so that nothing is ever large.
EA_DEVICE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

EA_DEVICE float softplus(float x) { return maximum(x, 0.0f) + log1pf(expf(-fabsf(x))); }

EA_DEVICE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

EA_DEVICE float leaky(float x, float slope) { return x > 0.0f ? x : x * slope; }

EA_DEVICE float leaky_grad(float grad_y, float x, float slope) {
  return x > 0.0f ? grad_y : grad_y * slope;
}

template <class F>
EA_DEVICE void each(float (&y)[chunk], F f) {
#pragma unroll
  for (int i = 0; i < chunk; ++i) y[i] = f(i);
}

// y = function(a), comparisons give 1 or 0. y may be a.
EA_DEVICE void apply_one(int function, float (&y)[chunk], const float (&a)[chunk]) {
  switch (function) {
    case COPY: return each(y, [&](int i) { return a[i]; });
    case NEG: return each(y, [&](int i) { return -a[i]; });
    case ABS: return each(y, [&](int i) { return fabsf(a[i]); });
    case SIGN: return each(y, [&](int i) { return sign(a[i]); });
    case SQRT: return each(y, [&](int i) { return sqrtf(a[i]); });
    case RECIPROCAL: return each(y, [&](int i) { return 1.0f / a[i]; });
    case EXP: return each(y, [&](int i) { return expf(a[i]); });
    case LOG: return each(y, [&](int i) { return logf(a[i]); });
    case SIN: return each(y, [&](int i) { return sinf(a[i]); });
    case COS: return each(y, [&](int i) { return cosf(a[i]); });
    case TANH: return each(y, [&](int i) { return tanhf(a[i]); });
    case SIGMOID: return each(y, [&](int i) { return sigmoid(a[i]); });
    case SOFTPLUS: return each(y, [&](int i) { return softplus(a[i]); });
    case ERF: return each(y, [&](int i) { return erff(a[i]); });
    case FLOOR: return each(y, [&](int i) { return floorf(a[i]); });
    case ROUND: return each(y, [&](int i) { return rintf(a[i]); });
    case NOT: return each(y, [&](int i) { return (float)(a[i] == 0.0f); });
  }
}

EA_DEVICE void apply_two(int function, float (&y)[chunk], const float (&a)[chunk],
                         const float (&b)[chunk]) {
  switch (function) {
    case ADD: return each(y, [&](int i) { return a[i] + b[i]; });
    case SUB: return each(y, [&](int i) { return a[i] - b[i]; });
    case MUL: return each(y, [&](int i) { return a[i] * b[i]; });
    case DIV: return each(y, [&](int i) { return a[i] / b[i]; });
    case POW: return each(y, [&](int i) { return powf(a[i], b[i]); });
    case MAX: return each(y, [&](int i) { return maximum(a[i], b[i]); });
    case MIN: return each(y, [&](int i) { return minimum(a[i], b[i]); });
    case GT: return each(y, [&](int i) { return (float)(a[i] > b[i]); });
    case GE: return each(y, [&](int i) { return (float)(a[i] >= b[i]); });
    case LT: return each(y, [&](int i) { return (float)(a[i] < b[i]); });
    case LE: return each(y, [&](int i) { return (float)(a[i] <= b[i]); });
    case EQ: return each(y, [&](int i) { return (float)(a[i] == b[i]); });
    case NE: return each(y, [&](int i) { return (float)(a[i] != b[i]); });
    case AND: return each(y, [&](int i) { return (float)(a[i] != 0.0f && b[i] != 0.0f); });
    case OR: return each(y, [&](int i) { return (float)(a[i] != 0.0f || b[i] != 0.0f); });
    case LEAKY: return each(y, [&](int i) { return leaky(a[i], b[i]); });
  }
}

EA_DEVICE void apply_three(int function, float (&y)[chunk], const float (&a)[chunk],
                           const float (&b)[chunk], const float (&c)[chunk]) {
  if (function == WHERE) return each(y, [&](int i) { return a[i] != 0.0f ? b[i] : c[i]; });
  each(y, [&](int i) { return leaky_grad(a[i], b[i], c[i]); });
}

// Any expression --------------------------------------------------------------------------------

constexpr int max_steps = 32;  // those of a plan, and inputs that are kept
constexpr int step_threads = 128;

// Where an operand comes from: an input below max_inputs, one of these, or FIRST_SLOT + slot.
enum Source : int { NUMBER = 8, LAST = 9, FIRST_SLOT = 16, NOWHERE = 255 };

// The bytes of `code` from the lowest: function, slot for the result or NOWHERE, three sources.
struct Step {
  int64_t code;
  double numbers[3];
};

struct PointwiseArgs {
  Chunks chunks;
  Operand y, x[max_inputs];
  int64_t steps;
  Step step[max_steps];
};

// The result of the step before stays in registers. One that is read later goes to a slot, memory
// of the thread alone: nothing has to be waited for.
template <int slots>
using Slots = float[slots][chunk][step_threads];

template <int slots>
struct Thread {
  const PointwiseArgs& args;
  Slots<slots>& slot;
  int64_t number;
  int count;
  float last[chunk];

  EA_DEVICE void read(int source, double number_of_step, float (&values)[chunk]) const {
    if (source == LAST) {
      each(values, [&](int i) { return last[i]; });
    } else if (source == NUMBER) {
      each(values, [&](int) { return (float)number_of_step; });
    } else if (source >= FIRST_SLOT) {
      each(values, [&](int i) { return slot[source - FIRST_SLOT][i][threadIdx.x]; });
    } else {
      const Operand& x = args.x[source];
      unpack(x.dtype, fetch_chunk(args.chunks, x, number, count), values);
    }
  }

  EA_DEVICE void run(const Step& step) {
    const int function = (int)(step.code & 255), to = (int)(step.code >> 8 & 255);
    float a[chunk], b[chunk], c[chunk];
    read((int)(step.code >> 16 & 255), step.numbers[0], a);
    if (function <= NOT) {
      apply_one(function, last, a);
    } else {
      read((int)(step.code >> 24 & 255), step.numbers[1], b);
      if (function != WHERE && function != LEAKY_GRAD) {
        apply_two(function, last, a, b);
      } else {
        read((int)(step.code >> 32 & 255), step.numbers[2], c);
        apply_three(function, last, a, b, c);
      }
    }
    if (to == NOWHERE) return;
#pragma unroll
    for (int i = 0; i < chunk; ++i) slot[to][i][threadIdx.x] = last[i];
  }
};

// One thread per chunk of y.
template <int slots>
EA_DEVICE void evaluate(const PointwiseArgs& args, Slots<slots>& slot) {
  const int64_t number = (int64_t)blockIdx.x * step_threads + threadIdx.x;
  if (number >= args.chunks.axes.count) return;
  Thread<slots> thread{args, slot, number, count_of(args.chunks, number), {}};
#pragma unroll 1
  for (int64_t s = 0; s < args.steps; ++s) thread.run(args.step[s]);
  write_chunk(args.chunks, args.y, number, thread.count, thread.last);
}

// With few slots more blocks fit on a multiprocessor.
EA_KERNEL(pointwise, PointwiseArgs, step_threads) {
  EA_SHARED(float, slot, [2][chunk][step_threads]);
  evaluate<2>(args, slot);
}

EA_KERNEL(pointwise_many_slots, PointwiseArgs, step_threads) {
  EA_SHARED(float, slot, [16][chunk][step_threads]);
  evaluate<16>(args, slot);
}

// What plans mostly hold ------------------------------------------------------------------------

constexpr int threads = 256;

struct SimpleArgs {
  Chunks chunks;
  Operand y, x[most_summed];
  int64_t inputs;
  double number;  // slope or factor
};

// y = f(values of up to `most` inputs), for `together` chunks, which all are under way before the
// first is used.
template <int most, int together = 2, class F>
EA_DEVICE void walk(const SimpleArgs& args, F f) {
  const int64_t first = (int64_t)blockIdx.x * threads * together + threadIdx.x;
  Raw raw[together][most] = {};
  int count[together];
#pragma unroll
  for (int k = 0; k < together; ++k) {
    const int64_t number = first + k * threads;
    count[k] = number < args.chunks.axes.count ? count_of(args.chunks, number) : 0;
#pragma unroll
    for (int x = 0; x < most; ++x) {
      if (count[k] && x < args.inputs)
        raw[k][x] = fetch_chunk(args.chunks, args.x[x], number, count[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < together; ++k) {
    if (!count[k]) continue;
    float values[most][chunk], y[chunk];
#pragma unroll
    for (int x = 0; x < most; ++x) unpack(args.x[x].dtype, raw[k][x], values[x]);
    each(y, [&](int i) { return f(values, i); });
    write_chunk(args.chunks, args.y, first + k * threads, count[k], y);
  }
}

EA_KERNEL(pointwise_copy, SimpleArgs, threads) {
  walk<1>(args, [](const float (&x)[1][chunk], int i) { return x[0][i]; });
}

EA_KERNEL(pointwise_sum, SimpleArgs, threads) {
  walk<2>(args, [](const float (&x)[2][chunk], int i) { return x[0][i] + x[1][i]; });
}

// Of three or four inputs, from the first on.
EA_KERNEL(pointwise_long_sum, SimpleArgs, threads) {
  const bool fourth = args.inputs > 3;
  walk<most_summed, 1>(args, [fourth](const float (&x)[most_summed][chunk], int i) {
    const float sum = (x[0][i] + x[1][i]) + x[2][i];
    return fourth ? sum + x[3][i] : sum;
  });
}

EA_KERNEL(pointwise_multiply, SimpleArgs, threads) {
  const float factor = (float)args.number;
  walk<1>(args, [factor](const float (&x)[1][chunk], int i) { return x[0][i] * factor; });
}

EA_KERNEL(pointwise_leaky, SimpleArgs, threads) {
  const float slope = (float)args.number;
  walk<1>(args, [slope](const float (&x)[1][chunk], int i) { return leaky(x[0][i], slope); });
}

EA_KERNEL(pointwise_leaky_grad, SimpleArgs, threads) {
  const float slope = (float)args.number;
  walk<2>(args, [slope](const float (&x)[2][chunk], int i) {
    return leaky_grad(x[0][i], x[1][i], slope);
  });
}

// Copies between layouts ------------------------------------------------------------------------

constexpr int side = 32, rows_together = 8;
constexpr int tile_threads = side * rows_together;

// x has neighbours along one axis, y along another: a tile goes through shared memory, so that both
// are read and written along their own rows. Other axes are `rest`.
struct TransposeArgs {
  Axes rest;
  void* x;
  void* y;
  int64_t x_dtype, y_dtype;
  int64_t x_length, y_length;  // of the axis along which it has neighbours
  int64_t x_stride;            // of x along y's axis
  int64_t y_stride;            // of y along x's axis
  int64_t x_rest[max_rank], y_rest[max_rank];
};

EA_KERNEL(pointwise_transpose, TransposeArgs, tile_threads) {
  EA_SHARED(float, tile, [side][side + 1]);  // one more: columns lie in different banks
  const int64_t across = ceil_div(args.x_length, (int64_t)side);
  const int64_t tiles = across * ceil_div(args.y_length, (int64_t)side);
  const int64_t number = blockIdx.x / tiles, within = blockIdx.x % tiles;
  const int64_t column = within % across * side, row = within / across * side;
  const int64_t x_first = place(args.rest, args.x_rest, number);
  const int64_t y_first = place(args.rest, args.y_rest, number);
  const int lane = threadIdx.x % side, first = threadIdx.x / side;
#pragma unroll
  for (int i = first; i < side; i += rows_together) {
    if (row + i >= args.y_length || column + lane >= args.x_length) continue;
    const int64_t from = x_first + (row + i) * args.x_stride + column + lane;
    tile[i][lane] = read(args.x, args.x_dtype, from);
  }
  __syncthreads();
#pragma unroll
  for (int i = first; i < side; i += rows_together) {
    if (column + i >= args.x_length || row + lane >= args.y_length) continue;
    const int64_t to = y_first + (column + i) * args.y_stride + row + lane;
    write(args.y, args.y_dtype, to, tile[lane][i]);
  }
}

}  // namespace edgeadapt
