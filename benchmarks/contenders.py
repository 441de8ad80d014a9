"""Who takes part in `benchmarks/step.py`: the textbook's step of dcgan-64, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastgan
from fastgan import presets
from fastgan.config import Config
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops import plan
from fastgan.ops.engines import why_not
from fastgan.ops.plan import stored
from fastgan.train.graph import GraphedStep
from fastgan.train.planned import like_a_batch, make
from fastgan.train.step import GANStep, Savings

Step = Callable[[Tensor], object]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
DCGAN = presets.get("dcgan-64")
SHAPE = (3, 64, 64)
BASE = "textbook, channels_last"  # on the CPU
SAVED = "channels_last, no gradients of D in G's update"
NONE = Savings(**{field.name: False for field in fields(Savings)})
SINGLE = {f"without {field.name}": replace(Savings(), **{field.name: False})
          for field in fields(Savings) if field.name != "foreach_ema"}  # dcgan-64 keeps no moving average


class Contender(NamedTuple):
    """One of those on a GPU.

    engine: "torch" for the textbook. precision: "tf32" or "bf16". against: the textbook of the same precision.
    make: a new step, seeded by the caller. layout: of the images that it is given. tuned: cudnn.benchmark.
    """

    name: str
    engine: str
    precision: str
    against: str
    make: Callable[[], Step]
    layout: torch.memory_format = torch.channels_last
    tuned: bool = True


def on_cpu(table: str, batch: int) -> dict[str, Callable[[], Step]]:
    """Those of a table: "savings", or the engines in "fp32" or "bf16"."""
    return savings() if table == "savings" else engines(table, batch)


def savings() -> dict[str, Callable[[], Step]]:
    """Float32 and PyTorch's operators: what each saving earns."""
    return {
        "textbook, NCHW": lambda: textbook(torch.contiguous_format),
        BASE: lambda: textbook(torch.channels_last),
        "fastgan, no saving": lambda: ours(NONE),
        **{f"fastgan {name}": partial(ours, savings) for name, savings in SINGLE.items() if name != "without together"},
        "fastgan with together": lambda: ours(replace(Savings(), together=True)),  # which it is not on a CPU
        "fastgan": lambda: ours(Savings()),
    }


def engines(precision: str, batch: int) -> dict[str, Callable[[], Step]]:
    """PyTorch, also with the work saved that a textbook wastes, and ours on each engine."""
    saved = partial(careful_textbook, DCGAN, CPU, precision, saved=True)
    return {
        "textbook, NCHW": partial(careful_textbook, DCGAN, CPU, precision, layout=torch.contiguous_format),
        BASE: partial(careful_textbook, DCGAN, CPU, precision),
        SAVED: saved,
        f"torch.compile of {SAVED}": partial(saved, compiled=True),
        "fastgan, reference": partial(ours, Savings(), precision=precision),
        "fastgan, native": partial(ours, Savings(together=False), impl="native", precision=precision),
        "fastgan, native, D on both halves at once": partial(ours, Savings(together=True), impl="native",
                                                             precision=precision),
        "fastgan, plan": partial(planned, precision, batch),
    }


def on_gpu(config: Config = DCGAN, device: torch.device = GPU) -> list[Contender]:
    """The textbook as it stands and as a careful user has it; ours on each engine, and without each saving.

    Convolutions of the same shape share what cudnn.benchmark has found in a process, whoever asked for it. So it is on
    for all of one precision: for those in bfloat16, as the strongest textbook has it.
    """
    plain, careful = "textbook: NCHW, TF32 as PyTorch has it", "textbook: channels_last, autocast bf16"
    found = [Contender(plain, "torch", "tf32", plain, partial(textbook, torch.contiguous_format, config, device),
                       torch.contiguous_format, False),
             Contender(careful, "torch", "bf16", careful, partial(careful_textbook, config, device))]
    for impl in ("reference", *(["native"] if not why_not("native", device) else []), "triton"):
        def contender(words: str, savings: Savings, graph: bool, impl: str = impl) -> Contender:
            return Contender(f"fastgan, {impl}: {words}", impl, "bf16", careful,
                             partial(_graphed if graph else ours, savings, config, device, impl, "bf16"))

        found += [contender("by hand", Savings(), False), contender("graph", Savings(), True),
                  *(contender(f"graph {name}", savings, True) for name, savings in SINGLE.items()),
                  contender("graph, no saving", NONE, True)]
    return found


