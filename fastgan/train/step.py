"""One step of the game: a discriminator update, then a generator update.

    z ~ noise                      fakes = G(z)
    D:  loss_d(D(x), D(fakes))     gradients of both passes added, Adam
    G:  loss_g(D(fakes))           through the updated D, Adam, moving average

A function of device state: nothing on the host depends on a value on the device. An update whose loss or gradients
are not finite is skipped there, so both networks keep their last good parameters (though not their running
statistics); the losses tell the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.config import ModelConfig, TrainConfig
from fastgan.models.sampling import Noise
from fastgan.nn import frozen
from fastgan.train.ema import EMA
from fastgan.train.losses import LOSSES, gradient_penalty, r1_penalty
from fastgan.train.optim import make_adam


class GANStep:
    """Both networks with their optimizers and the moving average; calling it makes one step.

    Args:
        generator: z (N, nz) [, labels (N,)] -> images. discriminator: images [, labels] -> logits (N,) or (N, 2).
        model: the noise. train: losses, optimizer and the order of updates.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, model: ModelConfig, train: TrainConfig) -> None:
        self.generator, self.discriminator, self.config = generator, discriminator, train
        self.noise = Noise(model.noise, model.noise_mean, model.nz)
        self.loss = LOSSES[train.loss]
        self.params_g: list[Tensor] = [p for p in generator.parameters() if p.requires_grad]
        self.params_d: list[Tensor] = [p for p in discriminator.parameters() if p.requires_grad]
        self.adam_g = make_adam(self.params_g, train.lr_g or train.lr, train)
        self.adam_d = make_adam(self.params_d, train.lr_d or train.lr, train)
        self.ema = EMA(generator, train.ema) if train.ema else None
        self.steps = 0
        self.z: Tensor | None = None  # of the last call, (N, nz)
        self.fake: Tensor | None = None  # of the last call, as the discriminator saw it

    def __call__(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on real images (N, C, H, W), or points (N, 2), and labels (N,) of a conditional model.

        Returns scalars on the device: loss_d, d_real = E[D(x)], d_fake = E[D(G(z))], grad_norm_d and, when the
        generator was updated too, loss_g and grad_norm_g.
        """
        given = () if labels is None else (labels,)
        turn_of_g = (self.steps + 1) % self.config.d_steps == 0
        reuse = turn_of_g and self.config.fakes == "reuse"
        self.z = self.draw(real)
        with torch.set_grad_enabled(reuse):
            fake = self.generator(self.z, *given)
        self.fake = fake.detach()
        record, skip = self._update_discriminator(real, self.fake, given)
        if turn_of_g:
            if not reuse:
                self.z = self.draw(real) if self.config.fakes == "fresh-z" else self.z
                fake = self.generator(self.z, *given)
            record |= self._update_generator(fake, given, skip)
        self.steps += 1
        return record

    def draw(self, real: Tensor) -> Tensor:
        """Latent vectors (N, nz) for a batch like `real`, from the device's generator."""
        return self.noise(len(real), device=real.device, dtype=real.dtype)

    def discriminator_loss(self, real: Tensor, fake: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(loss, real logits, fake logits), penalties included."""
        config = self.config
        real = real.detach().requires_grad_(config.r1 > 0)
        if config.real_first:
            real_logits, fake_logits = self.discriminator(real, *given), self.discriminator(fake, *given)
        else:
            fake_logits, real_logits = self.discriminator(fake, *given), self.discriminator(real, *given)
        loss = config.d_loss_weight * self.loss.discriminator(real_logits, fake_logits)
        if config.loss == "wgan-gp":
            loss = loss + config.gp * gradient_penalty(self.discriminator, real, fake, given)
        if config.r1:
            loss = loss + config.r1 * r1_penalty(self.loss.score(real_logits), real)
        return loss, real_logits, fake_logits

    def generator_loss(self, fake: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        """The generator's loss through the discriminator as it is now."""
        with frozen(self.discriminator):
            return self.loss.generator(self.discriminator(fake, *given))

    def _update_discriminator(self, real: Tensor, fake: Tensor,
                              given: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], Tensor]:
        loss, real_logits, fake_logits = self.discriminator_loss(real, fake, given)
        norm, skip = apply_gradients(loss, self.params_d, self.adam_d, torch.zeros_like(loss))
        return {"loss_d": loss.detach(), "grad_norm_d": norm,
                "d_real": self.loss.probability(real_logits.detach()).mean(),
                "d_fake": self.loss.probability(fake_logits.detach()).mean()}, skip

    def _update_generator(self, fake: Tensor, given: tuple[Tensor, ...], skip: Tensor) -> dict[str, Tensor]:
        loss = self.generator_loss(fake, given)
        norm, skip = apply_gradients(loss, self.params_g, self.adam_g, skip)
        if self.ema is not None:
            self.ema.update(self.generator, skip)
        return {"loss_g": loss.detach(), "grad_norm_g": norm}

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters "generator" and "discriminator" have, those held constant included."""
        return {name: sum(p.numel() for p in network.parameters())
                for name, network in (("generator", self.generator), ("discriminator", self.discriminator))}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, but for the random state."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        if self.ema is not None:
            state["ema_updates"] = self.ema.updates
        return {**state, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.updates.copy_(state["ema_updates"])
        self.steps = state["steps"]

    def _parts(self) -> dict[str, nn.Module | Optimizer]:
        parts: dict[str, nn.Module | Optimizer] = {"generator": self.generator, "discriminator": self.discriminator,
                                                   "adam_g": self.adam_g, "adam_d": self.adam_d}
        return parts if self.ema is None else {**parts, "ema": self.ema.module}


def apply_gradients(loss: Tensor, params: list[Tensor], optimizer: Optimizer, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate, step, forget the gradients; no step where `skip` holds 1 or something is not finite.

    Returns (norm of all gradients, 1.0 where the step was skipped), both scalars on the device.
    """
    grads = torch.autograd.grad(loss, params)
    norm = torch.nn.utils.get_total_norm(grads)
    skip = torch.maximum(skip, (~torch.isfinite(norm + loss.detach())).to(skip.dtype))
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    for parameter, grad in zip(params, grads, strict=True):
        # fused Adam walks through memory: a gradient in another order of dimensions would be taken as it lies
        same = grad.stride() == parameter.stride()
        parameter.grad = grad if same else torch.empty_like(parameter).copy_(grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, skip
