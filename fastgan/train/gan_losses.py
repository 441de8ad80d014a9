"""The forward half of a step: both networks, and their losses on a batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.config import TrainConfig
from fastgan.errors import FastganError
from fastgan.nn import Chain, frozen, stat_groups
from fastgan.nn.groups import is_divisible, takes_channels_last
from fastgan.train.losses import LOSSES, gradient_penalty, r1_penalty
from fastgan.train.precision import autocast
from fastgan.train.processes import SingleProcess
from fastgan.train.static_buffers import StaticBuffers


@dataclass(frozen=True)
class Savings:
    """Work that the textbook step does and this one does not. With each, the result is the same."""

    together: bool | None = None
    """D takes real and fake images in one call, with two statistic groups, where its layers can; None: not on a CPU,
    where there are no launches to save and one half's activations at a time take less memory"""
    frozen: bool = True
    """no gradients of D's weights in G's update"""
    fused_adam: bool = True
    """one kernel for all parameters of a network"""
    foreach_ema: bool = True
    """a few kernels for the whole moving average"""


ALL_SAVINGS = Savings()


class GANLosses:
    """A generator, a discriminator, and what they minimise. Arguments as those of `GANStep`."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, config: TrainConfig, precision: str,
                 savings: Savings, processes: SingleProcess) -> None:
        self.generator, self.discriminator, self.config = generator, discriminator, config
        self.precision, self.savings, self.processes = precision, savings, processes
        self.device = next(p.device for network in (generator, discriminator) for p in network.parameters())
        self.loss = LOSSES[config.loss]
        self.impl = next((module.impl for module in discriminator.modules() if isinstance(module, Chain)), "auto")
        self._divisible = is_divisible(discriminator)
        self._channels_last = takes_channels_last(discriminator)

    @property
    def together(self) -> bool:
        """Whether D takes real and fake images in one call."""
        wanted = self.savings.together
        return self._divisible and (self.device.type != "cpu" if wanted is None else wanted)

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters "generator" and "discriminator" have, constant ones included."""
        return {name: sum(p.numel() for p in network.parameters())
                for name, network in (("generator", self.generator), ("discriminator", self.discriminator))}

    def generate(self, z: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        with autocast(self.precision, self.device):
            return _tensor(self.generator(z, *condition), "generator", "images")

    def judge(self, images: Tensor, *condition: Tensor) -> Tensor:
        """The discriminator's logits, no narrower than float32."""
        images = images if self._channels_last else images.contiguous()
        with autocast(self.precision, self.device):
            logits = _tensor(self.discriminator(images, *condition), "discriminator", "logits")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def discriminator_loss(self, buffers: StaticBuffers, penalty: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, D(x), D(G(z))), scalars; the loss with its gradient penalty where there is one."""
        config, condition, real = self.config, buffers.condition, buffers.real
        r1 = penalty and config.r1 > 0
        if self.together and not r1:
            with stat_groups(self.discriminator, 2):
                logits = self.judge(buffers.images, *(() if buffers.labels is None else (buffers.labels,)))
            halves = list(logits.chunk(2))
        else:
            real = real.detach().requires_grad_(r1)
            both = (real, buffers.fake) if config.real_first else (buffers.fake, real)
            halves = [self.judge(images, *condition) for images in both]
        real_logits, fake_logits = halves if config.real_first else halves[::-1]
        (loss_real, d_real), (loss_fake, d_fake) = self._real_loss(real_logits), self._fake_loss(fake_logits)
        loss = loss_real + loss_fake
        if penalty and config.loss == "wgan-gp":
            value = gradient_penalty(self.judge, buffers.real, buffers.fake, condition, self.processes.shard)
            loss = loss + config.penalty_every * config.gp * value
        if r1:
            value = r1_penalty(self.loss.score(real_logits), real)
            loss = loss + config.penalty_every * config.r1 * value
        return loss, d_real, d_fake

    def _real_loss(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's loss on real images, and D(x)."""
        loss, d_real = self.loss.real(logits, self.config.label_smoothing, self.impl)
        return self._weighted(loss), d_real

    def _fake_loss(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's loss on fakes, and D(G(z))."""
        loss, d_fake = self.loss.fake(logits, self.impl)
        return self._weighted(loss), d_fake

    def _weighted(self, loss: Tensor) -> Tensor:
        weight = self.config.d_loss_weight
        return loss if weight == 1 else weight * loss  # a launch less, and one in the backward pass

    def generator_loss(self, fake: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """The generator's loss through the current discriminator."""
        with frozen(self.discriminator) if self.savings.frozen else nullcontext():
            return self.loss.generator(self.judge(fake, *condition), self.impl)


def _tensor(output: Any, network: str, what: str) -> Tensor:
    """`FastganError` for the output of a network that is not a tensor."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        if isinstance(output, (tuple, list)):
            kind += f" of {', '.join(type(item).__name__ for item in output)}"
        raise FastganError(f"the {network} returned a {kind}; expected one tensor, the {what}")
    return output
