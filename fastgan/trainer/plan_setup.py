"""The plan of a training run: given by --plan, stored in the run folder or the cache, or measured before training.

The measurement runs steps on noise and restores the state afterwards, so that training is not affected.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastgan.config import RunConfig
from fastgan.errors import FastganError
from fastgan.ops.tuning import Plan, candidates, measure, stored, table
from fastgan.train.snapshot import Snapshot
from fastgan.train.step import GANStep, Phase
from fastgan.trainer.host import logger

FILE = "plan.json"  # stored in the run folder, so that a resumed run uses the same engines


def pinned(run: RunConfig, device: torch.device) -> Plan | None:
    """The plan in the file given by --plan; None for "auto" and "default". Raises `FastganError` if it is invalid."""
    if run.plan in ("auto", "default"):
        return None
    if run.impl != "auto":
        raise FastganError(f"--plan {run.plan} with --impl {run.impl}: expected --impl auto, which uses a plan")
    return stored.read(Path(run.plan).expanduser(), device)[0]


def decide(run: RunConfig, pinned: Plan | None, step: GANStep, folder: Path, batch: tuple[Tensor, ...]) -> Plan | None:
    """The plan for impl "auto" in this run, which is logged and stored in the run folder; None for the default."""
    if run.impl != "auto" or run.plan == "default" or len(candidates.engines(step.device)) == 1:
        return None
    facts = stored.machine(step.device)
    plan = pinned or _of_folder(folder, facts, step.device)
    if plan is None:
        plan = make(step, batch, facts, progress=True)
    elif pinned is not None:
        _warn_of_unknown(plan, run.plan, step, batch)
    stored.export(folder / FILE, plan, facts)
    logger.info(f"plan: {table.verdict(plan)}")
    return plan


def make(step: GANStep, batch: tuple[Tensor, ...], facts: dict[str, str], *, anew: bool = False,
         rounds: int = measure.ROUNDS, tiles: bool = False, progress: bool = False) -> Plan:
    """A plan for steps on batches like `batch`, read from the cache or measured and stored in it. Other arguments as in
    `measure.make`. anew: do not read the cache."""
    cached, trouble = stored.recall(facts)
    if trouble:
        logger.warning(trouble)
    step.allocate(*batch)
    with Snapshot(step.state, step.device):
        plan = measure.make(lambda: _steps(step, batch), None if anew else cached, rounds=rounds, tiles=tiles,
                            progress=progress)
    trouble = stored.remember(facts, plan)
    if trouble:
        logger.warning(trouble)
    return plan


def like_a_batch(size: int, shape: tuple[int, ...], conditional: bool, device: torch.device) -> tuple[Tensor, ...]:
    """Noise with the shape of a batch of images (size, C, H, W), channels_last, or points, and labels (size,) for
    conditional networks."""
    generator = torch.Generator(device).manual_seed(0)
    real = torch.rand(size, *shape, generator=generator, dtype=torch.float32, device=device) * 2 - 1
    real = real.contiguous(memory_format=torch.channels_last) if real.dim() == 4 else real
    return (real, torch.zeros(size, dtype=torch.long, device=device)) if conditional else (real,)


def _steps(step: GANStep, batch: tuple[Tensor, ...]) -> None:
    """Run one step of each phase that uses different passes."""
    config = step.config
    for penalty in (True, False) if config.penalised and config.penalty_every > 1 else (config.penalised,):
        step.run(Phase(both=True, penalty=penalty), *batch)


def _of_folder(folder: Path, facts: dict[str, str], device: torch.device) -> Plan | None:
    """The plan in the run folder, if it was made on this machine."""
    if not (folder / FILE).exists():
        return None
    try:
        plan, made_on = stored.read(folder / FILE, device)
    except FastganError as error:
        logger.warning(str(error))
        return None
    return plan if made_on == facts else None


def _warn_of_unknown(plan: Plan, name: str, step: GANStep, batch: tuple[Tensor, ...]) -> None:
    step.allocate(*batch)
    with Snapshot(step.state, step.device):
        asked = measure.record(lambda: _steps(step, batch))
    unknown = [problem for problem in asked if problem not in plan.choices]
    if unknown and plan.engine == "plan":
        logger.warning(f"{name} has no entry for {len(unknown)} of {len(asked)} passes, first {unknown[0].words()}: "
                       f"the engine {candidates.default(step.device)} computes them")
