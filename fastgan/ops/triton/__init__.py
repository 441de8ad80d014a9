"""One kernel for each stage and direction, on NVIDIA GPUs from sm_80 on; see docs/kernels.md."""
