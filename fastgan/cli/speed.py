"""`tune`: measure which engine is fastest for each pass."""

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
    """Measure which engine is fastest for each pass of a training step on this device, and store the result in the
    cache, as `fastgan train --plan auto` does.

    Every candidate is first checked against float64. The output has one line per candidate; * marks the selected one.
    Then the whole training step is timed with the plan and with eager PyTorch, and --impl auto uses the faster one.
    """

    preset: str = "digits"
    """preset whose networks and training step are measured; `fastgan presets` lists the presets"""
    batch: int | None = None
    """images per step; the batch size of the preset if not given"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """precision of the convolutions, as in `fastgan train`"""
    rounds: int = 5
    """number of timings of each candidate, of which the median is used"""
    tiles: bool = False
    """on a GPU, also measure several tile sizes of the Triton kernels, which takes minutes to compile"""
    export: Path | None = None
    """output file for the plan; `fastgan train --plan FILE` uses it without measuring"""


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
