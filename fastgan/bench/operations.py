"""Single passes: forward, dgrad and wgrad of every convolution of a training step, each by itself.

Problems, candidates, inputs and the rule of what is right are the plan's (`fastgan.ops.tuning`), which also knows each
engine's variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.bench import steps
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.job import Job, Judged, sets_for
from fastgan.config import Config
from fastgan.ops.layers import output_size
from fastgan.ops.numerics import products
from fastgan.ops.tuning import Problem, candidates, check, measure
from fastgan.ops.tuning.example import Example, caller, draw
from fastgan.train.step import GANStep
from fastgan.trainer.plan_setup import like_a_batch
from fastgan.verify.checks import shape_of

FEW = 2  # images, on which a step is recorded


class Pass(Job):
    """Calls of one candidate, on random inputs of the problem."""

    alone = True

    def __init__(self, entry: Entry, contender: Contender, device: torch.device) -> None:
        assert entry.problem is not None
        self.problem, problem = entry.problem, entry.problem
        super().__init__(sets_for(int(moved(problem))))
        self.images = entry.batch
        example = draw(problem, device)
        self.calls: list[Callable[[], tuple[Tensor, ...]]] = [
            caller(contender.engine, _varied(example, seed, contender.nchw)) for seed in range(self.sets)]

    def __call__(self, index: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.calls[index % self.sets]()

    def used(self, judged: Judged | None) -> tuple[float, str]:
        assert judged is not None
        reference, exact = ([judged.exact[f"{who} {i}"] for i in range(len(judged.exact) // 2)]
                            for who in ("reference", "exact"))
        ours = tuple(one.cpu() for one in self(0))
        return check.used(self.problem, ours, tuple(reference), tuple(exact))


def problems(config: Config, precision: str, device: torch.device) -> list[Problem]:
    """Those of convolutions in a step, for the configuration's batch, the one with most operations first."""
    generator, discriminator = steps.networks(config, device)
    step = GANStep(generator, discriminator, config.model, config.train, precision=precision)
    batch = like_a_batch(FEW, shape_of(config), False, device)
    found = [_widened(problem, config.data.batch // FEW) for problem in measure.record(lambda: step(*batch))
             if problem.kind in candidates.CONVOLUTIONS]
    return sorted({name(problem): problem for problem in found}.values(), key=flops, reverse=True)


def name(problem: Problem) -> str:
    """Such as "wgrad conv 128x16x16 -> 256": without batch, dtype and activation."""
    to = problem.weight[1] if problem.transposed else problem.weight[0]
    kind = "convT" if problem.transposed else "conv"
    return f"{problem.kind} {kind} {'x'.join(map(str, problem.x[1:]))} -> {to}"


def flops(problem: Problem) -> float:
    """Of a direct convolution: each output element is as many products and sums as a weight's filter has elements."""
    pixels = problem.x if problem.transposed else (*problem.x[:2], *_made(problem))
    return 2.0 * problem.x[0] * math.prod(pixels[2:]) * math.prod(problem.weight)


def moved(problem: Problem) -> float:
    """The fewest bytes: each input read once, each output written once; vectors of channels left out."""
    element = getattr(torch, problem.dtype).itemsize
    x, weight = math.prod(problem.x) * element, math.prod(problem.weight) * element
    to = problem.weight[1] if problem.transposed else problem.weight[0]
    y = problem.x[0] * to * math.prod(_made(problem)) * element
    mask = problem.kind == "conv_act_forward" and problem.activation == "leaky_relu" and not problem.inplace
    return x + weight + y + (y / element if mask else 0)


def judge(entry: Entry, precisions: list[str], device: torch.device) -> Judged:
    """The reference's results in float64 and as they are, which `check.used` compares."""
    assert entry.problem is not None
    example = draw(entry.problem, device)
    with products(precisions[0]), torch.no_grad():
        found = {who: caller("reference", given)()
                 for who, given in (("reference", example), ("exact", example.double()))}
    return Judged({f"{who} {i}": tensor.cpu() for who, tensors in found.items() for i, tensor in enumerate(tensors)},
                  {}, flops(entry.problem), moved(entry.problem))


def _varied(example: Example, seed: int, nchw: bool) -> Example:
    """Other numbers in the same places: images in another order. In NCHW where that is asked for."""
    def vary(part: Tensor) -> Tensor:
        moved = torch.empty_like(part).copy_(torch.roll(part, seed, 0))
        return moved.contiguous() if nchw else moved

    images = 2 if example.problem.kind in ("dgrad", "wgrad") else 1  # g and x, or x
    return example._replace(arguments=(*map(vary, example.arguments[:images]), *example.arguments[images:]))


def _widened(problem: Problem, factor: int) -> Problem:
    return problem._replace(x=(problem.x[0] * factor, *problem.x[1:]))


def _made(problem: Problem) -> tuple[int, int]:
    """(Ho, Wo)"""
    return output_size(problem.x[2:], problem.weight[2:], problem.stride, problem.padding, problem.output_padding,
                       problem.transposed)
