"""Training steps played for comparison: by which networks, on what, in which precision, and how far they moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastgan
from fastgan.config import Config
from fastgan.models.sampling import Noise
from fastgan.nn import use
from fastgan.ops import numerics
from fastgan.train.step import GANStep

Networks = tuple[nn.Module, nn.Module]
_NAMES = {precision: name for name, precision in numerics.PRECISIONS.items()}


class Given(NamedTuple):
    """What all see, on the CPU: the images (N, C, H, W) of each step, or points, and the noise (N, nz), in order."""

    real: list[Tensor]
    noise: list[Tensor]


class Game(NamedTuple):
    """Generator and discriminator as they start, on the CPU in float32, what they see, and how and where they play."""

    networks: Networks
    config: Config
    given: Given
    precision: numerics.Precision
    device: torch.device


def given(config: Config, shape: tuple[int, ...], batch: int, steps: int) -> Given:
    """Images whose neighbours are alike, as in pictures; or points. A step draws noise twice at most."""
    generator = torch.Generator().manual_seed(2)
    real = [torch.rand(batch, *shape, generator=generator) * 2 - 1 for _ in range(steps)]
    if len(shape) == 3:
        real = [nn.functional.avg_pool2d(one, 5, 1, 2) * 2 for one in real]
    noise = Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    return Given(real, [noise(batch, generator=generator) for _ in range(2 * steps)])


def fused(game: Game, impl: str) -> Networks:
    one, other = copy.deepcopy(game.networks)
    return use(one, impl), use(other, impl)


def eager(game: Game) -> Networks:
    one, other = copy.deepcopy(game.networks)
    return fastgan.to_eager(one), fastgan.to_eager(other)


@torch.no_grad()
def nudged(game: Game, seed: int) -> Networks:
    """Eager networks whose parameters are off by one rounding unit of the precision, in float64."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (network.double() for network in eager(game))
    for parameter in (*one.parameters(), *other.parameters()):
        size = float(game.precision.unit * parameter.square().mean().sqrt())
        parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator), alpha=size)
    return one, other


def moved(game: Game, networks: Networks, *, exact: bool = False, reordered: bool = False,
          wrap: Callable[[GANStep], Any] | None = None) -> dict[str, Tensor]:
    """How far the steps move parameters and running statistics of each network, flat, in float64 on the CPU.

    exact: play in float64. reordered: in another order of summation, batches reversed and channels_last. wrap: play
    what this makes of the step, with noise that the step draws itself instead of the given.
    """
    place = torch.device("cpu") if exact and game.device.type == "mps" else game.device  # mps has no float64
    dtype = torch.float64 if exact else torch.float32
    layout = torch.channels_last if reordered else torch.preserve_format
    one, other = (network.to(place, dtype).to(memory_format=layout) for network in networks)
    before = {"generator": state_of(one), "discriminator": state_of(other)}

    def as_seen(x: Tensor) -> Tensor:
        return (x.flip(0) if reordered else x).to(place, dtype)

    precision = "fp32" if exact else _NAMES[game.precision]
    step = GANStep(one, other, game.config.model, game.config.train, precision=precision)
    if wrap is None:
        noise = iter(game.given.noise)
        step.draw = lambda like: as_seen(next(noise))  # type: ignore[method-assign]
    play = step if wrap is None else wrap(step)
    for real in game.given.real:
        play(as_seen(real))
    after = {"generator": state_of(one), "discriminator": state_of(other)}
    return {f"{name} {what}": now - before[name][what] for name in after for what, now in after[name].items()}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters, running means and running variances, each as one vector; without those that it has not."""
    kinds: dict[str, list[Tensor]] = {"parameters": list(network.parameters())}
    for key, buffer in network.named_buffers():
        kinds.setdefault({"running_mean": "running means", "running_var": "running variances"}.get(
            key.rpartition(".")[2], ""), []).append(buffer)
    kinds.pop("", None)  # counters
    return {what: torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])
            for what, tensors in kinds.items()}
