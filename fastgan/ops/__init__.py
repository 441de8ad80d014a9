"""The fused operation of DCGANs, and their loss, as functions.

`impl` names the engine: "reference" consists of PyTorch operators; "native" of C++ and CUDA C++ kernels around a
convolution of PyTorch or our own; "triton" of kernels for NVIDIA GPUs from sm_80 on, which also run in Triton's
interpreter. "auto" uses the measured choice for each pass (`fastgan.ops.tuning`). Without a measurement it is "native"
on a CPU if that was compiled, and "reference" otherwise.
"""

from fastgan.ops.engines import chain
from fastgan.ops.functional import conv_bn_act, conv_transpose_bn_act, gan_loss

__all__ = ["chain", "conv_bn_act", "conv_transpose_bn_act", "gan_loss"]
