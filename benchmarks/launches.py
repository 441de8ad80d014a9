"""Operations and bytes of a launch of a Triton kernel, from its arguments as `fastgan.ops.triton.launch.by_name`
returns them: tensors, or objects with `nbytes`.

    flops   2 * N * Ho * Wo * Co * Ci * kh * kw for a convolution and its weight gradient, 2 * N * Hi * Wi * Ci * Co *
            kh * kw for a transposed convolution: every tap, including those outside the image
    bytes   of the tensors that it reads, and of those that it writes, each once

`python -m proofs.ptx --only traffic` compares both with the counts of a simulator that executes the compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastgan.ops.specs import GAN_LOSSES

OUTPUTS = {"convolve_kernel": ("y", "mask", "partials", "blocks", "result"), "wgrad_kernel": ("gw",),
           "convolve_tma_kernel": ("y", "mask", "partials", "blocks", "result"), "wgrad_tma_kernel": ("gw", "partials"),
           "bn_statistics_kernel": ("partials", "blocks", "result"),
           "bn_act_forward_kernel": ("a", "stats", "running_mean", "running_var", "tracked"),
           "bn_backward_sums_kernel": ("partials", "blocks", "result", "of_all"), "bn_backward_apply_kernel": ("g",),
           "act_backward_kernel": ("g",), "sum_kernel": ("out",), "copy_unless_kernel": ("targets",),
           "gan_loss_kernel": ("gradient", "loss", "score"), "gradient_norm_kernel": ("partials", "result"),
           "adam_kernel": ("parameters", "first", "second", "copies", "averages", "counts", "average_updates"),
           "finish_step_kernel": ("partials", "out", "halted", "t", "rows"),
           "spectral_rows_kernel": ("products", "u", "us", "sigmas"),
           "spectral_columns_kernel": ("vs", "partials", "sigmas"),
           "spectral_scale_kernel": ("normalized", "vs", "v"), "spectral_dot_kernel": ("partials", "dots"),
           "spectral_gradient_kernel": ("out",)}
UPDATED = ("running_mean", "running_var", "tracked", "partials", "blocks", "parameters", "first", "second", "averages",
           "counts", "average_updates", "t")  # also read


def flops(kernel: str, given: dict[str, Any]) -> int:
    """Operations of the layer of a GEMM kernel; 0 for other kernels."""
    if "CI" not in given:
        return 0
    coarse = given["coarse"] if "coarse" in given else given["x" if given["TRANSPOSED"] else "y"]
    return 2 * math.prod(coarse.shape[:3]) * given["CI"] * given["CO"] * given["KH"] * given["KW"]


def tensors(kernel: str, given: dict[str, Any]) -> Iterator[tuple[Any, bool, bool]]:
    """(tensor, whether it is read, whether it is written) of a launch."""
    measured = kernel == "convolve_kernel" and given["statistics"] is not None  # from y, which is read back
    uses_running = kernel == "bn_act_forward_kernel" and given["statistics"] is None
    absent = {"averages": not given.get("AVERAGED"), "average_updates": not given.get("AVERAGED"), "tickets": True}
    absent |= {f"copies{i}": not copied for i, copied in enumerate(given.get("COPIED", ()))}
    for numbered, value in given.items():
        name = numbered.rstrip("0123456789")  # items of a tuple
        if hasattr(value, "nbytes") and not (absent.get(name) or absent.get(numbered)):
            written = name in OUTPUTS[kernel] and not (uses_running and name in UPDATED)
            yield value, not written or name in UPDATED or (measured and name == "y"), written


def moved(kernel: str, given: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the tensors that a launch reads, and of those that it writes."""
    read = written = 0
    for tensor, reads, writes in tensors(kernel, given):
        read += tensor.nbytes * reads
        written += tensor.nbytes * writes
    return read, written


def layer(kernel: str, given: dict[str, Any]) -> str:
    """The layer of a launch."""
    if "coarse" in given:
        (h, w), window = given["coarse"].shape[1:3], f"k{given['KH']}x{given['KW']}"
        return f"{given['CO']}x{given['CI']} {window} {h}x{w}"
    if "CI" in given:
        (h, w), (ho, wo) = given["x"].shape[1:3], given["y"].shape[1:3]
        words = [f"{given['CI']}->{given['CO']}", f"k{given['KH']}x{given['KW']}s{given['SH']}", f"{h}x{w}->{ho}x{wo}"]
        words += [given["ACTIVATION"]] * (given["ACTIVATION"] != "none")
        words += [name for name in ("mask", "statistics") if given.get(name) is not None]
        return " ".join(words + ["transposed"] * given["TRANSPOSED"] + ["narrow"] * bool(given.get("NARROW")))
    if kernel == "gan_loss_kernel":
        return f"{GAN_LOSSES[given['KIND']]}, {len(given['ones'])} parts"
    return f"{given['C']} channels" if "C" in given else ""
