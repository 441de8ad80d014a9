"""Part two: whole training steps of dcgan-64 at full width, with every launch in the simulator.

Three networks start from the same weights and get the same images and noise: fastgan's kernels, eager PyTorch in the
same precision, and the reference in float64. Their updates are compared: the change of all parameters of a network as
one tensor (the first steps of Adam are about lr times the sign of the gradient, so a single parameter with a gradient
near zero may change in either direction), and the change of the running statistics. Gradients are compared tensor by
tensor, for one call of D on real and fake images with two statistic groups.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan
from fastgan import models, presets
from fastgan.nn import Chain, stat_groups
from fastgan.train.step import GANStep
from proofs.ptx import rule
from proofs.ptx.simulator import PLAIN, executing

STEPS = 3
CASES = [(8, "bf16", 80), (8, "tf32", 80), (8, "bf16", 90), (8, "tf32", 90), (32, "bf16", 80), (32, "tf32", 80)]
Around = Callable[[], AbstractContextManager[Any]]


class Variant(NamedTuple):
    """Both networks, the dtype of their tensors, the precision of their steps, and the context in which these run."""

    generator: nn.Module
    discriminator: nn.Module
    dtype: torch.dtype
    precision: str
    around: Around


class Given(NamedTuple):
    """The inputs of all variants: images (N, 3, 64, 64) of each step, and noise in the order in which it is drawn."""

    images: list[Tensor]
    noise: list[Tensor]


def given(batch: int) -> Given:
    torch.manual_seed(1)
    blur = nn.AvgPool2d(5, 1, 2)  # adjacent pixels are similar, as in pictures
    images = [blur(torch.rand(batch, 3, 64, 64) * 2 - 1) * 2 for _ in range(STEPS)]
    return Given(images, [torch.randn(batch, 100) for _ in range(2 * STEPS)])


def variants(ptxsim: Any, precision: str, arch: int) -> dict[str, Variant]:
    """The variants "ours", "eager" and "exact"."""
    torch.manual_seed(0)
    generator, discriminator = models.build(presets.get("dcgan-64").model, (3, 64, 64))
    kind = rule.PRECISIONS[precision]

    @contextmanager
    def mixed() -> Iterator[None]:
        with ExitStack() as stack:
            if kind.dtype != torch.float32:
                stack.enter_context(torch.autocast("cpu", kind.dtype))
            stack.enter_context(rule.products("tf32" if kind.tf32 else "fp32"))
            yield

    @contextmanager
    def eagerly() -> Iterator[None]:
        with mixed(), rule.eagerly(kind):
            yield

    @contextmanager
    def simulated() -> Iterator[None]:
        with mixed(), executing(ptxsim, arch, PLAIN) as names:
            yield
            if not names:
                raise AssertionError("no kernel was launched")

    def pair(impl: str) -> tuple[nn.Module, nn.Module]:
        networks = copy.deepcopy(generator), copy.deepcopy(discriminator)
        for network in networks:
            for module in network.modules():
                if isinstance(module, Chain):
                    module.impl = impl
        return networks

    ours, exact = pair("triton"), pair("reference")
    return {"ours": Variant(*ours, torch.float32, precision, simulated),
            "eager": Variant(fastgan.to_eager(generator), fastgan.to_eager(discriminator), torch.float32, precision,
                            eagerly),
            "exact": Variant(exact[0].double(), exact[1].double(), torch.float64, "fp32", ExitStack)}


def train(variant: Variant, seen: Given) -> dict[str, Tensor]:
    """The change of the parameters and the running statistics of each network in three steps."""
    networks = {"generator": variant.generator, "discriminator": variant.discriminator}
    config = presets.get("dcgan-64")
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    step = GANStep(variant.generator, variant.discriminator, config.model, config.train, precision=variant.precision)
    noise = iter(seen.noise)
    step.draw = lambda like: next(noise).to(variant.dtype)  # type: ignore[method-assign]
    for images in seen.images:
        with variant.around():
            step(images.to(variant.dtype))
    moved = {}
    for name, network in networks.items():
        after = network.state_dict()
        for what in ("parameters", "running_mean", "running_var"):
            keys = [key for key in after if "tracked" not in key and
                    (key.endswith(what) if what != "parameters" else "running" not in key)]
            moved[f"{name} {what}"] = torch.cat([(after[key] - before[name][key]).flatten() for key in keys])
    return moved


def differentiate(variant: Variant, seen: Given) -> dict[str, Tensor]:
    """Logits, all gradients and the running statistics of D for real and fake images in one batch."""
    network = variant.discriminator
    batch = torch.cat([seen.images[0], -seen.images[1]]).to(variant.dtype)
    with variant.around():
        if any(isinstance(module, Chain) for module in network.modules()):
            with stat_groups(network, 2):
                logits = network(batch)
        else:
            logits = torch.cat([network(part) for part in batch.chunk(2)])
        labels = torch.cat([torch.ones(len(batch) // 2), torch.zeros(len(batch) // 2)]).to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        names, parameters = zip(*network.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters)
    return {"logits": logits.detach(), **dict(zip(names, grads, strict=True)),
            **{key: value for key, value in network.named_buffers() if "tracked" not in key}}


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all cases, print lines for each, and return the failures."""
    failures = []
    torch.set_num_threads(2)
    for batch, precision, arch in CASES[:1] if quick else CASES:
        seen = given(batch)
        for what, run in (("D on two groups", differentiate), (f"{STEPS} steps", train)):
            line = f"sm_{arch} {precision} dcgan-64 batch {batch}, {what}"
            if match not in line:
                continue
            begin = time.perf_counter()
            found = {name: run(variant, seen) for name, variant in variants(ptxsim, precision, arch).items()}
            parts = {key: rule.used(found["ours"][key], found["eager"][key], value, rule.FLOAT32)
                     for key, value in found["exact"].items()}
            print(f"{line}: {max(parts.values()):.2f} of the allowed error, {time.perf_counter() - begin:.0f} s")
            for key, part in parts.items():
                distances = [_distance(found[name][key], found["exact"][key]) for name in ("ours", "eager")]
                print(f"    {key:28} {part:.2f}   error: ours {distances[0]:.1e}, eager {distances[1]:.1e}",
                      flush=True)
                if not part <= 1:
                    failures.append(f"{line}: {key}: {part:.2f} of the allowed error")
    return failures


def _distance(found: Tensor, exact: Tensor) -> float:
    """Relative root mean square error."""
    return float((found.double() - exact).norm() / exact.norm())