def textbook(layout: torch.memory_format, config: Config = DCGAN, device: torch.device = CPU) -> Step:
    """The loop of PyTorch's DCGAN example, with eager layers; it reads its losses in each step, as the example does."""
    generator, discriminator, adam_g, adam_d = _eager(layout, config, device)
    criterion = nn.BCEWithLogitsLoss()

    def step(real: Tensor) -> object:
        ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
        discriminator.zero_grad()
        on_real = discriminator(real.to(memory_format=layout))
        loss_real = criterion(on_real, ones)
        loss_real.backward()
        fake = generator(torch.randn(len(real), config.model.nz, device=device))
        on_fake = discriminator(fake.detach())
        loss_fake = criterion(on_fake, zeros)
        loss_fake.backward()
        adam_d.step()
        generator.zero_grad()
        loss_g = criterion(discriminator(fake), ones)
        loss_g.backward()
        adam_g.step()
        return loss_real.item() + loss_fake.item(), loss_g.item()

    return step


def careful_textbook(config: Config, device: torch.device, precision: str = "bf16", *, saved: bool = False,
                     compiled: bool = False, layout: torch.memory_format = torch.channels_last) -> Step:
    """The same loop, in channels_last, with one backward pass for D, which waits for nothing; bf16 by autocast.

    saved: no gradients of D's weights in G's update.
    """
    generator, discriminator, adam_g, adam_d = _eager(layout, config, device)
    weights = list(discriminator.parameters())
    criterion = nn.BCEWithLogitsLoss()
    if compiled:
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)  # type: ignore[assignment]

    def step(real: Tensor) -> object:
        ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
        discriminator.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            fake = generator(torch.randn(len(real), config.model.nz, device=device))
            on_real, on_fake = discriminator(real.to(memory_format=layout)), discriminator(fake.detach())
            loss_d = criterion(on_real, ones) + criterion(on_fake, zeros)
        loss_d.backward()
        adam_d.step()
        generator.zero_grad()
        for weight in weights:
            weight.requires_grad_(not saved)
        # anew, as it remembers D's weights as they were
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss_g = criterion(discriminator(fake), ones)
        loss_g.backward()
        for weight in weights:
            weight.requires_grad_(True)
        adam_g.step()
        return loss_d.detach(), loss_g.detach()

    return step


def _eager(layout: torch.memory_format, config: Config,
           device: torch.device) -> tuple[nn.Module, nn.Module, torch.optim.Adam, torch.optim.Adam]:
    generator, discriminator = (fastgan.to_eager(network).to(device=device, memory_format=layout)
                                for network in build(config.model, SHAPE))
    adam_g, adam_d = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
                      for network in (generator, discriminator))
    return generator, discriminator, adam_g, adam_d


def ours(savings: Savings, config: Config = DCGAN, device: torch.device = CPU, impl: str = "reference",
         precision: str = "fp32") -> GANStep:
    generator, discriminator = (use(network, impl).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                                for network in build(config.model, SHAPE))
    return GANStep(generator, discriminator, config.model, config.train, precision=precision, savings=savings,
                   history=10)


def planned(precision: str, batch: int) -> GANStep:
    """Ours by the plan of this machine, which is measured where it is not known."""
    step = ours(Savings(together=False), impl="auto", precision=precision)
    images = like_a_batch(batch, SHAPE, False, CPU)
    plan.use(make(step, images, stored.machine(CPU)))
    return step


def _graphed(savings: Savings, config: Config, device: torch.device, impl: str, precision: str) -> GraphedStep:
    return GraphedStep(ours(savings, config, device, impl, precision))
