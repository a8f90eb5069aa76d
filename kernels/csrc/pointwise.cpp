// Small expressions evaluated for each element, step by step over blocks that stay in the L1 cache:
// each step is one vectorised loop over a block, so that interpreting costs little.
#include "elementary.h"
#include "team.h"
#include "walk.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t max_inputs = 8, max_steps = 24;

// In the order of FUNCTIONS in kernels/pointwise.py.
enum Function : int64_t {
  COPY, NEG, ABS, SIGN, SQRT, RECIPROCAL, EXP, LOG, SIN, COS, TANH, SIGMOID, SOFTPLUS, ERF, FLOOR,
  ROUND, NOT, ADD, SUB, MUL, DIV, POW, MAX, MIN, GT, GE, LT, LE, EQ, NE, AND, OR, WHERE, LEAKY,
  LEAKY_GRAD
};

// Input `source`, or the result of step `source - max_inputs`, or, if it is negative, `value`.
struct Operand {
  int64_t source;
  double value;
};

// `slot` is the block buffer for the result: the caller lets those share one that are not needed at
// the same time.
struct Step {
  int64_t function;
  int64_t slot;
  Operand operands[3];
};

struct PointwiseArgs {
  Tensor y;
  Tensor x[max_inputs];
  int64_t inputs, steps;
  Step step[max_steps];
};

// Elements as a step reads them: the next vector is `advance` further, 0 for a single value.
struct Values {
  const float* data;
  int64_t advance;
};

template <class F>
EA_INLINE void each(float* y, const Values* v, int64_t count, F f) {
  const float* a = v[0].data;
  for (int64_t i = 0; i < count; i += lanes, a += v[0].advance) store(y + i, f(load(a)));
}

template <class F>
EA_INLINE void each_pair(float* y, const Values* v, int64_t count, F f) {
  const float *a = v[0].data, *b = v[1].data;
  for (int64_t i = 0; i < count; i += lanes, a += v[0].advance, b += v[1].advance)
    store(y + i, f(load(a), load(b)));
}

template <class F>
EA_INLINE void each_triple(float* y, const Values* v, int64_t count, F f) {
  const float *a = v[0].data, *b = v[1].data, *c = v[2].data;
  for (int64_t i = 0; i < count; i += lanes) {
    store(y + i, f(load(a), load(b), load(c)));
    a += v[0].advance;
    b += v[1].advance;
    c += v[2].advance;
  }
}

// Comparisons give 1 or 0.
EA_INLINE Vec truth(VecInt mask) { return (Vec)(mask & 0x3f800000); }

// Functions of the C library, for which there is no vectorised form here.
template <class F>
EA_INLINE void each_scalar(float* y, const Values* v, int64_t count, F f) {
  each(y, v, count, [&](Vec x) {
    for (int i = 0; i < lanes; ++i) x[i] = f(x[i]);
    return x;
  });
}

static void apply_one(int64_t function, float* y, const Values* v, int64_t n) {
  switch (function) {
    case COPY: return each(y, v, n, [](Vec x) { return x; });
    case NEG: return each(y, v, n, [](Vec x) { return -x; });
    case ABS: return each(y, v, n, [](Vec x) { return magnitude(x); });
    case SIGN:
      return each(y, v, n, [](Vec x) {
        return x > 0.0f ? splat(1.0f) : (x < 0.0f ? splat(-1.0f) : x);
      });
    case SQRT: return each(y, v, n, [](Vec x) { return square_root(x); });
    case RECIPROCAL: return each(y, v, n, [](Vec x) { return 1.0f / x; });
    case EXP: return each(y, v, n, [](Vec x) { return exponential(x); });
    case LOG: return each(y, v, n, [](Vec x) { return logarithm(x); });
    case SIN: return each_scalar(y, v, n, [](float x) { return __builtin_sinf(x); });
    case COS: return each_scalar(y, v, n, [](float x) { return __builtin_cosf(x); });
    case TANH: return each(y, v, n, [](Vec x) { return hyperbolic_tangent(x); });
    case SIGMOID: return each(y, v, n, [](Vec x) { return sigmoid(x); });
    case SOFTPLUS: return each(y, v, n, [](Vec x) { return softplus(x); });
    case ERF: return each(y, v, n, [](Vec x) { return error_function(x); });
    case FLOOR: return each(y, v, n, [](Vec x) { return round_down(x); });
    case ROUND: return each(y, v, n, [](Vec x) { return round_even(x); });
    case NOT: return each(y, v, n, [](Vec x) { return truth(x == 0.0f); });
  }
}

static void apply_power(float* y, const Values* v, int64_t n) {
  each_pair(y, v, n, [](Vec a, Vec b) {
    for (int i = 0; i < lanes; ++i) a[i] = __builtin_powf(a[i], b[i]);
    return a;
  });
}

