"""The checks of a certificate: their engines, precisions and networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from fastgan.config import Config, data_shape
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.ops import engines, numerics
from fastgan.ops.dispatch import ENGINES
from fastgan.verify import blocks, machine, step_comparison
from fastgan.verify.result import Result, run

WIDTH = 8  # width of networks in Triton's interpreter, which is about a million times slower than a GPU


class Engine(NamedTuple):
    """An engine that is available on the device. width: the width of the narrowed networks on which it is checked;
    None for the original networks."""

    impl: str
    precisions: tuple[str, ...]
    note: str
    width: int | None = None


class Check(NamedTuple):
    """One line of the certificate, and the function that computes it. width: as in `Engine`."""

    part: str
    what: str
    engine: str
    precision: str
    width: int | None
    run: Callable[[], Result]


def usable(impl: str, device: torch.device) -> list[Engine]:
    """The engine `impl`, or for "auto" all engines that are available on the device. Raises `FastganError` if `impl` is
    not available."""
    names = ENGINES if impl == "auto" else (impl,)
    reasons = {name: machine.why_not(name, device) for name in names}
    if impl != "auto" and reasons[impl]:
        raise FastganError(f"--impl {impl} on {device}: {reasons[impl]}; expected auto or reference")
    return [_engine(name, device) for name in names if not reasons[name]]


def _engine(impl: str, device: torch.device) -> Engine:
    if machine.interpreted(impl, device):  # the interpreter computes bfloat16 incorrectly, and has no tf32
        return Engine(impl, ("fp32", "fp16"), "in Triton's interpreter", WIDTH)
    note = "PyTorch operators" if impl == "reference" else "compiled kernels"
    if device.type != "cuda":  # eager PyTorch trains here in float32, or in bfloat16 under autocast
        return Engine(impl, ("fp32",) if impl == "reference" else ("fp32", "bf16", "fp16"), note)
    modern = torch.cuda.get_device_capability(device) >= engines.OLDEST
    return Engine(impl, ("fp32", "tf32", "bf16", "fp16") if modern else ("fp32", "fp16"), note)


def plan(config: Config, usable: list[Engine], batch: int, count: int,
         device: torch.device) -> tuple[list[Check], list[str]]:
    """All checks in order, with `count` training steps, and a line with the reason for each check that is omitted."""
    checks: list[Check] = []
    missing: list[str] = []
    for engine in usable:
        narrow = narrowed(config, engine)
        width = None if narrow is config else engine.width
        networks = blocks_of(narrow)
        if not networks:
            missing.append(f"operations on {engine.impl}: not checked: no convolution in these networks")
            if engine.impl != "reference":
                continue  # no operation of a step would run on this engine
        own = [Check("operations", block.name, engine.impl, precision, width,
                     partial(run, partial(blocks.compare, block, engine.impl, numerics.PRECISIONS[precision], batch,
                                          device), engine.impl))
               for block in networks for precision in engine.precisions]
        own += _steps(narrow, engine, width, batch, count, device)
        if engine.width is not None:
            own = [check._replace(run=partial(_one_thread, check.run)) for check in own]
        checks += own
    reason = step_comparison.why_no_graph(device)
    if reason:
        missing.append(f"{_steps_in_words(count)} as a CUDA graph: not checked: {reason}")
    return checks, missing


def narrowed(config: Config, engine: Engine) -> Config:
    """The configuration of the networks on which an engine is checked: `config`, narrowed to the width of the engine.
    """
    model = config.model
    if engine.width is None or model.architecture != "dcgan" or max(model.ngf, model.ndf) <= engine.width:
        return config
    return config.replace(preset=config.preset, ngf=min(engine.width, model.ngf), ndf=min(engine.width, model.ndf))


def blocks_of(config: Config) -> list[blocks.Block]:
    """The distinct blocks of generator and discriminator."""
    torch.manual_seed(0)
    generator, discriminator = build(config.model, data_shape(config))
    return [*blocks.blocks_of(generator, torch.zeros(2, config.model.nz), "G", 1),
            *blocks.blocks_of(discriminator, torch.zeros(2, *data_shape(config)), "D", 2)]


def _steps(config: Config, engine: Engine, width: int | None, batch: int, count: int,
           device: torch.device) -> Iterator[Check]:
    for precision in engine.precisions:
        if precision not in step_comparison.PRECISIONS:
            continue
        setup = step_comparison.make_setup(config, batch, count, precision, device)
        allowed: dict[str, numerics.Nearness] = {}

        def one_by_one(setup: step_comparison.Setup = setup, allowed: dict[str, numerics.Nearness] = allowed) -> Result:
            result = run(partial(step_comparison.compare, setup, engine.impl), engine.impl)
            allowed.update(result.quantities)
            return result

        yield Check("steps", _steps_in_words(count), engine.impl, precision, width, one_by_one)
        if not step_comparison.why_no_graph(device):
            graph = partial(step_comparison.compare_graph, setup, engine.impl, allowed)
            yield Check("steps", f"{_steps_in_words(count)} as a CUDA graph", engine.impl, precision, width,
                        partial(run, graph, engine.impl))


def _steps_in_words(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _one_thread(run: Callable[[], Result]) -> Result:
    """Run a check with one thread, which is faster for the small operations of the interpreter."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return run()
    finally:
        torch.set_num_threads(threads)
