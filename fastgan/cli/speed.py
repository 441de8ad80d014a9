"""`tune`: which engine is fastest, measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgan import presets
from fastgan.cli import parsing
from fastgan.config import data_shape
from fastgan.errors import FastganError


@dataclass
class Tune:
    """Measure which engine is fastest for each pass of a training step here, and remember it: what `--plan auto` does.

    Every candidate is checked against float64 first; a line for each, * for what is taken. The whole training step is
    then timed with the plan and by eager PyTorch, and the faster of the two is what --impl auto will mean.
    """

    preset: str = "digits"
    """whose networks and training step; `fastgan presets` lists them"""
    batch: int | None = None
    """images per step; the preset's own when not given"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """arithmetic of the convolutions, as in `fastgan train`"""
    rounds: int = 5
    """how often each candidate is timed; the median counts"""
    tiles: bool = False
    """on a GPU, try Triton's convolutions with several tiles, each of which is compiled first: minutes"""
    export: Path | None = None
    """file for the plan: `fastgan train --plan FILE` computes by it, and measures nothing"""


def tune(args: list[str]) -> int:
    """`fastgan tune`."""
    options = parsing.parse(Tune, args, "tune")
    if options.rounds < 1:
        raise FastganError(f"--rounds {options.rounds}: expected 1 or more")
    if options.export is not None:
        parsing.writable(options.export, "--export")
    config = presets.get(options.preset)
    config = config.replace(batch=options.batch or config.data.batch).validate()
    import torch

    from fastgan.device import pick_device
    from fastgan.models import build
    from fastgan.ops.tuning import stored, table
    from fastgan.train.precision import choose
    from fastgan.train.step import GANStep
    from fastgan.trainer import plan_setup

    device, shape = pick_device(options.device), data_shape(config)
    generator, discriminator = (network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                                for network in build(config.model, shape))
    step = GANStep(generator, discriminator, config.model, config.train, precision=choose(options.precision, device))
    facts, batch = stored.machine(device), plan_setup.like_a_batch(config.data.batch, shape, False, device)
    made = plan_setup.make(step, batch, facts, anew=True, rounds=options.rounds, tiles=options.tiles, progress=True)
    print(*(f"{name:14}{fact}" for name, fact in facts.items()), *table.lines(made), sep="\n")
    if options.export is not None:
        stored.export(options.export, made, facts)
        print(f"plan: {options.export}")
    return 0
