"""Part one, the loss: its kernel in every type of logits, on each architecture, under every schedule.

Loss, probability and gradient against float64, each as near as the same formulas in PyTorch operators are. Logits are
those of a D that is sure of some images, beside some that are very large; or of one that is sure, and right, of all:
then loss and gradient are exp(-|l|), whose digits come from an exponential that hardware only approximates.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops.triton import logistic
from proofs.ptx import rule
from proofs.ptx.operations import ARCHITECTURES, WARPS
from proofs.ptx.simulator import executing, schedules

# targets, logits in a part, whether D is sure of all
PARTS = [((1.0,), 1, False), ((0.0,), 7, False), ((1.0, 0.0), 64, False), ((0.9, 0.0), 129, False),
         ((0.0, 0.3, 1.0), 1031, False), ((1.0, 0.0), 5000, False), ((1.0, 0.0), 100, True)]
PRECISIONS = ("bf16", "fp16", "fp32")


class Run(NamedTuple):
    precision: str
    arch: int
    targets: tuple[float, ...]
    size: int  # of a part
    sure: bool
    warps: int

    def __str__(self) -> str:
        return (f"sm_{self.arch} {self.precision} logistic {'+'.join(map(str, self.targets))} x {self.size}"
                f"{' sure' * self.sure}: {self.warps} warps")


def runs(quick: bool) -> Iterator[Run]:
    """Quick: as shipped, and one precision and architecture of each."""
    pairs = list(itertools.product(PRECISIONS, ARCHITECTURES))
    for i, part in enumerate(PARTS):
        for precision, arch in [pairs[i % len(pairs)]] if quick else pairs:
            for warps in [logistic._TILE.warps] if quick else WARPS:
                yield Run(precision, arch, *part, warps)


def draw(run: Run) -> Tensor:
    torch.manual_seed(run.size)
    if run.sure:
        return torch.cat([(2 * target - 1) * (30 + torch.rand(run.size)) for target in run.targets])
    logits = 4 * torch.randn(len(run.targets) * run.size)
    logits[::11] *= 10
    return logits


def evaluate(logits: Tensor, targets: tuple[float, ...], impl: str) -> dict[str, Tensor]:
    logits = logits.detach().requires_grad_()
    loss, probability = ops.logistic_loss(logits, targets, impl=impl)
    incoming = torch.tensor([1.0, -0.75, 3.0])[: len(targets)].to(loss)
    return {"loss": loss.detach(), "probability": probability,
            "gradient": torch.autograd.grad(loss, logits, incoming)[0]}


def execute(ptxsim: Any, run: Run) -> tuple[float, list[str]]:
    """The largest part of an allowance that was used, and what went wrong, in words."""
    logits = draw(run).to(rule.PRECISIONS[run.precision].dtype)
    first: dict[str, Tensor] = {}
    shipped = logistic._TILE
    for schedule in schedules(run.arch):
        logistic._TILE = shipped._replace(warps=run.warps)
        try:
            with executing(ptxsim, run.arch, schedule) as names:
                found = evaluate(logits, run.targets, "triton")
        except Exception as error:  # the simulator's words say where
            return float("inf"), [f"{schedule.name}: {type(error).__name__}: {error}"]
        finally:
            logistic._TILE = shipped
        if names != ["logistic_kernel"]:
            return float("inf"), [f"launched {names}, expected the one kernel"]
        first = first or found
        different = [key for key in first if not torch.equal(first[key], found[key])]
        if different:
            return float("inf"), [f"{schedule.name}: other bits in {', '.join(different)}"]
    eager, exact = evaluate(logits, run.targets, "reference"), evaluate(logits.double(), run.targets, "reference")
    parts = {key: rule.used(first[key], eager[key], value, rule.FLOAT32) for key, value in exact.items()}
    wrong = [f"{key}: {part:.2f} of what is allowed" for key, part in parts.items() if not part <= 1]
    return max(parts.values()), wrong


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Every run's line, as it ends; the failures."""
    failures = []
    for run in runs(quick):
        if match not in str(run):
            continue
        begin = time.perf_counter()
        used, wrong = execute(ptxsim, run)
        print(f"{run}: {used:.2f} of what is allowed, {time.perf_counter() - begin:.1f} s", *wrong, sep="\n    ",
              flush=True)
        failures += [f"{run}: {words}" for words in wrong]
    return failures
