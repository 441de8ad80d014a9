"""The backward part of a step: gradients of the losses, and the updates of the optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.casts import Casts
from fastgan.train.ema import EMA
from fastgan.train.gan_losses import GANLosses
from fastgan.train.kernels import StepKernels, Update
from fastgan.train.loss_scale import LossScale
from fastgan.train.optim import DeviceAdam
from fastgan.train.optimizers import GuardedOptimizer
from fastgan.train.processes import Gradients
from fastgan.train.static_buffers import StaticBuffers

Scalars = dict[str, Tensor]  # metrics by name


class GANUpdates(GANLosses):
    """`GANLosses` with updates of the networks. `GANStep` sets the attributes."""

    optimizer_g: DeviceAdam | GuardedOptimizer
    optimizer_d: DeviceAdam | GuardedOptimizer
    params_g: list[Tensor]
    params_d: list[Tensor]
    casts: Casts
    ema: EMA | None
    scale: LossScale
    kernels: StepKernels
    halted: Tensor
    _one: Tensor  # gradient of a loss

    def _update_discriminator(self, buffers: StaticBuffers, penalty: bool) -> tuple[Scalars, Tensor]:
        self.optimizer_d.zero_grad(set_to_none=True)  # from an interrupted step, or a backward pass of the user
        apart = not (self.together or penalty or self.loss.both)
        losses = self._losses_by_halves(buffers) if apart else self._losses_of_both(buffers, penalty)
        grads, metrics = self._gradients(losses, (2 if apart else 1) * self.config.accumulate, self.params_d)
        clip = self.config.weight_clip
        update = self._descend(metrics["loss_d"], grads, self.params_d, self.optimizer_d, self.halted,
                               casts=None if clip else self.casts)
        if clip:
            bound = torch.where(update.skip > 0, torch.inf, self.params_d[0].new_full((), clip))
            with torch.no_grad():
                for parameter in self.params_d:
                    parameter.clamp_(-bound, bound)
            self.casts.refresh(self.params_d)
        return {"loss_d": metrics["loss_d"], "grad_norm_d": update.norm, "d_real": metrics["d_real"],
                "d_fake": metrics["d_fake"]}, update.skip

    def _losses_of_both(self, buffers: StaticBuffers, penalty: bool) -> Iterator[Scalars]:
        """The discriminator's loss of each part of a batch."""
        for part in buffers.parts(self.config.accumulate):
            loss, d_real, d_fake = self.discriminator_loss(part, penalty)
            yield {"loss_d": loss, "d_real": d_real, "d_fake": d_fake}

    def _losses_by_halves(self, buffers: StaticBuffers) -> Iterator[Scalars]:
        """Like `_losses_of_both`, but with separate losses of reals and of fakes, so that only the activations of one
        half are in memory at a time."""
        def of_reals(part: StaticBuffers) -> Scalars:
            loss, d_real = self._real_loss(self.judge(part.real, *part.condition))
            return {"loss_d": loss, "d_real": d_real}

        def of_fakes(part: StaticBuffers) -> Scalars:
            loss, d_fake = self._fake_loss(self.judge(part.fake, *part.condition))
            return {"loss_d": loss, "d_fake": d_fake}

        for part in buffers.parts(self.config.accumulate):
            for half in (of_reals, of_fakes) if self.config.real_first else (of_fakes, of_reals):
                yield half(part)

    def _update_generator(self, fake: Tensor | None, buffers: StaticBuffers, skip: Tensor) -> tuple[Scalars, Tensor]:
        """fake: the differentiable fakes of the discriminator's update, if they can be reused."""
        self.optimizer_g.zero_grad(set_to_none=True)
        unused = [] if self.savings.frozen else self.params_d
        losses = self._losses_of_generator(fake, buffers)
        grads, metrics = self._gradients(losses, self.config.accumulate, [*self.params_g, *unused])
        update = self._descend(metrics["loss_g"], grads[: len(self.params_g)], self.params_g, self.optimizer_g, skip,
                               casts=self.casts if self.savings.keep_casts else None, ema=self.ema)
        return {"loss_g": metrics["loss_g"], "grad_norm_g": update.norm}, update.skip

    def _losses_of_generator(self, fake: Tensor | None, buffers: StaticBuffers) -> Iterator[Scalars]:
        for part in buffers.parts(self.config.accumulate):
            z = part.z_fresh if self.config.fakes == "fresh-z" else part.z
            images = self.generate(z, part.condition) if fake is None else fake
            yield {"loss_g": self.generator_loss(images, part.condition)}

    def _gradients(self, losses: Iterator[Scalars], count: int, params: list[Tensor]) -> tuple[Gradients, Scalars]:
        """Gradients of the losses, averaged over the parts of a batch, and the means of all scalars. Both are averaged
        over processes.

        losses: `count` items, of which the first scalar is the loss.
        """
        totals: Scalars = {}
        for index, scalars in enumerate(losses, 1):
            name, loss = next(iter(scalars.items()))
            if self.config.accumulate > 1:
                scalars = {key: value / self.config.accumulate for key, value in scalars.items()}
                loss = scalars[name]
            totals |= {key: totals[key] + value.detach() if key in totals else value.detach()
                       for key, value in scalars.items()}
            if index < count:
                self.scale(loss).backward(self._one, inputs=params)
        grads, means = self.processes.gradients(self.scale(loss), self._one, params, list(totals.values()))
        return grads, dict(zip(totals, means, strict=True))

    def _descend(self, loss: Tensor, grads: Gradients, params: list[Tensor], optimizer: Any, skip: Tensor, *,
                 casts: Casts | None = None, ema: EMA | None = None) -> Update:
        """Update the parameters and drop the gradients. The update is skipped if `skip` is 1 or the loss or a gradient
        is not finite. Parameters without a gradient, which the network does not use, are not changed.

        casts: 16-bit copies that are read before they are refreshed. ema: the average of these parameters.
        """
        for parameter, grad in zip(params, grads, strict=True):
            if grad is None:
                continue
            # update kernels iterate over memory, so gradients must have the strides of their parameters
            same = grad.stride() == parameter.stride()
            parameter.grad = grad if same else torch.empty_like(parameter).copy_(grad)
        self.scale.undo(optimizer)
        update = (self.kernels.update(loss, params, optimizer, skip, self.config.grad_clip, casts, ema)
                  or self._step(loss, params, optimizer, skip, casts, ema))
        optimizer.zero_grad(set_to_none=True)
        return update

    def _step(self, loss: Tensor, params: list[Tensor], optimizer: Any, skip: Tensor, casts: Casts | None,
              ema: EMA | None) -> Update:
        """The update of `_descend` with PyTorch operators."""
        used = [p.grad for p in params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(used)))
        # non-finite values times 0 are NaN; this needs half the launches of isfinite
        skip = torch.maximum(skip, (norm + loss.detach()) * 0 != 0)
        if self.config.grad_clip:
            torch._foreach_mul_(used, (self.config.grad_clip / (norm + 1e-6)).clamp(max=1))
        optimizer.found_inf = skip
        optimizer.step()
        if casts is not None:
            casts.refresh(params)
        if ema is not None:
            ema.update(skip)
        return Update(norm, skip)
