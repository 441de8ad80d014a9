"""One step of the game: a discriminator update, then a generator update.

    z ~ noise                      fakes = G(z)
    D:  loss_d(D(x), D(fakes))     gradients of both added, Adam
    G:  loss_g(D(fakes))           through the updated D, Adam, moving average

A function of device state: nothing on the host depends on a value on the device, so the step can be captured in a CUDA
graph (`graph.py`). What the host does decide, by counting, is the `Phase` of a step; each phase is a graph of its own.

A step whose losses or gradients are not finite changes no parameter, and neither does any after it: the device halts,
repeats that step and says so in the ring, until the host looks.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan import memory
from fastgan.config import ModelConfig, TrainConfig
from fastgan.data.order import WHOLE, Shard
from fastgan.errors import FastganError
from fastgan.models.sampling import Noise
from fastgan.nn import Chain, frozen, stat_groups
from fastgan.nn.groups import is_divisible, outside_of_stages, takes_channels_last
from fastgan.ops import synchronised
from fastgan.ops.casts import Casts
from fastgan.ops.numerics import HALF, products
from fastgan.train import distributed, schedule
from fastgan.train.ema import EMA
from fastgan.train.grad_allreduce import Average
from fastgan.train.loss_scale import LossScale
from fastgan.train.losses import LOSSES, gradient_penalty, r1_penalty
from fastgan.train.metrics_buffer import Ring
from fastgan.train.optim import DeviceAdam, make_adam
from fastgan.train.precision import autocast, choose
from fastgan.train.static_buffers import Held, keep


@dataclass(frozen=True)
class Savings:
    """Work that the textbook step does and this one does not. With each, the result is the same."""

    together: bool | None = None
    """D sees real and fake images in one call, with two statistic groups, where its layers can; None: not on a CPU,
    where there are no launches to save and one half's activations at a time take less memory"""
    frozen: bool = True
    """no gradients of D's weights in G's update"""
    fused_adam: bool = True
    """one kernel for all parameters of a network"""
    foreach_ema: bool = True
    """a few kernels for the whole moving average"""


Gradients = list[Tensor | None]  # of parameters; None of one that the loss does not depend on


class Phase(NamedTuple):
    """What a step does: whether G is updated too, and whether D's loss has its gradient penalty."""

    both: bool
    penalty: bool


