// Convolution on tensor cores, products of bf16.
#include "conv_mma.cuh"

namespace edgeadapt {

EA_CONV_MMA(bf16, Bf16Math)

}  // namespace edgeadapt
