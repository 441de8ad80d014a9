"""What a certificate examines: which engines, in which precisions, on which networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from fastgan.config import Config, parse_size
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.ops import engines, numerics
from fastgan.ops.dispatch import ENGINES
from fastgan.ops.tuning import active, candidates
from fastgan.verify import game, machine, operations, stages, steps
from fastgan.verify.found import Found
from fastgan.verify.game import Game, Networks

WIDTH = 8  # of networks in Triton's interpreter, which takes a second for what takes a GPU microseconds
_GREY = ("digits", "mnist", "fashion-mnist")


class Engine(NamedTuple):
    """One that runs on the device. width: that networks are narrowed to where they can be, None for their own."""

    impl: str
    precisions: tuple[str, ...]
    note: str
    width: int | None = None


class Check(NamedTuple):
    """One line of the certificate, and what finds it. width: of the networks, None for their own."""

    part: str
    what: str
    engine: str
    precision: str
    width: int | None
    find: Callable[[], Found]


def usable(impl: str, device: torch.device) -> list[Engine]:
    """The engines that `impl` names ("auto": all) and that run on the device; `FastganError` for one that does not."""
    names = ENGINES if impl == "auto" else (impl,)
    reasons = {name: machine.why_not(name, device) for name in names}
    if impl != "auto" and reasons[impl]:
        raise FastganError(f"--impl {impl} on {device}: {reasons[impl]}; expected auto or reference")
    return [_engine(name, device) for name in names if not reasons[name]]


def _engine(impl: str, device: torch.device) -> Engine:
    if machine.interpreted(impl, device):  # which computes bfloat16 wrongly, and has no tensor cores
        return Engine(impl, ("fp32", "fp16"), "in Triton's interpreter", WIDTH)
    note = "PyTorch's operators" if impl == "reference" else "compiled kernels"
    if device.type != "cuda":  # where eager PyTorch trains in float32 or, as autocast has it there, in bfloat16
        return Engine(impl, ("fp32",) if impl == "reference" else ("fp32", "bf16", "fp16"), note)
    modern = torch.cuda.get_device_capability(device) >= engines.OLDEST
    return Engine(impl, ("fp32", "tf32", "bf16", "fp16") if modern else ("fp32", "fp16"), note)


def plan(config: Config, usable: list[Engine], batch: int, count: int,
         device: torch.device) -> tuple[list[Check], list[str]]:
    """All checks in order, with `count` training steps; and lines that say what is not checked, and why."""
    checks: list[Check] = []
    missing: list[str] = []
    for engine in usable:
        narrow = narrowed(config, engine)
        width = None if narrow is config else engine.width
        found = stages_of(narrow)
        if not found:
            missing.append(f"operations on {engine.impl}: not checked: no convolution in these networks")
            if engine.impl != "reference":
                continue  # it has nothing to do in a step
        own = [Check("operations", stage.name, engine.impl, precision, width,
                     partial(operations.examine, stage, engine.impl, numerics.PRECISIONS[precision], batch, device))
               for stage in found for precision in engine.precisions]
        own += _steps(narrow, engine, width, batch, count, device)
        checks += own if engine.width is None else [check._replace(find=partial(_alone, check.find)) for check in own]
    reason = steps.why_no_graph(device)
    if reason:
        missing.append(f"{_steps_in_words(count)} as a CUDA graph: not checked: {reason}")
    return checks, missing


def narrowed(config: Config, engine: Engine) -> Config:
    """The configuration whose networks an engine is examined with: this very one, unless it is too wide."""
    model = config.model
    if engine.width is None or model.architecture != "dcgan" or max(model.ngf, model.ndf) <= engine.width:
        return config
    return config.replace(preset=config.preset, ngf=min(engine.width, model.ngf), ndf=min(engine.width, model.ndf))


def stages_of(config: Config) -> list[stages.Stage]:
    """The distinct stages of generator and discriminator."""
    generator, discriminator = _networks(config)
    return [*stages.of(generator, torch.zeros(2, config.model.nz), "G", 1),
            *stages.of(discriminator, torch.zeros(2, *shape_of(config)), "D", 2)]


def under_auto(config: Config, device: torch.device) -> dict[str, str]:
    """The engine that impl "auto" gives each stage: by the plan in use, else the device's default."""
    usual = candidates.default(device)
    if len(candidates.engines(device)) > 1:
        usual += "; in training, the fastest measured"
    return {stage.name: _planned(stage) if active() else usual for stage in stages_of(config)}


def _planned(stage: stages.Stage) -> str:
    """The engines that compute a stage's passes by the plan in use."""
    plan, weight = active(), stage.layers[0].weight
    assert plan is not None and isinstance(weight, torch.Tensor)
    if plan.engine != "plan":
        return plan.engine
    found = {choice.candidate.partition("/")[0] for problem, choice in plan.choices.items()
             if (problem.weight, problem.x[1:]) == (tuple(weight.shape), stage.shape)}
    return " and ".join(sorted(found)) or "reference"


def _steps(config: Config, engine: Engine, width: int | None, batch: int, count: int,
           device: torch.device) -> Iterator[Check]:
    networks, seen = _networks(config), game.given(config, shape_of(config), batch, count)
    for precision in engine.precisions:
        if precision not in steps.PRECISIONS:
            continue
        played = Game(networks, config, seen, numerics.PRECISIONS[precision], device)
        allowed: dict[str, numerics.Nearness] = {}

        def one_by_one(played: Game = played, allowed: dict[str, numerics.Nearness] = allowed) -> Found:
            found = steps.examine(played, engine.impl)
            allowed.update(found.quantities)
            return found

        yield Check("steps", _steps_in_words(count), engine.impl, precision, width, one_by_one)
        if not steps.why_no_graph(device):
            yield Check("steps", f"{_steps_in_words(count)} as a CUDA graph", engine.impl, precision, width,
                        partial(steps.examine_graph, played, engine.impl, allowed))


def _steps_in_words(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _alone(find: Callable[[], Found]) -> Found:
    """On one thread: the interpreter's operations are so small that a second one is waited for longer than it helps."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return find()
    finally:
        torch.set_num_threads(threads)


def _networks(config: Config) -> Networks:
    torch.manual_seed(0)
    return build(config.model, shape_of(config))


def shape_of(config: Config) -> tuple[int, ...]:
    """Of the data, which need not be there."""
    if config.model.architecture == "gaussian":
        return (2,)
    return config.data.channels or (1 if config.data.source in _GREY else 3), *parse_size(config.data.image_size)
