"""Part one, the loss: its kernel with every dtype of logits, on each architecture, under every schedule.

The errors of loss, probability and gradient relative to float64 are compared with those of the same formulas in PyTorch
operators. Some logits are very large. In one case D is certain and right about all images: then loss and gradient are
exp(-|l|), and their accuracy depends on an exponential that the hardware only approximates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops.triton import logistic
from proofs.ptx import kernels, rule
from proofs.ptx.operations import ARCHITECTURES, WARPS

# targets, logits in a part, whether D is certain about all
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
    """All runs; quick: with the default number of warps, in one precision on one architecture each."""
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
    """The largest error relative to the allowed one, and messages for what failed."""
    logits = draw(run).to(rule.PRECISIONS[run.precision].dtype)
    with patch.object(logistic, "_TILE", logistic._TILE._replace(warps=run.warps)):
        ours = kernels.every_schedule(ptxsim, run.arch, lambda: evaluate(logits, run.targets, "triton"),
                                      ["logistic_kernel"])
    return kernels.judge(ours, evaluate(logits, run.targets, "reference"),
                         evaluate(logits.double(), run.targets, "reference"), lambda _: rule.FLOAT32)


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all runs, print a line for each, and return the failures."""
    return kernels.prove(runs(quick), partial(execute, ptxsim), match)
