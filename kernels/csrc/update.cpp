// An optimiser's step over flat arrays of weights and gradients: the formulas of runtime/optimizer.py.
// The compiler vectorises these loops by itself; memory is what they wait for.
#include "abi.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

constexpr int64_t block = 8192;  // elements of a task: tens of kilobytes, a few microseconds

// Which elements have which step size; those in no segment keep their weights and their state.
struct Segments {
  const int64_t* begins;
  const int64_t* counts;
  const double* step_sizes;
  int64_t count;
  int64_t end;  // behind the last element of all
};

struct SgdArgs {
  float* weights;
  const float* gradients;
  Segments segments;
};

struct AdamArgs {
  float* weights;
  const float* gradients;
  float* mean;
  float* square;
  int64_t* steps;  // how many were taken so far; this call adds one
  Segments segments;
  double beta1, beta2, epsilon;
};

// Calls part(begin, end, step_size) for what lies in each segment, on all threads.
template <class Part>
void for_segments(const Segments& segments, Team& team, const Part& part) {
  parallel(team, (segments.end + block - 1) / block, [&](int64_t task, int64_t) {
    for (int64_t i = 0; i < segments.count; ++i) {
      const int64_t first = segments.begins[i], last = first + segments.counts[i];
      const int64_t begin = first > task * block ? first : task * block;
      const int64_t end = last < (task + 1) * block ? last : (task + 1) * block;
      if (begin < end) part(begin, end, (float)segments.step_sizes[i]);
    }
  });
}

// Of one step: all that the elements have in common, as values that no store can change.
struct AdamStep {
  float part1, beta2, part2, bias1, root_bias2, epsilon;
};

void sgd_part(float* __restrict weights, const float* __restrict gradients, int64_t count,
              float step_size) {
  for (int64_t i = 0; i < count; ++i) weights[i] -= step_size * gradients[i];
}

void adam_part(float* __restrict weights, const float* __restrict gradients, float* __restrict mean,
               float* __restrict square, int64_t count, float step_size, AdamStep step) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradients[i];
    const float m = mean[i] + (g - mean[i]) * step.part1;
    const float v = square[i] * step.beta2 + g * g * step.part2;
    const float root = __builtin_sqrtf(v) / step.root_bias2 + step.epsilon;
    mean[i] = m;
    square[i] = v;
    weights[i] -= m / root * step_size / step.bias1;
  }
}

void sgd(const void* arguments, Team& team) {
  const auto& a = *static_cast<const SgdArgs*>(arguments);
  for_segments(a.segments, team, [&](int64_t begin, int64_t end, float step_size) {
    sgd_part(a.weights + begin, a.gradients + begin, end - begin, step_size);
  });
}

double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

void adam(const void* arguments, Team& team) {
  const auto& a = *static_cast<const AdamArgs*>(arguments);
  const int64_t steps = ++*a.steps;
  const double bias1 = 1 - power(a.beta1, steps);
  const double root_bias2 = __builtin_sqrt(1 - power(a.beta2, steps));
  const AdamStep step = {(float)(1 - a.beta1), (float)a.beta2,    (float)(1 - a.beta2),
                         (float)bias1,         (float)root_bias2, (float)a.epsilon};
  for_segments(a.segments, team, [&](int64_t begin, int64_t end, float step_size) {
    adam_part(a.weights + begin, a.gradients + begin, a.mean + begin, a.square + begin, end - begin,
              step_size, step);
  });
}

int64_t no_scratch(const void*, int64_t) { return 0; }

}  // namespace

EA_ENTRIES(update, {"sgd", sgd, no_scratch, sizeof(SgdArgs)},
           {"adam", adam, no_scratch, sizeof(AdamArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
