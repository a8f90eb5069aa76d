// An optimizer's step over flat arrays of weights and gradients, as runtime/optimizer.py computes
// it: each operation rounds by itself, so that the results are the same bits.
#include "segments.cuh"

namespace edgeadapt {

// Elements with one step size; those in no segment keep their weights and their state.
struct StepSegment {
  int64_t first_block;
  int64_t begin, count;
  double step_size;
};

struct SgdArgs {
  float* weights;
  const float* gradients;
  const StepSegment* segments;
  int64_t count;
};

struct AdamArgs {
  float* weights;
  const float* gradients;
  float* mean;
  float* square;
  // How many steps were taken so far, to which this launch adds one; and zero, which it is again
  // afterwards: blocks that are done. So a step can be captured in a graph and repeated.
  int64_t* steps;
  const StepSegment* segments;
  int64_t count;
  double beta1, beta2, epsilon;
};

namespace update {

// nvcc would join a product and a sum into one operation. These stay apart.
#if defined(EA_HOST)
EA_DEVICE float product(float a, float b) { return a * b; }
EA_DEVICE double product(double a, double b) { return a * b; }
EA_DEVICE float quotient(float a, float b) { return a / b; }
EA_DEVICE float root(float a) { return sqrtf(a); }
EA_DEVICE double root(double a) { return sqrt(a); }
#else
EA_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
EA_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
EA_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
EA_DEVICE float root(float a) { return __fsqrt_rn(a); }
EA_DEVICE double root(double a) { return __dsqrt_rn(a); }
#endif

EA_DEVICE double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1, base = product(base, base))
    if (exponent & 1) result = product(result, base);
  return result;
}

// What depends on how many steps were taken, this one included.
struct Corrections {
  int64_t step;
  float bias1, root_bias2;
};

// True in one block of a launch, after all others have called it.
EA_DEVICE bool is_last(int64_t* done) {
#if defined(EA_HOST)
  *done = (*done + 1) % gridDim.x;
  return *done == 0;
#else
  __threadfence();
  return atomicInc(reinterpret_cast<unsigned*>(done), gridDim.x - 1) == gridDim.x - 1;
#endif
}

}  // namespace update

EA_KERNEL(sgd, SgdArgs, segment_threads) {
  const StepSegment& segment = segment_of_block(args.segments, args.count);
  const float step_size = (float)segment.step_size;
  for_elements(segment.first_block, segment.count, [&](int64_t i) {
    i += segment.begin;
    args.weights[i] -= update::product(step_size, args.gradients[i]);
  });
}

EA_KERNEL(adam, AdamArgs, segment_threads) {
  using namespace update;
  EA_SHARED(Corrections, corrections, [1]);
  if (threadIdx.x == 0) {
    const int64_t step = *args.steps + 1;
    corrections[0].step = step;
    corrections[0].bias1 = (float)(1.0 - power(args.beta1, step));
    corrections[0].root_bias2 = (float)root(1.0 - power(args.beta2, step));
  }
  __syncthreads();
  const float part1 = (float)(1.0 - args.beta1), part2 = (float)(1.0 - args.beta2);
  const float beta2 = (float)args.beta2, epsilon = (float)args.epsilon;
  const StepSegment& segment = segment_of_block(args.segments, args.count);
  const float step_size = (float)segment.step_size;
  for_elements(segment.first_block, segment.count, [&](int64_t i) {
    i += segment.begin;
    const float g = args.gradients[i];
    const float mean = args.mean[i] + product(g - args.mean[i], part1);
    const float square = product(args.square[i], beta2) + product(product(g, g), part2);
    const float divisor = quotient(root(square), corrections[0].root_bias2) + epsilon;
    const float change = quotient(mean, divisor);
    args.mean[i] = mean;
    args.square[i] = square;
    args.weights[i] -= quotient(product(change, step_size), corrections[0].bias1);
  });
  // A block that is done has read the count; so the last one may change it.
  if (threadIdx.x == 0 && is_last(args.steps + 1)) *args.steps = corrections[0].step;
}

}  // namespace edgeadapt
