"""Our Triton kernels in CUDA graphs."""
