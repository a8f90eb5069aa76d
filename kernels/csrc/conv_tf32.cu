// Convolution on tensor cores, products of tf32.
#include "conv_mma.cuh"

namespace edgeadapt {

EA_CONV_MMA(tf32, Tf32Math)

}  // namespace edgeadapt
