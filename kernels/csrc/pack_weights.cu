// Brings all weights of a step into the orders in which convolutions read them, in one launch: each
// is a permutation of axes, a change of type, and zeros behind what is there.
#include "segments.cuh"

namespace edgeadapt {

// One weight in one order. kernels/cuda/pack_weights.py writes it, as 8-byte integers.
struct PackSegment {
  int64_t first_block;
  int64_t source;       // the first element, counted from `weights`
  int64_t destination;  // in bytes from `packed`
  int64_t dtype;        // of what is written
  int64_t shape[5];     // of what is written, contiguous
  int64_t strides[5];   // of these axes in the weight
  int64_t valid;        // of the last axis; the others are zero
};

struct PackWeightsArgs {
  const float* weights;
  uint8_t* packed;
  const PackSegment* segments;
  int64_t count;
};

EA_KERNEL(pack_weights, PackWeightsArgs, segment_threads) {
  const PackSegment& segment = segment_of_block(args.segments, args.count);
  const int64_t* const shape = segment.shape;
  const int64_t count = shape[0] * shape[1] * shape[2] * shape[3] * shape[4];
  void* const to = args.packed + segment.destination;
  for_elements(segment.first_block, count, [&](int64_t i) {
    int rest = (int)i;  // the launcher refuses more than an int counts
    int64_t from = segment.source;
    bool there = true;
#pragma unroll
    for (int axis = 4; axis >= 0; --axis) {
      const int index = rest % (int)shape[axis];
      rest /= (int)shape[axis];
      from += index * segment.strides[axis];
      if (axis == 4) there = index < segment.valid;
    }
    write(to, segment.dtype, i, there ? args.weights[from] : 0.0f);
  });
}

}  // namespace edgeadapt
