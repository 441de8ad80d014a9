"""The memory of a step: the tensors that are alive together, what autograd keeps of each layer, which batch fits.

    peak(batch)   bytes of all storages alive at once, at most: parameters, moments, gradients, activations, workspaces
                  of the engine; not those of a library's convolutions, the allocator's gaps, the CUDA context

It is counted on fake tensors (`tape.py`), so nothing is allocated. Beyond a small batch the peak grows in a straight
line, by which the largest batch for a device is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.verify.cost import counted
from fastgan.verify.cost.counted import Count, Experiment, Prepared
from fastgan.verify.cost.model import Model, architecture, engine, ours
from fastgan.verify.cost.tape import Tape, recording

GIGABYTES = (8, 16, 24, 80)
_SHOWN = 2**14  # bytes from which a tensor has a line of its own
_LARGE = 512, 1024  # batches through which the line is drawn


class Saved(NamedTuple):
    """A tensor that is kept for a backward pass: its layer ("D main.3"), what it is there, in which pass (from 1)."""

    layer: str
    what: str
    run: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def saved(made: Prepared, arch: int | None = None) -> list[Saved]:
    """What autograd keeps in a step, storage by storage, parameters left out; to be called where `imagined` holds."""
    tape = Tape(made.parameters, [*made.state, *made.batch], made.host)
    found: dict[int, Saved] = {}
    runs: Counter[Any] = Counter()

    def pack(tensor: Tensor) -> Tensor:
        number = tape.number(tensor)
        if number not in found and not isinstance(tensor, torch.nn.Parameter) and tensor.numel():
            layer, what = tape.origins.get(number, ("", "image or label"))
            runs[layer, what, tensor.dim()] += 1
            found[number] = Saved(layer, what, runs[layer, what, tensor.dim()], tuple(tensor.shape),
                                  str(tensor.dtype).removeprefix("torch."), tensor.untyped_storage().nbytes())
        return tensor

    with recording(tape, arch), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made.step(*made.batch)
    return list(found.values())


def estimate(what: Experiment) -> dict[str, int]:
    """Of fastgan's step by PyTorch's operators: parameters ("generator", "discriminator"); bytes of "state", which is
    weights, gradients, Adam's moments and the moving average, and of all that is alive at the "peak"."""
    with counted.imagined():
        made = counted.ours_step(what, "reference")
        peak = counted.recorded(made).peak
    counts = {name: sum(tensor.numel() for key, tensor in made.parameters.items() if key.startswith(letter))
              for name, letter in (("generator", "G"), ("discriminator", "D"))}
    average = counts["generator"] if what.config.train.ema else 0
    return {**counts, "state": 4 * (4 * sum(counts.values()) + average), "peak": peak}


def largest_batch(peak: Callable[[int], int], gigabytes: float) -> int:
    """The largest batch whose peak fits; 0 where none does."""
    small, large = _LARGE
    slope = (peak(large) - peak(small)) / (large - small)
    return max(0, int((gigabytes * 2**30 - peak(small)) / slope + small))


def report(found: Model) -> Iterator[str]:
    """Peaks by batch, the largest batches, and what is saved, eager and fastgan side by side."""
    what, peaks = found.what, {"eager": _Peaks(lambda other: counted.eager(other)[0], found.what),
                               "fastgan": _Peaks(lambda other: ours(other, found.device), found.what)}
    yield f"memory (model): {found.preset}, {what.precision}: tensors alive together, MB; no library's workspaces, no"
    yield "allocator's gaps, no CUDA context"
    yield f"{'batch':16}{'eager':>12}{'fastgan':>12}{'ratio':>8}"
    for batch in sorted({what.batch, 64, 256, *_LARGE}):
        one, two = (peak(batch) for peak in peaks.values())
        yield f"{batch:<16}{one / 2**20:12.1f}{two / 2**20:12.1f}{two / one:8.3f}"
    for size in GIGABYTES:
        yield f"{f'fits in {size} GB':16}" + "".join(f"{largest_batch(peak, size):12}" for peak in peaks.values())
    yield f"\nsaved for the backward passes at batch {what.batch}, MB, parameters left out"
    with counted.imagined():  # not around a yield: whoever reads these lines would live among fake tensors
        kept = {"eager": saved(counted.textbook_step(what)),
                "fastgan": saved(counted.ours_step(what, engine(what)), architecture(found.device))}
    for name, tensors in kept.items():
        yield from _lines(name, tensors)


class _Peaks:
    """The peak by batch, each counted once."""

    def __init__(self, count: Callable[[Experiment], Count], what: Experiment) -> None:
        self._count, self._what = count, what
        self._known: dict[int, int] = {}

    def __call__(self, batch: int) -> int:
        if batch not in self._known:
            self._known[batch] = self._count(self._what._replace(batch=batch)).peak
        return self._known[batch]


def _lines(name: str, found: list[Saved]) -> Iterator[str]:
    yield f"{name}: {sum(one.bytes for one in found) / 2**20:.1f}"
    for one in sorted((one for one in found if one.bytes >= _SHOWN), key=lambda one: (one.layer, one.run, -one.bytes)):
        shape = "x".join(map(str, one.shape))
        yield f"  {one.layer:10} pass {one.run}  {one.what:28}{shape:20}{one.dtype:10}{one.bytes / 2**20:9.2f}"
