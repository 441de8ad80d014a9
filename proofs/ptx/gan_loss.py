"""Part one, the loss: its kernel with every dtype of logits, on each architecture, under every schedule.

The errors of loss, score and gradient relative to float64 are compared with those of the same formulas in PyTorch
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
from fastgan.ops.triton import gan_loss
from proofs.ptx import kernels, rule
from proofs.ptx.operations import ARCHITECTURES, WARPS

# kind of the loss, targets, logits in a part, whether D is certain about all
PARTS = [("logistic", (1.0,), 1, False), ("logistic", (0.0,), 7, False), ("logistic", (1.0, 0.0), 64, False),
         ("logistic", (0.9, 0.0), 129, False), ("logistic", (0.0, 0.3, 1.0), 1031, False),
         ("logistic", (1.0, 0.0), 5000, False), ("logistic", (1.0, 0.0), 100, True), ("hinge", (1.0, 0.0), 64, False),
         ("hinge", (0.0, 0.3, 1.0), 1031, False), ("wgan", (1.0,), 7, False), ("wgan", (1.0, 0.0), 129, False)]
PRECISIONS = ("bf16", "fp16", "fp32")


class Run(NamedTuple):
    precision: str
    arch: int
    kind: str
    targets: tuple[float, ...]
    size: int  # of a part
    sure: bool
    warps: int

    def __str__(self) -> str:
        return (f"sm_{self.arch} {self.precision} {self.kind} loss {'+'.join(map(str, self.targets))} x {self.size}"
                f"{' sure' * self.sure}: {self.warps} warps")


def runs(quick: bool) -> Iterator[Run]:
    """All runs; quick: with the default number of warps, in one precision on one architecture each."""
    pairs = list(itertools.product(PRECISIONS, ARCHITECTURES))
    for i, part in enumerate(PARTS):
        for precision, arch in [pairs[i % len(pairs)]] if quick else pairs:
            for warps in [gan_loss._TILE.warps] if quick else WARPS:
                yield Run(precision, arch, *part, warps)


def draw(run: Run) -> Tensor:
    torch.manual_seed(run.size)
    if run.sure:
        return torch.cat([(2 * target - 1) * (30 + torch.rand(run.size)) for target in run.targets])
    logits = 4 * torch.randn(len(run.targets) * run.size)
    logits[::11] *= 10
    return logits


def evaluate(run: Run, logits: Tensor, impl: str) -> dict[str, Tensor]:
    logits = logits.detach().requires_grad_()
    loss, score = ops.gan_loss(logits, run.targets, run.kind, impl=impl)
    incoming = torch.tensor([1.0, -0.75, 3.0])[: len(run.targets)].to(loss)
    return {"loss": loss.detach(), "score": score,
            "gradient": torch.autograd.grad(loss, logits, incoming)[0]}


def execute(ptxsim: Any, run: Run) -> tuple[float, list[str]]:
    """The largest error relative to the allowed one, and messages for what failed."""
    logits = draw(run).to(rule.PRECISIONS[run.precision].dtype)
    with patch.object(gan_loss, "_TILE", gan_loss._TILE._replace(warps=run.warps)):
        ours = kernels.every_schedule(ptxsim, run.arch, lambda: evaluate(run, logits, "triton"),
                                      ["gan_loss_kernel"])
    return kernels.judge(ours, evaluate(run, logits, "reference"), evaluate(run, logits.double(), "reference"),
                         lambda _: rule.FLOAT32)


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all runs, print a line for each, and return the failures."""
    return kernels.prove(runs(quick), partial(execute, ptxsim), match)
