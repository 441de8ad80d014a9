"""GEMMs on raw operands, compared by design and by tile; each call is timed after a write that empties the L2 cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from proofs.gpu import gemms, library
from proofs.gpu.child import Worker
from proofs.gpu.gemms import Gemm

BATCHES: tuple[int, ...] = (128, 1024)
CALLS = 20
FLUSH = 256 * 2**20  # bytes, more than any L2 cache
SLEEP = 3_000_000  # cycles, about 2 ms, for which the device waits so that the host can queue its launches
NEAR = 1e-2  # maximum relative rms between two results in bfloat16; a wrong tap far exceeds it


def tensors(gemm: Gemm) -> gemms.Given:
    """x, weight and the gradient of y, bfloat16, channels_last."""
    generator = torch.Generator().manual_seed(0)
    scales = 1.0, (16 * gemm.x[1]) ** -0.5, 1.0
    x, weight, gy = (
        (torch.randn(shape, generator=generator) * scale).to(library.DEVICE, torch.bfloat16).contiguous(
            memory_format=torch.channels_last) for shape, scale in zip(gemm.shapes(), scales, strict=True))
    return x, weight, gy


def of_library(gemm: Gemm, x: Tensor, weight: Tensor, gy: Tensor) -> Callable[[], Tensor]:
    """PyTorch's convolution: cuDNN's, on a GPU."""
    aten = torch.ops.aten.convolution
    if gemm.kind == "conv_forward":
        return lambda: aten(x, weight, None, (2, 2), (1, 1), (1, 1), gemm.transposed, (0, 0), 1)
    mask = [gemm.kind == "dgrad", gemm.kind == "wgrad", False]
    return lambda: torch.ops.aten.convolution_backward(
        gy, x, weight, None, (2, 2), (1, 1), (1, 1), gemm.transposed, (0, 0), 1, mask)[mask.index(True)]


def gemm(worker: Worker) -> None:
    """The library's convolution, and Triton's on pointers and on tensor descriptors."""
    from fastgan.ops.triton.tiles import Tile

    if reason := library.missing("triton"):
        worker.row("gemm", result="not run", note=reason)
        return
    torch.backends.cudnn.benchmark = True
    for batch in BATCHES:
        for name, one in gemms.gemms(batch).items():
            given = tensors(one)
            expected = of_library(one, *given)
            calls: dict[str, Callable[[], Tensor]] = {
                "library": expected, "pointers": gemms.triton_gemm(one, given, Tile(*gemms.RAW))}
            if library.architecture() >= 90:
                calls["descriptors"] = gemms.triton_gemm(one, given, None)
            worker.each([(f"{name}, {who}", partial(_compare, worker, name, who, one, call, expected, batch))
                         for who, call in calls.items()], batch=str(batch))


def _compare(worker: Worker, name: str, who: str, one: Gemm, call: Callable[[], Tensor], expected: Callable[[], Tensor],
             batch: int) -> None:
    key = {"engine": who, "precision": "bf16", "batch": str(batch)}
    right, ours = expected().double(), call().double()
    apart = float((ours - right).square().mean().sqrt() / right.square().mean().sqrt())
    worker.row(name, "relative rms from the library", apart, result="ok" if apart < NEAR else "wrong", **key)
    seconds = alone(call)
    worker.row(name, "time", 1e6 * seconds, "us", **key)
    worker.row(name, "rate", one.flops / seconds / 1e12, "TFLOP/s", **key)


def alone(call: Callable[[], object], calls: int = CALLS) -> float:
    """Median seconds on the device, with operands that are not in the L2 cache."""
    cuda = library.cuda
    flush = torch.empty(FLUSH, dtype=torch.int8, device=library.DEVICE)
    call()
    pairs = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(calls)]
    cuda.synchronize()
    cuda._sleep(SLEEP)
    for start, end in pairs:
        flush.zero_()
        start.record()
        call()
        end.record()
    cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in pairs) / 1000


def tiles(worker: Worker) -> None:
    """Find the fastest of some tiles for each GEMM of a step, and write them as rules to tiles.json."""
    if reason := library.missing("triton"):
        worker.row("tiles", result="not run", note=reason)
        return
    rules: list[dict[str, object]] = []
    for batch in BATCHES:
        for name, one in gemms.gemms(batch).items():
            worker.each([(name, partial(_search, worker, name, one, batch, rules))], batch=str(batch))


def _search(worker: Worker, name: str, one: Gemm, batch: int, rules: list[dict[str, object]]) -> None:
    from fastgan.ops.triton.tiles import Tile

    given, key = tensors(one), {"precision": "bf16", "batch": str(batch)}
    usual = gemms.triton_gemm(one, given, Tile(*gemms.RAW))
    asked, right = gemms.chosen_for(usual), usual().double()
    took: dict[object, float] = {}
    for tile in gemms.tile_candidates():
        call = gemms.triton_gemm(one, given, tile)
        word = f"{tile.rows}x{tile.columns}x{tile.depth} w{tile.warps} s{tile.stages}"
        try:
            apart = float((call().double() - right).square().mean().sqrt() / right.square().mean().sqrt())
        except Exception as error:  # too much shared memory, or an error of the compiler
            library.cuda.synchronize()  # raises if the device is lost
            worker.row(name, word, result="fact", note=f"{type(error).__name__}: {error}", **key)
            continue
        if not apart < NEAR:
            worker.row(name, word, apart, "relative rms", result="wrong", **key)
            continue
        took[tile] = alone(call, 8)
        worker.row(name, word, one.flops / took[tile] / 1e12, "TFLOP/s", **key)
    before = alone(usual, 8)
    worker.row(name, "usual tile", one.flops / before / 1e12, "TFLOP/s", **key)
    if took and min(took.values()) < before:
        best = min(took, key=lambda tile: took[tile])
        rules += [{**rule, "tile": list(best[:3]), "warps": best.warps, "stages": best.stages}  # type: ignore[index, attr-defined]
                  for rule in asked[:1]]
        gemms.write_tiles(worker.out / "tiles.json", rules)
