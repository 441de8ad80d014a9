"""Kernels for NVIDIA GPUs from sm_80 on; see docs/kernels.md."""
