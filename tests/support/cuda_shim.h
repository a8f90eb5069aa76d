// Compiles a .cu file for the host: g++ -x c++ -include cuda_shim.h. Read before everything else, it
// defines what nvcc knows by itself and what csrc/device.cuh leaves to the host. The threads of a
// block are fibers (cuda_shim.cpp) that wait for each other at barriers and warp functions, which
// refuse what a GPU leaves undefined: a thread that ended, or waits at another line.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define EA_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __shared__ static_assert(false, "EA_SHARED() says what is shared");
// The place of a call, for messages, and to tell one barrier from another.
#define EA_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace edgeadapt {
namespace host {

struct Index {
  unsigned x, y, z;
};

extern Index thread_index, block_index, block_extent, grid_extent;
extern uint64_t block_serial;  // of the block that runs, counted through all launches

struct Kernel {
  Kernel(const char* name, int64_t argument_bytes, int64_t threads, void (*run)(const void*));
  const char* name;
  int64_t argument_bytes, threads;
  void (*run)(const void* args);
  Kernel* next;
};

constexpr int guard_bytes = 64;

// Memory of a block: NaN before its first use in each block, and nothing may touch its guards.
class SharedMemory {
 public:
  SharedMemory(const char* name, uint8_t* memory, size_t bytes);
  void use() {
    if (serial_ != block_serial) begin();
  }
  bool intact() const;
  const char* name() const { return name_; }
  SharedMemory* next = nullptr;  // of those in use in this block

 private:
  void begin();
  const char* name_;
  uint8_t* memory_;  // with its guards
  size_t bytes_;
  uint64_t serial_ = 0;
};

template <class T>
struct Shared {
  explicit Shared(const char* name) : use(name, before, sizeof(T)) {}
  alignas(64) uint8_t before[guard_bytes];
  T value;
  alignas(1) uint8_t after[guard_bytes];
  SharedMemory use;
};

// The launch has failed: this thread does nothing more.
void stop(const char* text, const char* file, int line);
void wait_for_block(const char* file, int line);
// What each of the 32 threads of this warp hands over, up to 48 bytes: valid until the next call.
constexpr int most_exchanged = 48;
struct alignas(16) Slot {
  uint8_t bytes[most_exchanged];
};
const Slot* exchange(unsigned mask, const void* mine, size_t bytes, const char* file, int line);
int lane();
// A copy is made when its group is waited for, not before: who reads too early finds what was there.
void copy_ahead(void* to, const void* from, bool real, EA_HERE);
void end_group();
void await_groups(int pending);

float half_to_float(uint16_t bits);
uint16_t half_from_float(float value);
uint16_t bfloat_from_float(float value);
uint32_t tf32_from_float(float value);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EA_HERE);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EA_HERE);
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EA_HERE);

// `source` is a lane of this thread's group of `width`; outside of it, the thread's own value.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 8, "as on a GPU");
  const Slot* slots = exchange(mask, &value, sizeof value, file, line);
  const int group = lane() / width * width;
  const bool inside = source >= group && source < group + width;
  T result;
  memcpy(&result, slots[inside ? source : lane()].bytes, sizeof result);
  return result;
}

}  // namespace host
}  // namespace edgeadapt

static const edgeadapt::host::Index& threadIdx = edgeadapt::host::thread_index;
static const edgeadapt::host::Index& blockIdx = edgeadapt::host::block_index;
static const edgeadapt::host::Index& blockDim = edgeadapt::host::block_extent;
static const edgeadapt::host::Index& gridDim = edgeadapt::host::grid_extent;

inline void __syncthreads(EA_HERE) { edgeadapt::host::wait_for_block(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffff, EA_HERE) {
  edgeadapt::host::exchange(mask, nullptr, 0, file, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EA_HERE) {
  const int group = edgeadapt::host::lane() / width * width;
  return edgeadapt::host::shuffle(mask, value, group + source % width, width, file, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, EA_HERE) {
  const int source = edgeadapt::host::lane() ^ flip;
  return edgeadapt::host::shuffle(mask, value, source, width, file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int step, int width = 32, EA_HERE) {
  const int source = edgeadapt::host::lane() + step;
  return edgeadapt::host::shuffle(mask, value, source, width, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, int width = 32, EA_HERE) {
  const int source = edgeadapt::host::lane() - step;
  return edgeadapt::host::shuffle(mask, value, source, width, file, line);
}

inline unsigned __ballot_sync(unsigned mask, bool mine, EA_HERE) {
  const auto* slots = edgeadapt::host::exchange(mask, &mine, sizeof mine, file, line);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (unsigned)(slots[i].bytes[0] != 0) << i;
  return result;
}

inline bool __any_sync(unsigned mask, bool mine, EA_HERE) {
  return __ballot_sync(mask, mine, file, line) != 0;
}

inline bool __all_sync(unsigned mask, bool mine, EA_HERE) {
  return __ballot_sync(mask, mine, file, line) == 0xffffffff;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

#define EA_KERNEL(name, Args, threads)                                                        \
  static_assert(sizeof(Args) <= 4000 && __is_trivially_copyable(Args), "is passed by value"); \
  static void name(const Args& args);                                                         \
  static ::edgeadapt::host::Kernel name##_kernel(                                             \
      #name, sizeof(Args), threads,                                                           \
      [](const void* args) { name(*static_cast<const Args*>(args)); });                       \
  static void name([[maybe_unused]] const Args& args)

#define EA_SHARED(type, name, extents)                                  \
  using name##_type = type extents;                                     \
  static ::edgeadapt::host::Shared<name##_type> name##_memory(#name);   \
  name##_memory.use.use();                                              \
  name##_type& name = name##_memory.value

#define EA_REQUIRE(condition) \
  if (!(condition)) ::edgeadapt::host::stop("finds untrue: " #condition, __FILE__, __LINE__)
