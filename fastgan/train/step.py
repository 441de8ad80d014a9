"""One training step: a discriminator update, then a generator update.

    z ~ noise                      fakes = G(z)
    D:  loss_d(D(x), D(fakes))     gradients of both added, Adam
    G:  loss_g(D(fakes))           through the updated D, Adam, moving average

The host does not depend on values on the device, so the step can be captured in a CUDA graph (`graph.py`). The host
only determines the `Phase` of a step by counting; each phase has its own graph.

A step with non-finite losses or gradients changes no parameter, and neither do later steps: the device repeats that
step, marked in the metrics buffer, until the host reads the metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import memory
from fastgan.config import ModelConfig, TrainConfig
from fastgan.errors import FastganError
from fastgan.models.sampling import Noise
from fastgan.nn.groups import originals
from fastgan.ops import synchronised
from fastgan.ops.casts import Casts
from fastgan.ops.numerics import HALF, products
from fastgan.train import schedule
from fastgan.train.ema import EMA
from fastgan.train.gan_losses import ALL_SAVINGS, Savings
from fastgan.train.kernels import StepKernels
from fastgan.train.loss_scale import LossScale
from fastgan.train.metrics_buffer import MetricsBuffer
from fastgan.train.optim import make_adam
from fastgan.train.optimizers import GuardedOptimizer, check_optimizers
from fastgan.train.options import LossOption, StepOptions, configure
from fastgan.train.precision import choose
from fastgan.train.processes import SingleProcess
from fastgan.train.static_buffers import StaticBuffers, check_batch
from fastgan.train.updates import GANUpdates

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GANStep", "Phase", "Savings"]


class Phase(NamedTuple):
    """The kind of a step: whether G is updated too, and whether D's loss includes the gradient penalty."""

    both: bool
    penalty: bool


