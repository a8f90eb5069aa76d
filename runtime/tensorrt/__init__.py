"""TensorRT: engines of a bundle's graphs, built once and run on the buffers of the CUDA engine."""
