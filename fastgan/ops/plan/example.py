"""Random inputs for a problem, in its shapes, strides and dtypes, and what a candidate makes of them.

No input of a rectifier is near its kink: there a rounding decides between two slopes, and says nothing of who rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.layers import Activation, Convolution, Measurement, Owed
from fastgan.ops.plan import candidates
from fastgan.ops.plan.candidates import Run
from fastgan.ops.plan.problem import Problem

KINK, AWAY = 2**-5, 0.5  # nearer to the kink than one, an input is moved to where the other is rectified
EPS, MOMENTUM = 1e-5, 0.1


class Example(NamedTuple):
    """x, or logits. y, statistics, gy, gstatistics: what comes into a backward pass, None elsewhere."""

    problem: Problem
    x: Tensor
    owed: Owed
    convolution: Convolution | None
    y: Tensor | None = None
    gy: Tensor | None = None
    statistics: Tensor | None = None
    gstatistics: Tensor | None = None

    def double(self) -> Example:
        """The same numbers in float64."""
        (statistics, gamma, beta, activation), convolution = self.owed, self.convolution
        wide = None if convolution is None else convolution._replace(
            weight=convolution.weight.double(), bias=_double(convolution.bias))
        return Example(self.problem, self.x.double(),
                       Owed(_double(statistics), _double(gamma), _double(beta), activation), wide,
                       *map(_double, self[4:]))


def draw(problem: Problem, device: torch.device) -> Example:
    """From a generator of its own: the global one's state does not change."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: str = "float32", last: bool = False) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))
        return made.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else made

    def spread(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) + 0.5

    x, owed = normal(*problem.x, dtype=problem.dtype, last=problem.x_last), Owed()
    activation = Activation(problem.activation, problem.negative_slope)
    if problem.normalised:
        groups, channels = problem.normalised, problem.x[1]
        owed = Owed(torch.stack([normal(groups, channels), spread(groups, channels)]), spread(channels),
                    normal(channels), activation)
    else:
        owed = Owed(activation=activation)
    if problem.kind != "loss":
        x = _away_from_kinks(x, owed)
    convolution = None
    if problem.weight:
        one, two = problem.weight[:2]
        weight = normal(*problem.weight, dtype=problem.weight_dtype, last=problem.weight_last) / weight_scale(problem)
        bias = normal(two if problem.transposed else one, dtype=problem.weight_dtype) if problem.bias else None
        convolution = Convolution(weight, bias, _pair(problem.stride), _pair(problem.padding),
                                  _pair(problem.output_padding), problem.transposed)
    if problem.kind == "apply_backward":
        return Example(problem, x, owed, None, gy=normal(*problem.x, dtype=problem.dtype, last=True))
    if convolution is None or problem.kind == "forward":
        return Example(problem, x, owed, convolution)
    shape = len(x), convolution.channels()[1], *convolution.size(x)
    y, gy = (normal(*shape, dtype=problem.dtype, last=True) for _ in range(2))
    if not problem.spread:
        return Example(problem, x, owed, convolution, y, gy, x.new_empty(0, dtype=torch.float32))
    # y's own statistics: what flows through the variance then sums to zero, which engines take for granted
    groups, measurement = problem.groups, Measurement(EPS if problem.spread == "rstd" else None)
    statistics = reference.measured(y, groups, measurement)
    count = y.numel() // (groups * shape[1])
    return Example(problem, x, owed, convolution, y, gy, statistics, count * normal(2, groups, shape[1]))


def weight_scale(problem: Problem) -> float:
    """That a product of unit inputs is of about their size."""
    inputs = problem.weight[0] if problem.transposed else problem.weight[1]
    return float(inputs * problem.weight[2] * problem.weight[3]) ** 0.5


def caller(run: Run, candidate: str, example: Example) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the candidate: a forward pass updates running statistics that start anew with each `caller`."""
    problem, x, owed, convolution = example[:4]
    if problem.kind == "loss":
        targets = [1.0 - group % 2 for group in range(problem.groups)]
        return lambda: run(candidate, "logistic_loss", x, targets)
    if problem.kind == "apply":
        return lambda: (run(candidate, "normalise_activate", x, owed),)
    if problem.kind == "apply_backward":
        return lambda: run(candidate, "normalise_activate_backward", example.gy, x, owed)
    assert convolution is not None
    if problem.kind == "forward":
        measurement = _measurement(example, convolution)
        running = () if measurement is None else (measurement.running_mean, measurement.running_var)

        def forward() -> tuple[Tensor, ...]:
            out = candidates.stage(run, candidate, x, owed, convolution, problem.groups, measurement, True)
            return *out, *(one for one in running if one is not None)
        return forward
    x_too, weight_too = problem.kind == "dgrad", problem.kind == "wgrad"
    needs = x_too, weight_too, weight_too and problem.bias, x_too and problem.normalised > 0
    y, gy, statistics = example.y, example.gy, example.statistics
    assert y is not None and gy is not None and statistics is not None
    return lambda: candidates.stage_backward(run, candidate, candidate, gy, example.gstatistics, y, statistics, x, owed,
                                             convolution, problem.spread or "var", True, needs)


def _measurement(example: Example, convolution: Convolution) -> Measurement | None:
    if not example.problem.spread:
        return None
    if example.problem.spread == "var":
        return Measurement()
    like = example.x.new_zeros(convolution.channels()[1], dtype=torch.promote_types(example.x.dtype, torch.float32))
    return Measurement(EPS, like, torch.ones_like(like), torch.zeros((), dtype=torch.int64, device=like.device),
                       MOMENTUM)


def _away_from_kinks(x: Tensor, owed: Owed) -> Tensor:
    """x with those elements moved that would be rectified near 0."""
    if owed.activation.name not in ("relu", "leaky_relu"):
        return x
    scale, shift = x.new_ones(1, 1, 1, 1, 1).float(), x.new_zeros(1, 1, 1, 1, 1).float()
    if owed.statistics is not None and owed.gamma is not None and owed.beta is not None:
        (mean, rstd), gamma, beta = owed.statistics, owed.gamma, owed.beta
        scale, shift = ((part.view(len(mean), 1, -1, 1, 1)) for part in (gamma * rstd, beta - gamma * rstd * mean))
    parts = x.float().unflatten(0, (len(scale), -1))  # [G, N / G, C, H, W]
    moved = torch.where((scale * parts + shift).abs() < KINK, (AWAY - shift) / scale, parts).flatten(0, 1).to(x.dtype)
    return torch.empty_like(x).copy_(moved)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[1]


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()
