// What this machine can do at most, for a profile to hold other kernels to: multiply-adds that wait
// for nothing but each other, and memory that is read and written.
#include "abi.h"
#include "simd.h"
#include "team.h"

namespace edgeadapt {
namespace EA_LEVEL {
namespace {

// Operations under way side by side: more than any core needs to keep its units busy (units times
// their latency), and so few that they fit into sixteen registers together with the operands.
constexpr int64_t chains = 12;

struct PeakChainsArgs {
  float* values;  // (tasks, chains, lanes): where each chain starts, and afterwards where it ended
  int64_t tasks;
  int64_t rounds;  // operations of each chain
  double factor, term;
};

struct PeakCopyArgs {
  const float* from;
  float* to;  // both at a multiple of 64 bytes; may be the same
  int64_t count;  // of elements, a multiple of 16
  int64_t past_caches;
};

// value <- step(value), `rounds` times for each chain
template <class Step>
void run_chains(const PeakChainsArgs& a, Team& team, Step step) {
  parallel(team, a.tasks, [&](int64_t task, int64_t) {
    float* const values = a.values + task * chains * lanes;
    const Step mine = step;  // not behind a pointer that a store could change
    Vec value[chains];
    for (int64_t i = 0; i < chains; ++i) value[i] = load(values + i * lanes);
    for (int64_t round = 0; round < a.rounds; ++round) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < chains; ++i) value[i] = mine(value[i]);
    }
    for (int64_t i = 0; i < chains; ++i) store(values + i * lanes, value[i]);
  });
}

// value * factor + term
void peak_multiply(const void* arguments, Team& team) {
  const auto& a = *static_cast<const PeakChainsArgs*>(arguments);
  const Vec factor = splat((float)a.factor), term = splat((float)a.term);
  run_chains(a, team, [=](Vec value) { return value * factor + term; });
}

VecInt pair_of(double x) {
  const int32_t bits = to_bf16((float)x);
  return VecInt{} + (int32_t)((uint32_t)bits << 16 | (uint32_t)bits);
}

// value + factor * term + factor * term, both rounded to bfloat16
void peak_dot(const void* arguments, Team& team) {
  const auto& a = *static_cast<const PeakChainsArgs*>(arguments);
  const VecInt factor = pair_of(a.factor), term = pair_of(a.term);
  run_chains(a, team, [=](Vec value) { return dot(value, factor, term); });
}

template <bool past_caches>
void copy(const PeakCopyArgs& a, Team& team) {
  constexpr int64_t line = 16, block = 1 << 18;  // elements: 64 bytes, and a megabyte for a task
  parallel(team, (a.count + block - 1) / block, [&](int64_t task, int64_t) {
    const int64_t end = (task + 1) * block < a.count ? (task + 1) * block : a.count;
    for (int64_t i = task * block; i < end; i += line)
      for (int64_t at = i; at < i + line; at += lanes) {
        const Vec value = load(a.from + at);
        past_caches ? store_past_caches(a.to + at, value) : store(a.to + at, value);
      }
    flush_stores();
  });
}

void peak_copy(const void* arguments, Team& team) {
  const auto& a = *static_cast<const PeakCopyArgs*>(arguments);
  a.past_caches ? copy<true>(a, team) : copy<false>(a, team);
}

int64_t no_scratch(const void*, int64_t) { return 0; }

}  // namespace

EA_ENTRIES(peak, {"peak_multiply", peak_multiply, no_scratch, sizeof(PeakChainsArgs)},
           {"peak_dot", peak_dot, no_scratch, sizeof(PeakChainsArgs)},
           {"peak_copy", peak_copy, no_scratch, sizeof(PeakCopyArgs)});

}  // namespace EA_LEVEL
}  // namespace edgeadapt
