// What Python sees of the library (kernels/library.py). Compiled once, for the baseline.
#include <string.h>

#include "table.h"
#include "thread_team.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edgeadapt {

// levels.h is written by build.py and has one line EA_HOLDS(level) for each that was compiled.
#define EA_HOLDS(level)                   \
  namespace level {                       \
  extern const Operation operations[];    \
  }
#include "levels.h"
#undef EA_HOLDS

namespace {

struct Level {
  const char* name;
  const Operation* operations;
};

const Level held[] = {
#define EA_HOLDS(level) {#level, level::operations},
#include "levels.h"
#undef EA_HOLDS
};

// Whether this CPU, and the system's saving of its registers, can run what was compiled with the
// flags that build.py gives the level.
bool cpu_has(const char* level) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (!strcmp(level, "avx2")) return avx2;
  if (!strcmp(level, "avx512")) return avx512;
  if (!strcmp(level, "avx512_bf16")) {
    // Not every compiler knows the name of this one.
    unsigned a = 0, b = 0, c = 0, d = 0;
    return avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long atomics = 1ul << 8;  // of AT_HWCAP, with which -march=armv8.2-a counts
  constexpr unsigned long bf16 = 1ul << 14;    // of AT_HWCAP2
  if (!strcmp(level, "neon_bf16"))
    return (getauxval(AT_HWCAP) & atomics) && (getauxval(AT_HWCAP2) & bf16);
#endif
  return !strcmp(level, "baseline") || !strcmp(level, "neon");
}

}  // namespace
}  // namespace edgeadapt

#define EA_API extern "C" __attribute__((visibility("default")))

using namespace edgeadapt;

// Name of the index-th level that this library holds and this CPU has, the best one last; null
// behind the last.
EA_API const char* ea_level(int64_t index) {
  for (const Level& level : held)
    if (cpu_has(level.name) && index-- == 0) return level.name;
  return nullptr;
}

// The index-th kernel of a level; null behind the last, or if there is no such level.
EA_API const Entry* ea_entry(const char* level_name, int64_t index) {
  for (const Level& level : held) {
    if (strcmp(level.name, level_name)) continue;
    for (const Operation* one = level.operations; one->entries; ++one) {
      if (index < *one->count) return one->entries + index;
      index -= *one->count;
    }
  }
  return nullptr;
}

EA_API Team* ea_create_team(int64_t size) { return create_team(size); }

EA_API void ea_destroy_team(Team* team) { destroy_team(team); }

// Runs the calls in their order; what each took goes to `nanoseconds` unless that is null.
EA_API void ea_run(const Call* calls, int64_t count, Team* team, int64_t* nanoseconds) {
  lock_team(team);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = nanoseconds ? now_ns() : 0;
    calls[i].run(calls[i].arguments, *team);
    if (nanoseconds) nanoseconds[i] = now_ns() - start;
  }
  unlock_team(team);
}
