// Kernels for tests of device.cuh and of the shim itself: some do what no kernel may.
#include "device.cuh"

namespace edgeadapt {

struct ProbeArgs {
  const void* a;
  const void* b;
  void* y;
  int64_t count, kind;
};

// One warp: a (32 lanes, 4 registers), b (32, 2), y (32, 4) +=.
EA_KERNEL(probe_mma, ProbeArgs, 32) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = static_cast<const uint32_t*>(args.a)[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b[i] = static_cast<const uint32_t*>(args.b)[lane * 2 + i];
  float* y = static_cast<float*>(args.y) + lane * 4;
  float d[4] = {y[0], y[1], y[2], y[3]};
  if (args.kind == F16) mma_f16(d, a, b);
  if (args.kind == BF16) mma_bf16(d, a, b);
  if (args.kind == F32) mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) y[i] = d[i];
}

EA_KERNEL(probe_tf32, ProbeArgs, 256) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= args.count) return;
  static_cast<uint32_t*>(args.y)[i] = to_tf32(static_cast<const float*>(args.a)[i]);
}

// Copies `count` elements, `each` at a time, by way of float.
template <int each, class T>
EA_DEVICE void move(const ProbeArgs& args) {
  for (int i = threadIdx.x * each; i < args.count; i += blockDim.x * each) {
    float values[each];
    load(static_cast<const T*>(args.a) + i, values);
    store(static_cast<T*>(args.y) + i, values);
  }
}

EA_KERNEL(probe_move_2, ProbeArgs, 32) {
  with_type(args.kind, [&](auto zero) { move<2, decltype(zero)>(args); });
}
EA_KERNEL(probe_move_4, ProbeArgs, 32) {
  with_type(args.kind, [&](auto zero) { move<4, decltype(zero)>(args); });
}
EA_KERNEL(probe_move_8, ProbeArgs, 32) {
  with_type(args.kind, [&](auto zero) { move<8, decltype(zero)>(args); });
}

// y[thread] = the sum of a over the block, twice: the second one reuses the memory of the first.
EA_KERNEL(probe_sum, ProbeArgs, 64) {
  const float mine = static_cast<const float*>(args.a)[threadIdx.x];
  const float once = block_sum<64>(mine);
  static_cast<float*>(args.y)[threadIdx.x] = block_sum<64>(mine * 2.0f) + once;
}

// y (5, 32) = what each of the warp functions gives.
EA_KERNEL(probe_shuffles, ProbeArgs, 32) {
  const float mine = static_cast<const float*>(args.a)[threadIdx.x];
  float* y = static_cast<float*>(args.y) + threadIdx.x;
  y[0] = __shfl_sync(0xffffffff, mine, 5);
  y[32] = __shfl_xor_sync(0xffffffff, mine, 3);
  y[64] = __shfl_down_sync(0xffffffff, mine, 4);
  y[96] = __shfl_up_sync(0xffffffff, mine, 2, 8);
  y[128] = (float)__ballot_sync(0xffffffff, threadIdx.x % 16 == 1);
}

// y = a backwards within a block; kind: what is wrong with it.
enum Fault : int64_t {
  none,
  no_barrier,
  early_exit,
  two_barriers,
  behind_the_array,
  behind_shared_memory,
  unwritten_shared_memory,
  half_a_warp,
};

EA_KERNEL(probe_reverse, ProbeArgs, 128) {
  EA_SHARED(float, values, [128]);
  const int i = threadIdx.x, first = blockIdx.x * blockDim.x;
  if (args.kind == early_exit && i == 7) return;
  if (args.kind == half_a_warp && i % 32 >= 16) return;
  if (args.kind == half_a_warp) __syncwarp();
  if (args.kind != unwritten_shared_memory || i != 3) {
    values[i] = static_cast<const float*>(args.a)[first + i];
  }
  if (args.kind == behind_shared_memory && i == 0) values[128 + args.count] = 1.0f;
  if (args.kind == two_barriers && i % 2 == 0) {
    __syncthreads();
  } else if (args.kind != no_barrier) {
    __syncthreads();
  }
  float* y = static_cast<float*>(args.y) + first;
  y[i] = values[blockDim.x - 1 - i];
  if (args.kind == behind_the_array) y[blockDim.x + i] = 0.0f;
}

// y[block + 1] = y[block] + 1: right if blocks happen to run in order.
EA_KERNEL(probe_chain, ProbeArgs, 1) {
  float* y = static_cast<float*>(args.y) + blockIdx.x;
  y[1] = y[0] + 1.0f;
}

}  // namespace edgeadapt
