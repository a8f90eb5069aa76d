// What every CUDA kernel is written against. nvcc and NVRTC compile the kernels for GPUs; in tests,
// g++ does for the host, with tests/support/cuda_shim.h read before everything else.
#pragma once

#if defined(__CUDACC_RTC__)  // knows no headers
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#if defined(EA_HOST)
#define EA_DEVICE inline
#else
#define EA_DEVICE __device__ __forceinline__

// A kernel and its one parameter, `args`; a block has up to `threads` threads.
#define EA_KERNEL(name, Args, threads)                                                        \
  static_assert(sizeof(Args) <= 4000 && __is_trivially_copyable(Args), "is passed by value"); \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args)

// EA_SHARED(float, tile, [8][33]): memory of the block, undefined at first.
#define EA_SHARED(type, name, extents) __shared__ __align__(16) type name extents

// What must be true; only the host looks.
#define EA_REQUIRE(condition)
#endif

namespace edgeadapt {

// BF16 is the upper half of a float32; BOOL is a byte.
enum Dtype : int64_t { F32 = 0, BF16 = 1, BOOL = 2, F16 = 3 };

constexpr int max_rank = 6;
constexpr int warp_size = 32;

// kernels/cuda/tensors.py has the same fields. Strides count elements; `data` points at the element
// with all indices 0 and is null where there is no tensor.
struct Tensor {
  void* data;
  int64_t dtype;
  int64_t rank;
  int64_t shape[max_rank];
  int64_t strides[max_rank];  // 0 repeats, negative goes backwards
};

struct Image {  // (1, channels, height, width)
  void* data;
  int64_t dtype;
  int64_t channels, height, width, channel_stride, row_stride, pixel_stride;
};

static_assert(sizeof(Tensor) == 120 && sizeof(Image) == 64, "kernels/cuda/tensors.py counts on it");

struct Half {
  uint16_t bits;
};

struct Bfloat {
  uint16_t bits;
};

// Numbers ---------------------------------------------------------------------------------------

template <class T>
EA_DEVICE constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
EA_DEVICE constexpr T larger(T a, T b) {
  return a < b ? b : a;
}

template <class T>
EA_DEVICE constexpr T clamp(T value, T low, T high) {
  return smaller(larger(value, low), high);
}

// Rounded up; neither is negative.
template <class T>
EA_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

EA_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

EA_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Elements --------------------------------------------------------------------------------------

EA_DEVICE float to_float(float value) { return value; }
EA_DEVICE float to_float(Bfloat value) { return float_of((uint32_t)value.bits << 16); }
EA_DEVICE float to_float(uint8_t value) { return value != 0 ? 1.0f : 0.0f; }
EA_DEVICE float to_float(Half value) {
#if defined(EA_HOST)
  return host::half_to_float(value.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// To nearest even; NaN stays NaN, and what is too large becomes infinite.
template <class T>
EA_DEVICE T from_float(float value);

template <>
EA_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
EA_DEVICE uint8_t from_float<uint8_t>(float value) {
  return value != 0.0f;
}

template <>
EA_DEVICE Half from_float<Half>(float value) {
#if defined(EA_HOST)
  return {host::half_from_float(value)};
#else
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}

template <>
EA_DEVICE Bfloat from_float<Bfloat>(float value) {
#if defined(EA_HOST)
  return {host::bfloat_from_float(value)};
#else
  Bfloat result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}

template <class T>
constexpr Dtype dtype_of = F32;
template <>
constexpr Dtype dtype_of<Half> = F16;
template <>
constexpr Dtype dtype_of<Bfloat> = BF16;

// Calls body(T()) with the element type of `dtype`, which is not BOOL.
template <class Body>
EA_DEVICE void with_type(int64_t dtype, Body body) {
  if (dtype == F32) return body(float());
  if (dtype == F16) return body(Half());
  body(Bfloat());
}

// One element of any type: for what is not worth a copy of the kernel for each type.
EA_DEVICE float read(const void* data, int64_t dtype, int64_t index) {
  if (dtype == F32) return static_cast<const float*>(data)[index];
  if (dtype == F16) return to_float(static_cast<const Half*>(data)[index]);
  if (dtype == BF16) return to_float(static_cast<const Bfloat*>(data)[index]);
  return to_float(static_cast<const uint8_t*>(data)[index]);
}

EA_DEVICE void write(void* data, int64_t dtype, int64_t index, float value) {
  if (dtype == F32) {
    static_cast<float*>(data)[index] = value;
  } else if (dtype == F16) {
    static_cast<Half*>(data)[index] = from_float<Half>(value);
  } else if (dtype == BF16) {
    static_cast<Bfloat*>(data)[index] = from_float<Bfloat>(value);
  } else {
    static_cast<uint8_t*>(data)[index] = from_float<uint8_t>(value);
  }
}

EA_DEVICE int64_t offset(const Image& image, int64_t channel, int64_t y, int64_t x) {
  return channel * image.channel_stride + y * image.row_stride + x * image.pixel_stride;
}

// Of the element that comes `index`-th in row-major order.
EA_DEVICE int64_t offset(const Tensor& tensor, int64_t index) {
  int64_t result = 0;
#pragma unroll
  for (int axis = max_rank - 1; axis >= 0; --axis) {
    if (axis >= tensor.rank) continue;
    result += index % tensor.shape[axis] * tensor.strides[axis];
    index /= tensor.shape[axis];
  }
  return result;
}

EA_DEVICE int64_t size(const Tensor& tensor) {
  int64_t result = 1;
#pragma unroll
  for (int axis = 0; axis < max_rank; ++axis) result *= axis < tensor.rank ? tensor.shape[axis] : 1;
  return result;
}

// Neighbours in memory --------------------------------------------------------------------------

EA_DEVICE bool aligned(const void* address, int bytes) {
  return reinterpret_cast<uint64_t>(address) % bytes == 0;
}

// As many bytes as one instruction moves, at most 16.
template <int bytes>
struct alignas(bytes) Packet {
  uint32_t word[bytes / 4];
};

// 2, 4 or 8 elements, 4 bytes or more; p is a multiple of their bytes, or of 16 if they are more.
template <int count, class T>
EA_DEVICE void load(const T* p, float (&values)[count]) {
  constexpr int bytes = count * sizeof(T) < 16 ? count * sizeof(T) : 16;
  constexpr int each = bytes / sizeof(T);
  EA_REQUIRE(aligned(p, bytes));
#pragma unroll
  for (int first = 0; first < count; first += each) {
    const Packet<bytes> packet = *reinterpret_cast<const Packet<bytes>*>(p + first);
    T part[each];
    memcpy(part, &packet, bytes);
#pragma unroll
    for (int i = 0; i < each; ++i) values[first + i] = to_float(part[i]);
  }
}

template <int count, class T>
EA_DEVICE void store(T* p, const float (&values)[count]) {
  constexpr int bytes = count * sizeof(T) < 16 ? count * sizeof(T) : 16;
  constexpr int each = bytes / sizeof(T);
  EA_REQUIRE(aligned(p, bytes));
#pragma unroll
  for (int first = 0; first < count; first += each) {
    T part[each];
#pragma unroll
    for (int i = 0; i < each; ++i) part[i] = from_float<T>(values[first + i]);
    Packet<bytes> packet;
    memcpy(&packet, part, bytes);
    *reinterpret_cast<Packet<bytes>*>(p + first) = packet;
  }
}

// Copies under way ------------------------------------------------------------------------------

// Begin to copy 16 bytes to shared memory, or zeros if not `real`; `from` must be an address of
// device memory all the same. Both are multiples of 16.
EA_DEVICE void copy_ahead(void* to, const void* from, bool real) {
#if defined(EA_HOST)
  host::copy_ahead(to, from, real);
#else
  const uint32_t place = (uint32_t)__cvta_generic_to_shared(to);
  const int bytes = real ? 16 : 0;  // the rest is filled up with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(place), "l"(from), "r"(bytes) : "memory");
#endif
}

// What this thread has begun to copy since the last call is one group.
EA_DEVICE void end_group() {
#if defined(EA_HOST)
  host::end_group();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until of this thread's groups all but the last `pending` have arrived. Others see them
// behind the next barrier.
template <int pending>
EA_DEVICE void await_groups() {
#if defined(EA_HOST)
  host::await_groups(pending);
#else
  asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
#endif
}

// Threads together ------------------------------------------------------------------------------

// In every thread of the warp, all 32 of which call this.
EA_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = warp_size / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, step);
  }
  return value;
}

// In every thread of the block; all `threads` of them, numbered by threadIdx.x, call this.
template <int threads>
EA_DEVICE float block_sum(float value) {
  static_assert(threads % warp_size == 0 && threads <= 1024, "full warps");
  EA_SHARED(float, parts, [threads / warp_size]);
  value = warp_sum(value);
  if (threadIdx.x % warp_size == 0) parts[threadIdx.x / warp_size] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < threads / warp_size; ++i) sum += parts[i];
  __syncthreads();  // a second call must not write before all have read
  return sum;
}

