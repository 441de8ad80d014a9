"""One step of an experiment, counted: fastgan's as it is trained, and the textbook's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import fastgan
from fastgan.config import Config
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops import tuning as plan
from fastgan.ops.numerics import HALF
from fastgan.train.step import GANStep, Savings
from fastgan.verify.checks import shape_of
from fastgan.verify.cost.fusion import fused
from fastgan.verify.cost.kernel import Kernel
from fastgan.verify.cost.tape import Tape, recording
from fastgan.verify.cost.textbook import Textbook

Step = Callable[..., object]
Networks = tuple[nn.Module, nn.Module]


class Experiment(NamedTuple):
    """What is counted: networks and losses, images of `shape`, or points, and how many; classes: labels, 0 for none."""

    config: Config
    batch: int
    precision: str
    shape: tuple[int, ...]
    classes: int = 0


class Count(NamedTuple):
    """A step's kernels, in order; how often the host launches something; bytes of the tensors alive together."""

    kernels: list[Kernel]
    launches: int
    peak: int


class Prepared(NamedTuple):
    """A step, what it is called with, its parameters by name, and the tensors that are there before it."""

    step: Step
    batch: tuple[Tensor, ...]
    parameters: dict[str, Tensor]
    state: list[Tensor]
    host: list[Tensor]


def experiment(config: Config, batch: int, precision: str) -> Experiment:
    """On the preset's own data, without labels."""
    return Experiment(config, batch, precision, shape_of(config))


def ours(what: Experiment, *, impl: str = "triton", arch: int = 90) -> Count:
    """fastgan's step, D and G, on a batch that is on the device; captured in one graph.

    impl: "triton", compiled for sm_`arch`, or "reference".
    """
    with imagined():
        tape = recorded(ours_step(what, impl), arch if impl == "triton" else None)
    return Count(tape.kernels, 1, tape.peak)


def eager(what: Experiment) -> tuple[Count, Count]:
    """The textbook's step, and what a compiler would make of it (`fusion.py`), which needs no less memory."""
    with imagined():
        tape = recorded(textbook_step(what))
    compiled = fused(tape.kernels, tape.before)
    return Count(tape.kernels, len(tape.kernels), tape.peak), Count(compiled, len(compiled), tape.peak)


@contextmanager
def imagined() -> Iterator[None]:
    """Within the block tensors have no data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def recorded(made: Prepared, arch: int | None = None) -> Tape:
    """The tape of a step, with Triton's kernels for sm_`arch`, or without any.

    What names no engine is counted as the reference, not as the default of the CPU, on which these tensors seem to be.
    """
    tape = Tape(made.parameters, [*made.state, *made.batch], made.host)
    with plan.use(plan.Plan(engine="reference")), recording(tape, arch):
        made.step(*made.batch)
    return tape


def ours_step(what: Experiment, impl: str) -> Prepared:
    generator, discriminator = (use(network, impl) for network in networks(what))
    # a moving average copies the generator; torch's own copy of a buffer would read and write memory that is not there
    generator.__deepcopy__ = lambda memo: use(networks(what)[0], impl)  # type: ignore[assignment]
    savings = Savings(together=True if impl == "triton" else None)  # these tensors are on a CPU, what is counted is not
    step = GANStep(generator, discriminator, what.config.model, what.config.train, precision=what.precision,
                   savings=savings)
    batch = _batch(what)
    step.allocate(*batch)
    parameters = _named(generator, discriminator)
    if impl == "triton" and step.precision in HALF:  # what is read from them is read for their layers
        copies = {f"{name}, cast": step.casts.take(parameter, HALF[step.precision])
                  for name, parameter in parameters.items() if parameter.dim() == 4}
        parameters |= {name: copy for name, copy in copies.items() if copy is not None}
    return Prepared(step, batch, parameters, step.state(), [])


def textbook_step(what: Experiment) -> Prepared:
    generator, discriminator = (fastgan.to_eager(network) for network in networks(what))
    step = Textbook(generator, discriminator, what.config, what.precision)
    batch = _batch(what)
    step(*batch)  # Adam makes its state in the first one
    moments = [state for adam in (step.adam_g, step.adam_d) for state in adam.state.values()]
    state = [*generator.buffers(), *discriminator.buffers(),
             *(one[key] for one in moments for key in ("exp_avg", "exp_avg_sq"))]
    return Prepared(step, batch, _named(generator, discriminator), state, [one["step"] for one in moments])


def networks(what: Experiment) -> Networks:
    """Generator and discriminator in channels_last; fake tensors where `imagined` is entered."""
    # initialisers know real tensors without data, but draw again and again from fake ones
    with unset_fake_temporarily(), torch.device("meta"):
        generator, discriminator = build(what.config.model, what.shape, what.classes)
    for network in (generator, discriminator):
        for module in network.modules():
            for places in (module._parameters, module._buffers):
                for name, tensor in places.items():
                    if tensor is not None:
                        places[name] = _like(tensor)  # type: ignore[assignment]
    return generator, discriminator


def _like(tensor: Tensor) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", memory_format=layout)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _batch(what: Experiment) -> tuple[Tensor, ...]:
    real = torch.empty(what.batch, *what.shape, device="cpu")
    real = real.to(memory_format=torch.channels_last) if real.dim() == 4 else real
    return (real, torch.zeros(what.batch, dtype=torch.long, device="cpu")) if what.classes else (real,)


def _named(generator: nn.Module, discriminator: nn.Module) -> dict[str, Tensor]:
    return {f"{letter} {name}": parameter for letter, network in (("G", generator), ("D", discriminator))
            for name, parameter in network.named_parameters()}
