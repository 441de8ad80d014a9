"""Whether this version of Triton orders copies to shared memory before the tensor cores that read it.

Tensor cores of sm_90 and sm_100 read shared memory through the asynchronous proxy, so copies by threads must be
followed by `fence.proxy.async`. Triton 3.6 omits it in pipelined loops (triton-lang/triton#9610), where products may
then read stale data; loops with one stage have it. A small kernel is compiled to detect this.
"""

from __future__ import annotations

import warnings
from functools import cache

import triton
import triton.language as tl

_SIDE = 64


@triton.jit
def product_kernel(a, b, c, steps, B: tl.constexpr):
    """c [B, B] = a [B, steps * B] @ b [steps * B, B]."""
    i = tl.arange(0, B)
    total = tl.zeros((B, B), tl.float32)
    for step in range(0, tl.maximum(steps, 1)):
        k = step * B + i
        total = tl.dot(tl.load(a + i[:, None] * (steps * B) + k[None, :]), tl.load(b + k[:, None] * B + i[None, :]),
                       total)
    tl.store(c + i[:, None] * B + i[None, :], total)


@cache
def missing(arch: int) -> bool:
    """Whether pipelined products for an architecture lack the fence."""
    if not 90 <= arch < 120 or triton.knobs.runtime.interpret:
        return False
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    source = ASTSource(product_kernel, {"a": "*bf16", "b": "*bf16", "c": "*fp32", "steps": "i32", "B": "constexpr"},
                       {"B": _SIDE}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_stages": 3, "num_warps": 4})
    return "fence.proxy.async" not in compiled.asm["ptx"]


@cache
def warn(arch: int) -> None:
    """Warn once that this version of Triton omits the fence."""
    warnings.warn(f"fastgan: Triton {triton.__version__} omits a fence in pipelined products for sm_{arch} "
                  "(triton-lang/triton#9610); kernels run without pipelining, Triton 3.7 or newer runs them faster",
                  stacklevel=2)
