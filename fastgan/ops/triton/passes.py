"""The passes of `fastgan/ops/passes.py` in Triton kernels."""

from fastgan.ops.triton.logistic import logistic_loss

__all__ = ["logistic_loss"]
