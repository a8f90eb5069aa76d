// Convolution on tensor cores, products of f16.
#include "conv_mma.cuh"

namespace edgeadapt {

EA_CONV_MMA(f16, F16Math)

}  // namespace edgeadapt