// Tensor-core products of one warp: D (16 x 8) += A (16 x k, by rows) * B (k x 8, by columns) with
// k = 16, for tf32 k = 8. Registers as in the PTX ISA for mma.m16n8k16 and .m16n8k8; all 32 threads
// call this, with two f16 or bf16 in a register, the lower index in the lower half.
#if defined(EA_HOST)
#define EA_MMA(name, shape, types)                                                     \
  EA_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    host::name(d, a, b);                                                               \
  }
#else
#define EA_MMA(name, shape, types)                                                             \
  EA_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {         \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." types ".f32 "                       \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"             \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));          \
  }
#endif
EA_MMA(mma_f16, "m16n8k16", "f16.f16")
EA_MMA(mma_bf16, "m16n8k16", "bf16.bf16")
EA_MMA(mma_tf32, "m16n8k8", "tf32.tf32")
#undef EA_MMA

// The bits of the nearest tf32: mma_tf32 would drop the lower 13 bits of a float.
EA_DEVICE uint32_t to_tf32(float value) {
#if defined(EA_HOST)
  return host::tf32_from_float(value);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

// Two elements in one register, `low` at the lower address.
template <class T>
EA_DEVICE uint32_t pair(T low, T high) {
  return (uint32_t)low.bits | (uint32_t)high.bits << 16;
}

}  // namespace edgeadapt
