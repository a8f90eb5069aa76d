"""Launchers of the CUDA kernels in csrc/*.cu: what to launch, as data. Nothing here needs a GPU."""
