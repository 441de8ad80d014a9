"""What a launch of a Triton kernel computes and moves, from its arguments: tensors, or what has their `nbytes`.

    flops   2 * N * Ho * Wo * Co * Ci * kh * kw of a convolution, its weight gradient likewise, 2 * N * Hi * Wi * Ci *
            Co * kh * kw of a transposed one: every tap, even those outside the image
    bytes   of the tensors that it reads, and of those that it writes, each once

`python -m proofs.ptx --only traffic` compares both with the counters of the compiled code as it is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OUTPUTS = {"convolve_kernel": ("y", "mask", "partials", "blocks", "statistics"), "wgrad_kernel": ("gw",),
           "bn_statistics_kernel": ("partials", "blocks", "statistics"),
           "bn_act_forward_kernel": ("a", "stats", "running_mean", "running_var", "tracked"),
           "bn_backward_sums_kernel": ("partials", "blocks", "sums"), "bn_backward_apply_kernel": ("g",),
           "act_backward_kernel": ("g",), "sum_kernel": ("out",),
           "logistic_kernel": ("gradient", "loss", "probability")}
UPDATED = ("running_mean", "running_var", "tracked", "partials", "blocks")  # read, too


def flops(kernel: str, given: dict[str, Any]) -> int:
    """Of the layer of a GEMM kernel; 0 for other kernels."""
    if kernel == "convolve_kernel":
        images = given["x"].shape[0]
        pixels = given["H"] * given["W"] if given["TRANSPOSED"] else given["HO"] * given["WO"]
        return int(2 * images * pixels * given["CI"] * given["CO"] * given["KH"] * given["KW"])
    if kernel == "wgrad_kernel":
        return int(2 * given["coarse"].shape[0] * given["HC"] * given["WC"] * given["A"] * given["B"] * given["KH"]
                   * given["KW"])
    return 0


def tensors(kernel: str, given: dict[str, Any]) -> Iterator[tuple[Any, bool, bool]]:
    """(tensor, whether it is read, whether it is written) of a launch."""
    measured = kernel == "convolve_kernel" and given["statistics"] is not None  # from y, which is read back
    uses_running = kernel == "bn_act_forward_kernel" and given["statistics"] is None
    for name, value in given.items():
        if hasattr(value, "nbytes") and name != "tickets":
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
    if kernel == "convolve_kernel":
        parts = [f"{given['CI']}->{given['CO']}", f"k{given['KH']}x{given['KW']}s{given['SH']}",
                 f"{given['H']}x{given['W']}->{given['HO']}x{given['WO']}"]
        parts += [given["ACTIVATION"]] * (given["ACTIVATION"] != "none")
        parts += [name for name in ("mask", "statistics") if given[name] is not None]
        return " ".join(parts + ["transposed"] * given["TRANSPOSED"] + ["narrow"] * given["NARROW"])
    if kernel == "wgrad_kernel":
        parts = [f"{given['A']}x{given['B']}", f"k{given['KH']}x{given['KW']}", f"{given['HC']}x{given['WC']}"]
        return " ".join(parts + ["narrow"] * given["NARROW"])
    if kernel == "logistic_kernel":
        return f"{len(given['ones'])} parts"
    return f"{given['C']} channels" if "C" in given else ""
