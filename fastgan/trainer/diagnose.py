"""Where a step first left the finite numbers: the step once more with a witness at every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.ops.numerics import products
from fastgan.train.step import GANStep


def first_non_finite(step: GANStep) -> str:
    """The name of the first tensor, in order of computation, that is not finite when the held step is done again.

    A step that is not finite changes no parameter, and what it was given is held, so all is as it was.
    """
    held = step.held
    assert held is not None, "diagnose comes after a step"
    found: list[str] = []

    def check(name: str, *tensors: Tensor | None) -> None:
        if any(t is not None and not torch.isfinite(t).all() for t in tensors):
            found.append(name)

    check("the batch of real data", held.real)
    for name, network in (("generator", step.generator), ("discriminator", step.discriminator)):
        for key, parameter in network.named_parameters():
            check(f"parameter {name}.{key}", parameter)
    with products(step.precision):
        with _watching("generator", step.generator, check):
            fake = step.generate(held.z, held.given())
        held.fake.copy_(fake.detach())
        with _watching("discriminator", step.discriminator, check):
            loss_d, _, _ = step.discriminator_loss(held, step.phase().penalty)
        check("loss_d", loss_d)
        _check_gradients("discriminator", step.discriminator, loss_d, check)
        if step.config.fakes == "fresh-z":
            with _watching("generator", step.generator, check):
                fake = step.generate(held.z_fresh, held.given())
        with _watching("discriminator", step.discriminator, check):
            loss_g = step.generator_loss(fake, held.given())
        check("loss_g", loss_g)
        _check_gradients("generator", step.generator, loss_g, check)
    return found[0] if found else "none when computed again: the fault did not repeat"


@contextmanager
def _watching(prefix: str, network: nn.Module, check: Any) -> Iterator[None]:
    """Check the output of every leaf module while the block runs."""
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
    """From the last layer back to the first, as backward goes."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for (name, _), grad in reversed(list(zip(named, grads, strict=True))):
        check(f"gradient of {prefix}.{name}", grad)