class GANStep(GANUpdates):
    """A training step of both networks, with their optimizers and the moving average. Each call runs one step.

        step = GANStep(netG, netD, nz=100, loss="bce", lr=2e-4)
        metrics = step(real)

    Parameters that the networks do not use, or that are frozen or unfrozen between two steps, are treated as in
    PyTorch with an Adam over all parameters. A discriminator that consists only of layers of torch.nn and fastgan
    receives images in channels_last; one with a custom `forward`, which may call `view`, receives them in NCHW.

    Args:
        generator: z (N, nz) or (N, nz, 1, 1) [, labels (N,)] -> images.
        discriminator: images [, labels (N,)] -> logits (N,), or equally many for each image; (N, 2) for the loss
            "softmax". If it ends in a sigmoid, "bce" and "minimax" are computed from probabilities.
        model: configuration of the noise.
        train: losses, optimizer and the order of updates.
        loss: a name, as in `TrainConfig`; a function of logits and targets such as `nn.MSELoss()`; or a pair of
            functions: the discriminator's loss(real_logits, fake_logits) and the generator's loss(fake_logits).
        optimizers: the generator's and the discriminator's optimizer, from `torch.optim`; by default Adam. On a GPU
            they are made capturable, and their learning rates become tensors.
        precision: "fp32", "tf32", "bf16", "fp16" or "auto".
        savings: optimizations of the step.
        history: the number of steps whose metrics are kept on the device.
        processes: the processes that share each batch, if there are several.
        **options: fields of `model` and `train` by name, such as nz and lr in the example; they take precedence.

    With `n_critic` k, every k-th call also updates the generator. With `accumulate` k, a call accumulates the gradients
    of k equal parts of the batch before each update; batch statistics are those of each part.

    Attributes:
        steps: the number of completed steps, on the host.
        total: the number of steps of the whole training, on the device, for schedules.
        metrics_buffer: the metrics of the last steps.
        buffers: the inputs of the last step.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, model: ModelConfig | None = None,
                 train: TrainConfig | None = None, *, loss: LossOption = None,
                 optimizers: tuple[Optimizer, Optimizer] | None = None, precision: str = "auto",
                 savings: Savings = ALL_SAVINGS, history: int = 1, processes: SingleProcess | None = None,
                 **options: Unpack[StepOptions]) -> None:
        model, train = configure(model, train, loss, optimizers, options)
        self._parameters: list[list[Tensor]] = [[p for p in network.parameters() if p.is_floating_point()]
                                                for network in (generator, discriminator)]
        device = next(p.device for params in self._parameters for p in params)
        precision = choose(precision, device) if precision == "auto" else precision
        super().__init__(generator, discriminator, train, None if isinstance(loss, str) else loss, precision, savings,
                         processes or SingleProcess())
        self.noise = Noise(model.noise, model.noise_mean, model.nz)
        self._requires_grad: list[bool] = []
        if optimizers is None:
            self.optimizer_g, self.optimizer_d = (
                make_adam(params, lr or train.lr, train, fused=savings.fused_adam)
                for params, lr in zip(self._parameters, (train.lr_g, train.lr_d), strict=True))
        else:
            check_optimizers(optimizers, (generator, discriminator))
            self.optimizer_g, self.optimizer_d = (GuardedOptimizer(optimizer, device) for optimizer in optimizers)
        self._find_trainable()
        self.ema = EMA(generator, train.ema, foreach=savings.foreach_ema) if train.ema else None
        self.scale = LossScale(precision == "fp16", device)
        self.kernels = StepKernels(self.impl, device)
        # precomputed, because `state` is called before every replay
        self._state_of_networks: list[tuple[dict[str, Any], str]] = [
            (tensors, key) for network in (generator, discriminator) for module in network.modules()
            for tensors in (module._parameters, module._buffers) for key in tensors if tensors[key] is not None]
        self.steps = 0
        self.t = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.full_like(self.t, train.steps or 1)
        self.halted = torch.zeros((), dtype=torch.float32, device=device)
        wide = torch.promote_types(self.params_g[0].dtype, torch.float32)
        self._one = torch.ones((), dtype=wide, device=device)  # gradient of a loss
        self.metrics_buffer = MetricsBuffer(history, device)
        self.buffers: StaticBuffers | None = None
        self._buffers: dict[int, StaticBuffers] = {}  # by batch size

    def __call__(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on real images (N, C, H, W), or points (N, 2), and labels (N,) of a conditional model.

        Returns scalars on the device: loss_d, d_real = E[D(x)], d_fake = E[D(G(z))], grad_norm_d, diversity (the
        deviation of the fakes in the batch, or with labels in each class, relative to that of the real images), finite,
        and, if the generator was updated too, loss_g and grad_norm_g.
        """
        inputs = (real,) if labels is None else (real, labels)
        phase = self.phase()
        metrics = self.run(phase, *inputs)
        self.advance(phase, *inputs)
        return metrics

    def phase(self) -> Phase:
        """The phase of the next step."""
        config = self.config
        return Phase((self.steps + 1) % config.d_steps == 0,
                     config.penalised and self.steps % config.penalty_every == 0)

    def is_ready(self, phase: Phase) -> bool:
        """Whether all state that a step of this phase changes exists; user optimizers create it in their first step."""
        used = [self.optimizer_d, *([self.optimizer_g] if phase.both else [])]
        return all(optimizer.is_ready for optimizer in used if isinstance(optimizer, GuardedOptimizer))

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        """The generator's and the discriminator's optimizer."""
        first, second = (optimizer.optimizer if isinstance(optimizer, GuardedOptimizer) else optimizer
                         for optimizer in (self.optimizer_g, self.optimizer_d))
        return first, second

    def _find_trainable(self) -> None:
        """Update the lists of parameters that require gradients, because some may have been frozen or unfrozen."""
        requires_grad = [p.requires_grad for params in self._parameters for p in params]
        if requires_grad == self._requires_grad:
            return
        self.params_g, self.params_d = ([p for p in params if p.requires_grad] for params in self._parameters)
        for name, params in (("generator", self.params_g), ("discriminator", self.params_d)):
            if not params:
                raise FastganError(f"no parameter of the {name} requires a gradient; expected one or more to train")
        dtype = None if self.impl == "reference" else HALF.get(self.precision)
        self.casts = Casts([*self.params_g, *self.params_d], dtype, originals(self.generator, self.discriminator))
        self._requires_grad = requires_grad

    def run(self, phase: Phase, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The part of a step that runs on the device."""
        self._find_trainable()
        if not self.savings.keep_casts:
            self.refresh()
        merged = self.processes.sync_bn_processes if self.config.sync_bn else 0
        with products(self.precision), self.casts.lent(), synchronised.over(merged):
            self.scale.begin()
            buffers = self._fill_buffers(real, labels)
            schedule.apply(self.config, self.t, self.total, [self.optimizer_g, self.optimizer_d])
            reuse = phase.both and self.config.fakes == "reuse" and self.config.accumulate == 1
            for part in buffers.parts(self.config.accumulate):
                with torch.set_grad_enabled(reuse):
                    fake = self.generate(part.z, part.condition)
                if fake.shape != part.fake.shape:  # copy_ would broadcast it
                    raise FastganError(f"the generator returned images {tuple(fake.shape)}; expected "
                                       f"{tuple(part.fake.shape)}, the shape of the real images")
                part.fake.copy_(fake.detach())
            metrics, skip = self._update_discriminator(buffers, phase.penalty)
            if phase.both:
                more, skip = self._update_generator(fake if reuse else None, buffers, skip)
                metrics |= more
            self.scale.update()
            return self._finish(buffers, metrics, skip)

    def advance(self, phase: Phase, real: Tensor, labels: Tensor | None = None) -> None:
        """The part of a step that runs on the host."""
        self.count(len(real))

    def count(self, size: int) -> None:
        """Count a step on a batch of `size` images."""
        self.steps += 1
        self.buffers = self._buffers[size]

    def draw(self, like: Tensor) -> Tensor:
        """Latent vectors (N, nz) for a batch like `like`, from the random generator of the device."""
        shard = self.processes.shard
        return shard.take(self.noise(len(like) * shard.of, device=like.device, dtype=like.dtype))

    def allocate(self, real: Tensor, labels: Tensor | None = None) -> None:
        """Allocate the static buffers for batches of this size, unless they exist. Each step calls this as well."""
        if len(real) not in self._buffers:
            check_batch(real, self.config)
            self.try_together(real, labels)
            if self.device.type == "cpu":
                memory.keep_freed()
            # in 16 bits, if D's first convolution would round the images anyway: not for float64, nor for penalties on
            # gradients with respect to images
            rounded = not self.config.penalised and real.dtype != torch.float64
            dtype = HALF.get(self.precision, real.dtype) if rounded else real.dtype
            self._buffers[len(real)] = StaticBuffers(self.noise.nz, real, labels, self.config.real_first, dtype,
                                                     self._channels_last)

    def _fill_buffers(self, real: Tensor, labels: Tensor | None) -> StaticBuffers:
        self.allocate(real, labels)
        buffers = self._buffers[len(real)]
        filled = [(self.draw(real), buffers.z), (real, buffers.real)]
        if self.config.fakes == "fresh-z":
            filled.insert(1, (self.draw(real), buffers.z_fresh))
        if labels is not None and buffers.labels is not None:
            filled += [(labels, half) for half in buffers.labels.split(len(real))]
        self.kernels.copy_unless(self.halted, filled)
        return buffers

    @torch.no_grad()
    def _finish(self, buffers: StaticBuffers, metrics: dict[str, Tensor], skip: Tensor) -> dict[str, Tensor]:
        """Complete the metrics and write them; then halt or advance to the next step."""
        state = skip, self.halted, self.t
        complete = self.kernels.finish(buffers, metrics, self.metrics_buffer, state, self.scale.enabled)
        if complete is not None:
            return complete
        if self.scale.enabled:  # the scale handles overflow of gradients; only a non-finite loss is a failure
            losses = torch.stack([value for key, value in metrics.items() if key.startswith("loss")])
            wrong = (~torch.isfinite(losses)).any().to(skip.dtype)
            self.halted.copy_(torch.maximum(self.halted, wrong))
        else:
            self.halted.copy_(skip)
        finite = 1 - self.halted
        metrics |= {"diversity": buffers.diversity(), "finite": finite}
        self.metrics_buffer.write(self.t, metrics)
        self.t += finite.to(self.t.dtype)
        return metrics

    def state(self) -> list[Tensor]:
        """All tensors that a step changes and a later step reads, except the random state. They are always the same
        tensors, until parameters are frozen or unfrozen."""
        self._find_trainable()
        return [*(tensors[key] for tensors, key in self._state_of_networks), *self.optimizer_g.tensors(),
                *self.optimizer_d.tensors(), *self.scale.tensors(), *([] if self.ema is None else self.ema.tensors()),
                self.t, self.halted, *self.casts.tensors(),
                *(tensor for buffers in self._buffers.values() for tensor in buffers.tensors()),
                self.metrics_buffer.rows]

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, except the random state."""
        state: dict[str, Any] = {name: item.state_dict() for name, item in self._stateful().items()}
        if self.ema is not None:
            state["ema_updates"] = self.ema.updates
        return {**state, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict` in place, so that captured graphs remain valid."""
        for name, item in self._stateful().items():
            item.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.updates.copy_(state["ema_updates"])
        self.steps = state["steps"]
        self.t.fill_(self.steps)
        self.halted.zero_()
        self.refresh()

    def refresh(self) -> None:
        """Update the 16-bit copies of weights after parameters were changed by anything but a step. Only needed with
        `Savings.keep_casts`; otherwise each step does this. Captured graphs remain valid."""
        self.casts.refresh()

    def _stateful(self) -> dict[str, Any]:
        # the names in checkpoints
        items = {"generator": self.generator, "discriminator": self.discriminator, "adam_g": self.optimizer_g,
                 "adam_d": self.optimizer_d, "scale": self.scale}
        return items if self.ema is None else {**items, "ema": self.ema.module}
