// value = value_scale * sum |a - b| and, in the same pass, grad = grad_scale * sign(a - b). An
// element moves 12 bytes in f32 and 6 in f16 and bf16: bound by memory. Each thread adds up 16
// differences, each block 4096, a second launch the blocks in float64: what is added to what
// depends on sizes alone.
#include "walk.cuh"

namespace edgeadapt {

constexpr int threads = 256;
constexpr int together = 4;  // chunks of a thread

struct L1LossArgs {
  Chunks chunks;
  Operand a, b;
  Operand grad;  // may be absent; may be the memory of a or b in the same layout
  int64_t blocks;
  double value_scale, grad_scale;
  void* value;    // float
  void* scratch;  // float (blocks)
};

struct Pair {
  Raw a, b;  // what is behind the end of a row is 0 in both
};

// Sum of |a - b| of a chunk, and its gradient.
EA_DEVICE float compare(const L1LossArgs& args, const Pair& pair, int64_t number, int count) {
  float a[chunk], b[chunk], grad[chunk], sum = 0.0f;
  unpack(args.a.dtype, pair.a, a);
  unpack(args.b.dtype, pair.b, b);
  const float scale = (float)args.grad_scale;
#pragma unroll
  for (int i = 0; i < chunk; ++i) {
    const float difference = a[i] - b[i];
    sum += fabsf(difference);
    // What is not a number stays so.
    grad[i] = difference > 0.0f ? scale : difference < 0.0f ? -scale : difference * 0.0f;
  }
  if (args.grad.data) write_chunk(args.chunks, args.grad, number, count, grad);
  return sum;
}

EA_KERNEL(l1_loss, L1LossArgs, threads) {
  const int64_t first = (int64_t)blockIdx.x * threads * together + threadIdx.x;
  Pair pairs[together] = {};
  int count[together];
#pragma unroll
  for (int k = 0; k < together; ++k) {
    const int64_t number = first + k * threads;
    count[k] = number < args.chunks.axes.count ? count_of(args.chunks, number) : 0;
    if (!count[k]) continue;
    pairs[k].a = fetch_chunk(args.chunks, args.a, number, count[k]);
    pairs[k].b = fetch_chunk(args.chunks, args.b, number, count[k]);
  }
  float sums[together];
#pragma unroll
  for (int k = 0; k < together; ++k)
    sums[k] = count[k] ? compare(args, pairs[k], first + k * threads, count[k]) : 0.0f;
  const float sum = block_sum<threads>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x == 0) static_cast<float*>(args.scratch)[blockIdx.x] = sum;
}

// One block.
EA_KERNEL(l1_loss_value, L1LossArgs, threads) {
  EA_SHARED(double, sums, [threads]);
  const int thread = threadIdx.x;
  double sum = 0.0;
  for (int64_t i = thread; i < args.blocks; i += threads)
    sum += static_cast<const float*>(args.scratch)[i];
  sums[thread] = sum;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) *static_cast<float*>(args.value) = (float)(args.value_scale * sums[0]);
}

}  // namespace edgeadapt
