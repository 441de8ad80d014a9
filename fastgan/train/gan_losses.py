"""The forward part of a step: both networks, and their losses on a batch."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import ops
from fastgan.config import TrainConfig
from fastgan.errors import FastganError, first_line
from fastgan.nn import Chain, frozen, stat_groups
from fastgan.nn.groups import divides, is_divisible, takes_channels_last
from fastgan.ops.numerics import HALF
from fastgan.train.augment import DiffAugment
from fastgan.train.losses import PROBABILITY_LOSSES, as_loss, ends_in_sigmoid, gradient_penalty, r1_penalty
from fastgan.train.precision import autocast
from fastgan.train.processes import SingleProcess
from fastgan.train.static_buffers import StaticBuffers

logger = logging.getLogger("fastgan")
_TRIED = 8  # number of images for the test of a discriminator


@dataclass(frozen=True)
class Savings:
    """Optimizations of the step that do not change its results."""

    together: bool | None = None
    """evaluate D on real and fake images in one call, with two statistic groups, if its layers support it; None: only
    on a GPU, because on a CPU there are no launches to save, and separate calls need less memory"""
    frozen: bool = True
    """do not compute gradients of D's weights in G's update"""
    fused_adam: bool = True
    """one kernel of Adam for all parameters of a network"""
    foreach_ema: bool = True
    """a few kernels for the whole moving average"""
    keep_casts: bool = False
    """keep the 16-bit copies of weights from step to step, instead of casting all weights at the start of each; then
    `GANStep.refresh` must be called after parameters were changed by anything but a step or `load_state_dict`"""


ALL_SAVINGS = Savings()


class GANLosses:
    """A generator, a discriminator, and their losses. Arguments as in `GANStep`."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, config: TrainConfig, loss: Any, precision: str,
                 savings: Savings, processes: SingleProcess) -> None:
        self.generator, self.discriminator, self.config = generator, discriminator, config
        self.precision, self.savings, self.processes = precision, savings, processes
        self.device = next(p.device for network in (generator, discriminator) for p in network.parameters())
        self.augment = DiffAugment(config.augment, processes.shard)
        self.loss = as_loss(loss or config.loss)
        self._named = loss is None  # a user-defined loss receives the output of the network unchanged
        self._z_shape: tuple[int, ...] | None = None  # shape of a latent vector that the generator accepts
        self._judged = False  # whether the discriminator has returned differentiable logits
        self.impl = next((module.impl for module in discriminator.modules() if isinstance(module, Chain)), "auto")
        self._divisible = self._tried = is_divisible(discriminator)
        self._channels_last = takes_channels_last(discriminator)

    @property
    def together(self) -> bool:
        """Whether D is evaluated on real and fake images in one call. For a D with a custom `forward`, this is unknown
        until `try_together`."""
        return self._divisible and self._wants_together()

    def _wants_together(self) -> bool:
        wanted = self.savings.together
        return self.device.type != "cpu" if wanted is None else wanted

    def try_together(self, real: Tensor, labels: Tensor | None) -> None:
        """If it is unknown whether D can be evaluated in one call, test this once, on a few images."""
        if not self._tried and self._wants_together():
            self._tried = True
            some = real[:_TRIED] if self._channels_last else real[:_TRIED].contiguous()
            self._divisible = divides(self.discriminator, some, *(() if labels is None else (labels[:_TRIED],)))

    def parameter_counts(self) -> dict[str, int]:
        """The number of parameters of "generator" and "discriminator", including frozen ones."""
        return {name: sum(p.numel() for p in network.parameters())
                for name, network in (("generator", self.generator), ("discriminator", self.discriminator))}

    def generate(self, z: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """Generate images from latent vectors z (N, nz), which are passed as (N, nz, 1, 1) if the generator needs it.
        """
        with autocast(self.precision, self.device):
            if self._z_shape is None:
                return self._generate_first(z, condition)
            return _tensor(self.generator(z.view(len(z), *self._z_shape), *condition), "generator", "images")

    def _generate_first(self, z: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """The first call of `generate`, which finds the shape of z that the generator accepts."""
        errors = []
        for shape in ((z.shape[1],), (z.shape[1], 1, 1)):
            try:
                images = self.generator(z.view(len(z), *shape), *condition)
            except Exception as error:
                if not _is_about_inputs(error):
                    raise
                errors.append(error)
                continue
            self._z_shape = shape
            return _tensor(images, "generator", "images")
        raise FastganError(f"the generator accepts neither z {tuple(z.shape)} ({first_line(errors[0])}) nor z "
                           f"{(*z.shape, 1, 1)} ({first_line(errors[1])})") from errors[0]

    def judge(self, images: Tensor, *condition: Tensor) -> Tensor:
        """Augment images and return the discriminator's logits, (N,) or several for each image, in float32 unless
        `ops.gan_loss` computes the loss."""
        images = self.augment(images)
        images = images if self._channels_last else images.contiguous()
        try:
            with autocast(self.precision, self.device):
                output = self.discriminator(images, *condition)
        except Exception as error:
            if self._judged or not _is_about_inputs(error):
                raise
            raise FastganError(f"the discriminator does not accept images {tuple(images.shape)}"
                               f"{' and labels' if condition else ''}: {first_line(error)}") from error
        logits = _tensor(output, "discriminator", "logits")
        if not self._judged and logits.requires_grad:
            self._check_logits(logits, len(images))
            self._judged = True
        if not self.loss.kind:  # the kernels of `ops.gan_loss` also read 16-bit logits
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.flatten() if self._named and self.config.loss != "softmax" else logits

    def _check_logits(self, logits: Tensor, count: int) -> None:
        """Check the logits of the first call. After a final sigmoid, the loss is computed from probabilities."""
        if logits.numel() % count:
            raise FastganError(f"the discriminator returned logits {tuple(logits.shape)} for {count} images; expected "
                               f"({count},), or equally many for each image")
        name = self.config.loss
        if not self._named or name not in PROBABILITY_LOSSES or not ends_in_sigmoid(logits):
            return
        if self.precision in HALF:
            raise FastganError(f"the discriminator ends in a sigmoid, which is inaccurate in {self.precision}; "
                               f"expected one without it, because the loss {name!r} takes logits, or precision fp32")
        logger.warning(f"the discriminator ends in a sigmoid: {name!r} is computed from probabilities; without the "
                       "sigmoid it is computed from logits, which is faster and more accurate")
        self.loss = PROBABILITY_LOSSES[name]

    def discriminator_loss(self, buffers: StaticBuffers, penalty: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The scalars (loss, D(x), D(G(z))). The loss includes the gradient penalty if there is one."""
        config, condition, real = self.config, buffers.condition, buffers.real
        r1 = penalty and config.r1 > 0
        if self.together and not r1:
            with stat_groups(self.discriminator, 2):
                logits = self.judge(buffers.images, *(() if buffers.labels is None else (buffers.labels,)))
            loss, d_real, d_fake = self._both_losses(logits) if self.loss.kind else self._losses(*logits.chunk(2))
        else:
            real = real.detach().requires_grad_(r1)
            order = (real, buffers.fake) if config.real_first else (buffers.fake, real)
            halves = [self.judge(images, *condition) for images in order]
            loss, d_real, d_fake = self._losses(*halves)
        if penalty and config.loss == "wgan-gp":
            value = gradient_penalty(self.judge, buffers.real, buffers.fake, condition, self.processes.shard)
            loss = loss + config.penalty_every * config.gp * value
        if r1:
            value = r1_penalty(self.loss.score(halves[0 if config.real_first else 1]), real)
            loss = loss + config.penalty_every * config.r1 * value
        return loss, d_real, d_fake

    def _both_losses(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, D(x), D(G(z))) from the logits of both halves."""
        targets = (1 - self.config.label_smoothing, 0.0)
        losses, scores = ops.gan_loss(logits, targets if self.config.real_first else targets[::-1], self.loss.kind,
                                      impl=self.impl)
        d_real, d_fake = scores.unbind() if self.config.real_first else reversed(scores.unbind())
        return self._weighted(losses.sum()), d_real, d_fake

    def _losses(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, D(x), D(G(z))) from the logits of each half, in the order of the batch."""
        real, fake = (first, second) if self.config.real_first else (second, first)
        (loss_real, d_real), (loss_fake, d_fake) = self._real_loss(real), self._fake_loss(fake)
        both = self.loss.both
        return loss_real + loss_fake if both is None else self._weighted(both(real, fake)), d_real, d_fake

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
        return loss if weight == 1 else weight * loss  # saves a launch in each of the forward and backward passes

    def generator_loss(self, fake: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """The generator's loss through the current discriminator."""
        with frozen(self.discriminator) if self.savings.frozen else nullcontext():
            return self.loss.generator(self.judge(fake, *condition), self.impl)


def _is_about_inputs(error: Exception) -> bool:
    """Whether a network may have raised this error because of the shape or number of its inputs. Subclasses have other
    causes, such as memory."""
    return type(error) in (RuntimeError, TypeError, ValueError, IndexError, AssertionError, FastganError)


def _tensor(output: Any, network: str, what: str) -> Tensor:
    """Return the output of a network; raise `FastganError` if it is not a tensor."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        if isinstance(output, (tuple, list)):
            kind += f" of {', '.join(type(item).__name__ for item in output)}"
        raise FastganError(f"the {network} returned a {kind}; expected one tensor, the {what}")
    return output
