"""Random arguments for a problem's pass, in its shapes, strides and dtypes, and calls of candidates with them.

In passes that compute gradients, inputs of rectifiers are kept away from 0, where a rounding error would select the
slope. Images and outputs of convolutions have about unit size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.ops import dispatch, torch_ops
from fastgan.ops.specs import Activation, ConvSpec, NormSpec, RunningStats
from fastgan.ops.tuning import candidates
from fastgan.ops.tuning.problem import Problem

KINK, AWAY = 2**-5, 0.5  # an input closer than KINK to the kink of a rectifier is moved to AWAY


class Example(NamedTuple):
    """A problem and arguments for its pass."""

    problem: Problem
    arguments: tuple[Any, ...]

    def double(self) -> Example:
        """The same numbers in float64."""
        return self._replace(arguments=tuple(_each(_double, one) for one in self.arguments))


def draw(problem: Problem, device: torch.device) -> Example:
    """Random arguments from a separate generator, so that the state of the global one does not change."""
    generator, groups = torch.Generator(device).manual_seed(0), max(problem.groups, 1)

    def normal(*shape: int, dtype: str = "float32", last: bool = False) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))
        return made.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else made

    def about_one(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) + 0.5

    def with_weight() -> tuple[Any, ...]:
        one, two = problem.weight[:2]
        weight = normal(*problem.weight, dtype=problem.weight_dtype, last=problem.weight_last) / _scale(problem)
        bias = normal(two if problem.transposed else one, dtype=problem.weight_dtype) if problem.bias else None
        conv = ConvSpec(_pair(problem.stride), _pair(problem.padding), _pair(problem.output_padding),
                        problem.transposed)
        if problem.kind == "conv_forward":
            return x, weight, bias, conv, problem.groups
        if problem.kind == "conv_act_forward":
            return x, weight, bias, conv, activation
        g = normal(len(x), conv.channels(weight)[1], *conv.output_size(x, weight), dtype=problem.dtype, last=True)
        return g, x, weight, conv

    def with_norm() -> tuple[Any, ...]:
        channels = problem.x[1]
        count = max(x.numel() // (channels * groups), 2)  # one of several processes may have one element
        gamma, beta = about_one(channels), normal(channels)
        if problem.kind == "bn_act_forward":
            given = torch.stack(torch_ops.measure(x, groups)) if problem.statistics == "given" else None
            running = RunningStats(normal(channels), about_one(channels), torch.zeros((), dtype=torch.int64,
                                                                                      device=device))
            norm = NormSpec(problem.statistics != "running", groups=groups)
            return x, given, gamma, beta, running, count, norm, activation
        stats = torch.stack([normal(groups, channels), about_one(groups, channels)])
        y = normal(*problem.x, dtype=problem.dtype, last=True)
        if activation.name in ("relu", "leaky_relu"):
            y = _away_from_kinks(y, stats, gamma, beta)
        if problem.kind == "bn_backward_sums":
            return x, y, stats, gamma, beta, activation
        sums = None if problem.statistics == "running" else count * normal(2, groups, channels)
        return x, y, stats, gamma, beta, sums, count, activation

    x = normal(*problem.x, dtype=problem.dtype, last=problem.x_last)
    activation = Activation(problem.activation, problem.negative_slope, problem.inplace)
    if problem.kind == "gan_loss":
        return Example(problem, (x, [1.0 - group % 2 for group in range(groups)], problem.loss))
    if problem.kind == "act_backward":
        z = normal(*problem.x, dtype=problem.dtype, last=True)
        masked = activation.keeps_mask()
        saved = torch_ops.pack_bits(z > 0) if masked else torch_ops.activate(z, activation._replace(inplace=False))
        return Example(problem, (x, saved, activation))
    return Example(problem, with_weight() if problem.weight else with_norm())


def caller(candidate: str, example: Example) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the candidate, which raises an error if a kernel fails. It also returns the running statistics, which
    are copied for each `caller`."""
    arguments = [_each(Tensor.clone, one) if isinstance(one, RunningStats) else one for one in example.arguments]
    running = [part for one in arguments if isinstance(one, RunningStats) for part in one[:2]]

    def call() -> tuple[Tensor, ...]:
        out = candidates.called(_directly, candidate, example.problem.kind, *arguments)
        return *(out if isinstance(out, tuple) else (out,)), *running
    return call


def _directly(engine: str, name: str, *arguments: Any, **options: Any) -> Any:
    return dispatch.bound(engine, name)(*arguments, **options)


def _scale(problem: Problem) -> float:
    """The divisor of a weight for results of unit size."""
    inputs = problem.weight[0] if problem.transposed else problem.weight[1]
    return float(inputs * problem.weight[2] * problem.weight[3]) ** 0.5


def _away_from_kinks(y: Tensor, stats: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """y, with elements moved whose z would be near 0."""
    mean, rstd = stats
    scale, shift = (part[:, None, :, None, None] for part in (gamma * rstd, beta - gamma * rstd * mean))
    parts = y.float().unflatten(0, (len(mean), -1))  # [G, N / G, C, H, W]
    moved = torch.where((scale * parts + shift).abs() < KINK, (AWAY - shift) / scale, parts).flatten(0, 1).to(y.dtype)
    return torch.empty_like(y).copy_(moved)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[1]


def _each(function: Callable[[Tensor], Tensor], argument: Any) -> Any:
    """The argument with `function` applied to each tensor in it."""
    if isinstance(argument, RunningStats):
        return RunningStats(*(_each(function, part) for part in argument))
    return function(argument) if isinstance(argument, Tensor) else argument


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