static void apply_two(int64_t function, float* y, const Values* v, int64_t n) {
  switch (function) {
    case ADD: return each_pair(y, v, n, [](Vec a, Vec b) { return a + b; });
    case SUB: return each_pair(y, v, n, [](Vec a, Vec b) { return a - b; });
    case MUL: return each_pair(y, v, n, [](Vec a, Vec b) { return a * b; });
    case DIV: return each_pair(y, v, n, [](Vec a, Vec b) { return a / b; });
    case POW: return apply_power(y, v, n);
    case MAX: return each_pair(y, v, n, [](Vec a, Vec b) { return maximum(a, b); });
    case MIN: return each_pair(y, v, n, [](Vec a, Vec b) { return minimum(a, b); });
    case GT: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a > b); });
    case GE: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a >= b); });
    case LT: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a < b); });
    case LE: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a <= b); });
    case EQ: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a == b); });
    case NE: return each_pair(y, v, n, [](Vec a, Vec b) { return truth(a != b); });
    case AND:
      return each_pair(y, v, n, [](Vec a, Vec b) { return truth((a != 0.0f) & (b != 0.0f)); });
    case OR:
      return each_pair(y, v, n, [](Vec a, Vec b) { return truth((a != 0.0f) | (b != 0.0f)); });
    case LEAKY:
      return each_pair(y, v, n, [](Vec x, Vec slope) { return x > 0.0f ? x : x * slope; });
  }
}

static void apply(int64_t function, float* y, const Values* v, int64_t n) {
  if (function == WHERE)
    each_triple(y, v, n, [](Vec condition, Vec a, Vec b) { return condition != 0.0f ? a : b; });
  else if (function == LEAKY_GRAD)
    each_triple(y, v, n, [](Vec grad, Vec x, Vec slope) { return x > 0.0f ? grad : grad * slope; });
  else if (function <= NOT)
    apply_one(function, y, v, n);
  else
    apply_two(function, y, v, n);
}

// What one task works in. Numbers and inputs that are the same along a whole block take one vector.
struct Room {
  alignas(64) float numbers[max_steps][3][lanes];
  alignas(64) float repeated[max_inputs][lanes];
  alignas(64) float inputs[max_inputs][block_size];
  alignas(64) float slots[max_steps][block_size];
};

using Axes = Walk<1 + max_inputs>;  // y, then the inputs

static void fill(float* to, float value) { store(to, splat(value)); }

static Values find_input(const PointwiseArgs& args, const Axes& walk, const Block& block, int64_t i,
                         Room& room) {
  const Tensor& x = args.x[i];
  if (const float* data = find_vectors(walk, block, 1 + i, x)) return Values{data, lanes};
  if (block.in_row && walk.strides[1 + i][walk.rank - 1] == 0) {
    float value = 0;
    read_any(&value, x.data, x.dtype, find_offset(walk, block, 1 + i), 1, 1);
    fill(room.repeated[i], value);
    return Values{room.repeated[i], 0};
  }
  read_block(room.inputs[i], walk, block, 1 + i, x);
  return Values{room.inputs[i], lanes};
}

static void evaluate(const PointwiseArgs& args, const Axes& walk, const Block& block, Room& room) {
  Values values[max_inputs + max_steps];
  for (int64_t i = 0; i < args.inputs; ++i) values[i] = find_input(args, walk, block, i, room);
  float* direct = find_vectors(walk, block, 0, args.y);
  // Behind the block, up to a whole vector, steps compute with whatever the buffers hold.
  const int64_t count = ceil_div(block.count, lanes) * lanes;
  const float* result = nullptr;
  for (int64_t s = 0; s < args.steps; ++s) {
    const Step& step = args.step[s];
    Values operands[3];
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t source = step.operands[i].source;
      operands[i] = source < 0 ? Values{room.numbers[s][i], 0} : values[source];
    }
    // Only the last step may write y, which may be the memory of an input.
    float* to = direct && s == args.steps - 1 ? direct : room.slots[step.slot];
    apply(step.function, to, operands, count);
    values[max_inputs + s] = Values{to, lanes};
    result = to;
  }
  if (!direct) write_block(result, walk, block, 0, args.y);
}

void pointwise(const void* arguments, Team& team) {
  const PointwiseArgs& args = *static_cast<const PointwiseArgs*>(arguments);
  const Tensor* operands[1 + max_inputs] = {&args.y};
  for (int64_t i = 0; i < args.inputs; ++i) operands[1 + i] = &args.x[i];
  Axes walk;
  start_walk(walk, args.y, (1 << max_rank) - 1, operands, 1 + args.inputs);
  const int64_t blocks_of_task = 32;
  parallel(team, ceil_div(walk.blocks, blocks_of_task), [&](int64_t task, int64_t) {
    Room room;
    for (int64_t s = 0; s < args.steps; ++s)
      for (int i = 0; i < 3; ++i) fill(room.numbers[s][i], (float)args.step[s].operands[i].value);
    const int64_t end = smaller((task + 1) * blocks_of_task, walk.blocks);
    for (int64_t b = task * blocks_of_task; b < end; ++b)
      evaluate(args, walk, find_block(walk, b), room);
  });
}

int64_t no_scratch(const void*, int64_t) { return 0; }

}  // namespace

EA_ENTRIES(pointwise, {"pointwise", pointwise, no_scratch, sizeof(PointwiseArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
