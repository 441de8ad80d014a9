"""Finds the first non-finite tensor of a step, by repeating the step with a check after every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.ops.numerics import products
from fastgan.train.step import GANStep


def error(step: GANStep, metrics: dict[str, float], path: Path) -> FastganError:
    """The error for a step with non-finite metrics, whose state and inputs were saved at `path`."""
    name = next((key for key, value in metrics.items() if key != "diversity" and not math.isfinite(value)), "a loss")
    return FastganError(f"{name} is {metrics.get(name)} at step {step.steps + 1}; first non-finite tensor: "
                        f"{first_non_finite(step)}; state and batch are in {path}")


def first_non_finite(step: GANStep) -> str:
    """Repeat the last step and return the name of the first non-finite tensor, in order of computation.

    The step can be repeated, because a non-finite step changes no parameter and its inputs are still in the buffers.
    """
    buffers = step.buffers
    assert buffers is not None, "first_non_finite is called after a step"
    non_finite: list[str] = []

    def check(name: str, *tensors: Tensor | None) -> None:
        if any(t is not None and not torch.isfinite(t).all() for t in tensors):
            non_finite.append(name)

    check("the batch of real data", buffers.real)
    for name, network in (("generator", step.generator), ("discriminator", step.discriminator)):
        for key, parameter in network.named_parameters():
            check(f"parameter {name}.{key}", parameter)
    with products(step.precision):
        with _watching("generator", step.generator, check):
            fake = step.generate(buffers.z, buffers.condition)
        buffers.fake.copy_(fake.detach())
        with _watching("discriminator", step.discriminator, check):
            loss_d, _, _ = step.discriminator_loss(buffers, step.phase().penalty)
        check("loss_d", loss_d)
        _check_gradients("discriminator", step.discriminator, loss_d, check)
        if step.config.fakes == "fresh-z":
            with _watching("generator", step.generator, check):
                fake = step.generate(buffers.z_fresh, buffers.condition)
        with _watching("discriminator", step.discriminator, check):
            loss_g = step.generator_loss(fake, buffers.condition)
        check("loss_g", loss_g)
        _check_gradients("generator", step.generator, loss_g, check)
    return non_finite[0] if non_finite else "none when the step was repeated"


@contextmanager
def _watching(prefix: str, network: nn.Module, check: Any) -> Iterator[None]:
    """A context manager that checks the output of every leaf module."""
    def hook(name: str) -> Any:
        return lambda module, inputs, output: check(f"output of {prefix}.{name} ({type(module).__name__})", output)

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()
               if not list(module.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_gradients(prefix: str, network: nn.Module, loss: Tensor, check: Any) -> None:
    """Check the gradients of all parameters, from the last layer to the first, as backward computes them."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for (name, _), grad in reversed(list(zip(named, grads, strict=True))):
        check(f"gradient of {prefix}.{name}", grad)
