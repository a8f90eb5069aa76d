// Values from one tensor into another of the same shape, whatever their types and strides.
#include "device.cuh"

namespace edgeadapt {

struct CopyArgs {
  Tensor x, y;
};

// One thread per element of y, which is written with =.
EA_KERNEL(copy, CopyArgs, 256) {
  const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size(args.y)) return;
  const float value = read(args.x.data, args.x.dtype, offset(args.x, index));
  write(args.y.data, args.y.dtype, offset(args.y, index), value);
}

struct FillArgs {
  Tensor y;
  double value;
};

EA_KERNEL(fill, FillArgs, 256) {
  const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size(args.y)) return;
  write(args.y.data, args.y.dtype, offset(args.y, index), (float)args.value);
}

}  // namespace edgeadapt
