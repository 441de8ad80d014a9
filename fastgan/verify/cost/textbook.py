"""The step that everyone writes: PyTorch's DCGAN example with channels_last, autocast, and nothing read on the host."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.config import Config
from fastgan.errors import FastganError
from fastgan.models.sampling import Noise
from fastgan.ops.numerics import HALF, products
from fastgan.train.losses import LOSSES


class Textbook:
    """Eager networks and an Adam for each; calling it makes one step.

    Fakes are drawn once, D's two losses are added for one backward pass, and G's update goes through D with the
    gradients of D's weights, which nobody reads. Adam is PyTorch's choice on a GPU: `foreach`.

    Raises `FastganError` for a loss with a gradient penalty.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, config: Config, precision: str) -> None:
        if config.train.penalised:
            raise FastganError("the textbook step has no gradient penalty: expected --loss other than wgan-gp, --r1 0")
        self.generator, self.discriminator, self.precision = generator, discriminator, precision
        self.noise = Noise(config.model.noise, config.model.noise_mean, config.model.nz)
        self.loss, self.is_bce = LOSSES[config.train.loss], config.train.loss == "bce"
        betas = config.train.beta1, config.train.beta2
        self.adam_g, self.adam_d = (
            torch.optim.Adam([p for p in network.parameters() if p.requires_grad], config.train.lr, betas,
                             config.train.adam_eps, foreach=True) for network in (generator, discriminator))

    def __call__(self, real: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses of D and G, scalars on the device, of a step on images (N, C, H, W), or points (N, 2)."""
        given = () if labels is None else (labels,)
        half = HALF.get(self.precision)
        with products(self.precision):
            self.discriminator.zero_grad()
            with nullcontext() if half is None else torch.autocast(real.device.type, half):
                fake = self.generator(self.noise(len(real), device=real.device), *given)
                loss_d = (self._loss("real", self.discriminator(real, *given))
                          + self._loss("fake", self.discriminator(fake.detach(), *given)))
            loss_d.backward()
            self.adam_d.step()
            self.generator.zero_grad()
            with nullcontext() if half is None else torch.autocast(real.device.type, half):
                loss_g = self._loss("generator", self.discriminator(fake, *given))
            loss_g.backward()
            self.adam_g.step()
        return loss_d.detach(), loss_g.detach()

    def _loss(self, name: str, logits: Tensor) -> Tensor:
        if self.is_bce:
            target = torch.zeros_like(logits) if name == "fake" else torch.ones_like(logits)
            return F.binary_cross_entropy_with_logits(logits, target)
        if name == "generator":
            return self.loss.generator(logits, "reference")
        return self.loss.real(logits, 0.0, "reference")[0] if name == "real" else self.loss.fake(logits, "reference")[0]