class GANStep:
    """Both networks with their optimizers and the moving average; calling it makes one step.

    Parameters that the networks do not use, or that are frozen or unfrozen between two steps, are treated as PyTorch
    treats them under an Adam over all parameters. A discriminator that consists of layers of torch.nn and fastgan alone
    is given images in channels_last; one with a `forward` of its own, which may call `view`, in NCHW.

    Args:
        generator: z (N, nz) [, labels (N,)] -> images. discriminator: images [, labels] -> logits (N,) or (N, 2).
        model: the noise. train: losses, optimizer and the order of updates.
        precision: "fp32", "tf32", "bf16", "fp16" or "auto" (`precision.py`).
        savings: what is left out of the textbook step. history: steps that the ring remembers.
        part: which part of the batches this process sees; gradients and losses are averaged over all processes then.

    Attributes:
        steps: how many there were, on the host. total: how many there will be, on the device, for schedules.
        ring: what the last steps told. held: what the last one was given.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, model: ModelConfig, train: TrainConfig, *,
                 precision: str = "auto", savings: Savings = Savings(), history: int = 1, part: Shard = WHOLE) -> None:
        self.generator, self.discriminator, self.config = generator, discriminator, train
        self.savings, self.part = savings, part
        self.noise = Noise(model.noise, model.noise_mean, model.nz)
        self.loss = LOSSES[train.loss]
        self._parameters: list[list[Tensor]] = [[p for p in network.parameters() if p.is_floating_point()]
                                                for network in (generator, discriminator)]
        self.device = next(p.device for params in self._parameters for p in params)
        self.precision = choose(precision, self.device) if precision == "auto" else precision
        self.impl = next((module.impl for module in discriminator.modules() if isinstance(module, Chain)), "auto")
        self.average_g: Average | None = None
        self.average_d: Average | None = None
        self._trained: list[bool] = []
        self._follow()
        self.adam_g, self.adam_d = (make_adam(params, lr or train.lr, train, fused=savings.fused_adam)
                                    for params, lr in zip(self._parameters, (train.lr_g, train.lr_d), strict=True))
        if train.sync_bn and part.of > 1:
            _check_stages(generator, discriminator)
        self.ema = EMA(generator, train.ema, foreach=savings.foreach_ema) if train.ema else None
        self.scale = LossScale(precision == "fp16", self.device)
        self._divisible = is_divisible(discriminator)
        self._channels_last = takes_channels_last(discriminator)
        # asked for before every replay, so not by a walk through all modules
        self._places: list[tuple[dict[str, Any], str]] = [
            (places, key) for network in (generator, discriminator) for module in network.modules()
            for places in (module._parameters, module._buffers) for key in places if places[key] is not None]
        self.steps = 0
        self.t = torch.zeros((), dtype=torch.int64, device=self.device)
        self.total = torch.full_like(self.t, train.steps or 1)
        self.halted = torch.zeros((), dtype=torch.float32, device=self.device)
        self._one = torch.ones((), dtype=self.adam_g.rate.dtype, device=self.device)  # gradient of a loss
        self.ring = Ring(history, self.device)
        self.held: Held | None = None
        self._held: dict[int, Held] = {}  # by batch size

    def __call__(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on real images (N, C, H, W), or points (N, 2), and labels (N,) of a conditional model.

        Returns scalars on the device: loss_d, d_real = E[D(x)], d_fake = E[D(G(z))], grad_norm_d, diversity (how far
        the fakes are from each other, 1 when as far as the reals), finite and, when the generator was updated too,
        loss_g and grad_norm_g.
        """
        given = (real,) if labels is None else (real, labels)
        phase = self.phase()
        record = self.run(phase, *given)
        self.advance(phase, *given)
        return record

    @property
    def together(self) -> bool:
        """Whether D sees real and fake images in one call."""
        wanted = self.savings.together
        return self._divisible and (self.device.type != "cpu" if wanted is None else wanted)

    def _merged(self) -> int:
        """Over how many processes batch statistics are merged; 0: not at all."""
        if not self.config.sync_bn or self.part.of == 1:
            return 0
        return self.part.of if distributed.active() else 1

    def phase(self) -> Phase:
        """Of the next step."""
        config = self.config
        return Phase((self.steps + 1) % config.d_steps == 0,
                     config.penalised and self.steps % config.penalty_every == 0)

    def _follow(self) -> None:
        """Take in which parameters require gradients now: between two steps some may be frozen or unfrozen."""
        trained = [p.requires_grad for params in self._parameters for p in params]
        if trained == self._trained:
            return
        self.params_g, self.params_d = ([p for p in params if p.requires_grad] for params in self._parameters)
        for name, params in (("generator", self.params_g), ("discriminator", self.params_d)):
            if not params:
                raise FastganError(f"no parameter of the {name} requires a gradient; expected one or more to train")
        for average in (self.average_g, self.average_d):
            if average is not None:
                average.close()
        self.average_g, self.average_d = (Average(params, self.part.of) if self.part.of > 1 else None
                                          for params in (self.params_g, self.params_d))
        self.casts = Casts([*self.params_g, *self.params_d],
                           None if self.impl == "reference" else HALF.get(self.precision))
        self._trained = trained

    def run(self, phase: Phase, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The device's part of a step."""
        self._follow()
        with products(self.precision), self.casts.lent(), synchronised.over(self._merged()):
            self.scale.begin()
            held = self._hold(real, labels)
            self._schedule()
            reuse = phase.both and self.config.fakes == "reuse"
            with torch.set_grad_enabled(reuse):
                fake = self.generate(held.z, held.given())
            if fake.shape != held.fake.shape:  # which copy_ would broadcast
                raise FastganError(f"the generator returned images {tuple(fake.shape)}; expected "
                                   f"{tuple(held.fake.shape)}, as the real ones are")
            held.fake.copy_(fake.detach())
            record, skip = self._update_discriminator(held, phase)
            if phase.both:
                if not reuse:
                    fake = self.generate(held.z_fresh if self.config.fakes == "fresh-z" else held.z, held.given())
                more, skip = self._update_generator(fake, held, skip)
                record |= more
            self.scale.update()
            return self._finish(held, record, skip)

    def advance(self, phase: Phase, real: Tensor, labels: Tensor | None = None) -> None:
        """The host's part of a step."""
        self.count(len(real))

    def count(self, size: int) -> None:
        """A step on a batch of `size` images has been done."""
        self.steps += 1
        self.held = self._held[size]

    def draw(self, like: Tensor) -> Tensor:
        """Latent vectors (N, nz) for a batch like `like`, from the device's generator."""
        return self.part.take(self.noise(len(like) * self.part.of, device=like.device, dtype=like.dtype))

    def generate(self, z: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        with autocast(self.precision, self.device):
            return _tensor(self.generator(z, *given), "generator", "images")

    def judge(self, images: Tensor, *given: Tensor) -> Tensor:
        """The discriminator's logits, no narrower than float32."""
        images = images if self._channels_last else images.contiguous()
        with autocast(self.precision, self.device):
            logits = _tensor(self.discriminator(images, *given), "discriminator", "logits")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def discriminator_loss(self, held: Held, penalty: bool = True) -> tuple[Tensor, ...]:
        """(loss, D(x), D(G(z))), scalars; the loss with its gradient penalty where there is one."""
        config, given, real = self.config, held.given(), held.real
        r1 = penalty and config.r1 > 0
        if self.together and not r1:
            with stat_groups(self.discriminator, 2):
                logits = self.judge(held.images, *(() if held.labels is None else (held.labels,)))
            halves = logits.chunk(2)
            real_logits, fake_logits = halves if config.real_first else halves[::-1]
        else:
            real = real.detach().requires_grad_(r1)
            if config.real_first:
                real_logits, fake_logits = self.judge(real, *given), self.judge(held.fake, *given)
            else:
                fake_logits, real_logits = self.judge(held.fake, *given), self.judge(real, *given)
        (on_real, d_real), (on_fake, d_fake) = self._on_real(real_logits), self._on_fake(fake_logits)
        loss = on_real + on_fake
        if penalty and config.loss == "wgan-gp":
            slope = gradient_penalty(self.judge, held.real, held.fake, given, self.part)
            loss = loss + config.penalty_every * config.gp * slope
        if r1:
            slope = r1_penalty(self.loss.score(real_logits), real)
            loss = loss + config.penalty_every * config.r1 * slope
        return loss, d_real, d_fake

    def _on_real(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        loss, d_real = self.loss.real(logits, self.config.label_smoothing, self.impl)
        return self._weighted(loss), d_real

    def _on_fake(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        loss, d_fake = self.loss.fake(logits, self.impl)
        return self._weighted(loss), d_fake

    def _weighted(self, loss: Tensor) -> Tensor:
        weight = self.config.d_loss_weight
        return loss if weight == 1 else weight * loss  # a launch less, and one in the backward pass

    def generator_loss(self, fake: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        """The generator's loss through the discriminator as it is now."""
        with frozen(self.discriminator) if self.savings.frozen else nullcontext():
            return self.loss.generator(self.judge(fake, *given), self.impl)

    def allocate(self, real: Tensor, labels: Tensor | None = None) -> None:
        """Make the tensors in which steps on such batches are held, once; a step does it when nobody has."""
        if len(real) not in self._held:
            if self.device.type == "cpu":
                memory.keep_freed()
            # in 16 bits where D's first convolution would round them, as autocast does but with float64; penalties are
            # gradients by images
            rounded = not self.config.penalised and real.dtype != torch.float64
            dtype = HALF.get(self.precision, real.dtype) if rounded else real.dtype
            self._held[len(real)] = Held(self.noise.nz, real, labels, self.config.real_first, dtype,
                                         self._channels_last)

    def _hold(self, real: Tensor, labels: Tensor | None) -> Held:
        self.allocate(real, labels)
        held, halted = self._held[len(real)], self.halted > 0
        keep(held.z, self.draw(real), halted)
        if self.config.fakes == "fresh-z":
            keep(held.z_fresh, self.draw(real), halted)
        keep(held.real, real, halted)
        if labels is not None and held.labels is not None:
            keep(held.labels, torch.cat([labels, labels]), halted)
        return held

    def _schedule(self) -> None:
        if not schedule.is_constant(self.config):
            factor = schedule.factor(self.config, self.t, self.total)
            for adam in (self.adam_g, self.adam_d):
                adam.rate.copy_(factor * adam.defaults["lr"])

    def _update_discriminator(self, held: Held, phase: Phase) -> tuple[dict[str, Tensor], Tensor]:
        self.adam_d.zero_grad(set_to_none=True)  # of a step that was broken off, or of somebody else
        if self.together or phase.penalty:
            loss, d_real, d_fake = self.discriminator_loss(held, phase.penalty)
            grads, (loss, d_real, d_fake) = self._gradients(loss, self.params_d, self.average_d, d_real, d_fake)
        else:
            grads, (loss, d_real, d_fake) = self._one_half_after_the_other(held)
        norm, skip = self._descend(loss, grads, self.params_d, self.adam_d, self.halted)
        self.casts.refresh(self.params_d)
        return {"loss_d": loss, "grad_norm_d": norm, "d_real": d_real, "d_fake": d_fake}, skip

    def _one_half_after_the_other(self, held: Held) -> tuple[Gradients, list[Tensor]]:
        """Gradients of `discriminator_loss` and what it tells, with the activations of one half at a time in memory.

        The second half's gradients are added to the first's one by one, as they come.
        """
        halves = [(held.real, self._on_real), (held.fake, self._on_fake)]
        told: list[tuple[Tensor, Tensor]] = []
        for images, on in halves if self.config.real_first else halves[::-1]:
            loss, probability = on(self.judge(images, *held.given()))
            told.append((loss.detach(), probability))
            if self.average_d is None or len(told) == 1:
                self.scale(loss).backward(self._one, inputs=self.params_d)
        (on_real, d_real), (on_fake, d_fake) = told if self.config.real_first else told[::-1]
        both = [on_real + on_fake, d_real, d_fake]
        if self.average_d is not None:  # once for both halves
            return self.average_d.backward(self.scale(loss), self._one, both)
        return [p.grad for p in self.params_d], both

    def _gradients(self, loss: Tensor, params: list[Tensor], average: Average | None,
                   *told: Tensor) -> tuple[Gradients, list[Tensor]]:
        """Of a loss, and what is told of the step: the loss, detached, and `told`; both averaged over processes."""
        scaled, numbers = self.scale(loss), [loss.detach(), *told]
        if average is not None:
            return average.backward(scaled, self._one, numbers)
        return list(torch.autograd.grad(scaled, params, self._one, allow_unused=True)), numbers

    def _update_generator(self, fake: Tensor, held: Held, skip: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        loss = self.generator_loss(fake, held.given())
        self.adam_g.zero_grad(set_to_none=True)
        unused = [] if self.savings.frozen else self.params_d
        grads, (loss,) = self._gradients(loss, [*self.params_g, *unused], self.average_g)
        norm, skip = self._descend(loss, grads[: len(self.params_g)], self.params_g, self.adam_g, skip)
        if self.ema is not None:
            self.ema.update(skip)
        return {"loss_g": loss, "grad_norm_g": norm}, skip

    def _descend(self, loss: Tensor, grads: Gradients, params: list[Tensor], adam: DeviceAdam,
                 skip: Tensor) -> tuple[Tensor, Tensor]:
        """Step, and forget the gradients; no step where `skip` holds 1 or something is not finite. Parameters without a
        gradient, as the network does not use them, are left alone.

        Returns (norm of all gradients, 1.0 where the step was skipped), both scalars on the device.
        """
        for parameter, grad in zip(params, grads, strict=True):
            if grad is None:
                continue
            # fused Adam walks through memory: a gradient in another order of dimensions would be taken as it lies
            same = grad.stride() == parameter.stride()
            parameter.grad = grad if same else torch.empty_like(parameter).copy_(grad)
        self.scale.undo(adam)
        norms = torch._foreach_norm([p.grad for p in params if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms))
        # times 0, what is not finite is NaN, and not 0: half the launches of isfinite
        skip = torch.maximum(skip, (norm + loss.detach()) * 0 != 0)
        adam.found_inf = skip
        adam.step()
        adam.zero_grad(set_to_none=True)
        return norm, skip

    @torch.no_grad()
    def _finish(self, held: Held, record: dict[str, Tensor], skip: Tensor) -> dict[str, Tensor]:
        """Complete the record, write it down, halt or go on to the next step."""
        if self.scale.enabled:  # overflow of a scaled gradient is its business, only a loss that is not finite is ours
            losses = torch.stack([value for key, value in record.items() if key.startswith("loss")])
            wrong = (~torch.isfinite(losses)).any().to(skip.dtype)
            self.halted.copy_(torch.maximum(self.halted, wrong))
        else:
            self.halted.copy_(skip)
        finite = 1 - self.halted
        record |= {"diversity": self._diversity(held), "finite": finite}
        self.ring.write(self.t, record)
        self.t += finite.to(self.t.dtype)
        return record

    def _diversity(self, held: Held) -> Tensor:
        """How pixels vary over a batch, their standard deviation on average: the fakes' by the reals', a scalar."""
        halves = held.images.unflatten(0, (2, -1))  # [2, N, ...]
        first, second = halves.std(1, correction=0).flatten(1).mean(1, dtype=held.z.dtype)
        real, fake = (first, second) if self.config.real_first else (second, first)
        return fake / real.clamp(min=1e-8)

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters "generator" and "discriminator" have, those held constant included."""
        return {name: sum(p.numel() for p in network.parameters())
                for name, network in (("generator", self.generator), ("discriminator", self.discriminator))}

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes and a later one reads, but for the random state.

        Always the same tensors, until parameters are frozen or unfrozen.
        """
        self._follow()
        return [*(places[key] for places, key in self._places), *self.adam_g.tensors(), *self.adam_d.tensors(),
                *self.scale.tensors(), *([] if self.ema is None else self.ema.tensors()), self.t, self.halted,
                *self.casts.tensors(),
                *(tensor for held in self._held.values() for tensor in held.tensors()), self.ring.rows]

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, but for the random state."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        if self.ema is not None:
            state["ema_updates"] = self.ema.updates
        return {**state, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place: a captured step goes on from there."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.updates.copy_(state["ema_updates"])
        self.steps = state["steps"]
        self.t.fill_(self.steps)
        self.halted.zero_()

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.generator, "discriminator": self.discriminator, "adam_g": self.adam_g,
                 "adam_d": self.adam_d, "scale": self.scale}
        return parts if self.ema is None else {**parts, "ema": self.ema.module}


def _tensor(returned: Any, network: str, what: str) -> Tensor:
    """`FastganError` for a network that returns anything but a tensor."""
    if not isinstance(returned, Tensor):
        kind = type(returned).__name__
        if isinstance(returned, (tuple, list)):
            kind += f" of {', '.join(type(part).__name__ for part in returned)}"
        raise FastganError(f"the {network} returned a {kind}; expected one tensor, the {what}")
    return returned


def _check_stages(generator: nn.Module, discriminator: nn.Module) -> None:
    """`FastganError` for networks whose statistics cannot all be merged."""
    outside = outside_of_stages(generator, "generator") + outside_of_stages(discriminator, "discriminator")
    if outside:
        raise FastganError(f"--sync-bn: {outside[0]} follows no convolution in a fastgan.nn.Chain, and its statistics "
                           "stay those of one process; expected other networks, or no --sync-bn")
