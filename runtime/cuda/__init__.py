"""The CUDA engine: a plan's operations as launches, and the device that runs them."""
