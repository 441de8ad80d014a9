"""`tune`, `bench` and `cost`: what is fast, measured or modelled."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgan import presets
from fastgan.cli import parsing
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
    from fastgan.verify.checks import shape_of

    device, shape = pick_device(options.device), shape_of(config)
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


@dataclass
class Bench:
    """Measure what is fast here, and what earned it; results are appended to OUT/bench.csv.

    Everyone does the same work, each in a process of its own: fastgan's engines, eager PyTorch, torch.compile, and the
    textbook's step with and without the work that fastgan saves. A contender is compared with float64 first, and who is
    wrong is not timed. They take turns in a random order; the medians of the rounds count.

    fastgan bench                                        every suite, until it is done: a quarter of an hour or more

    fastgan bench --suite step --batch 64 128            one suite, two batch sizes

    fastgan bench --suite step --match native --rounds 3     some contenders; --list names all of them

    fastgan bench --suite step --device cuda --out DIR

    fastgan report DIR                                   tables, pictures and one page of it
    """

    suite: tuple[str, ...] = ()
    """step | ablation | training | start | networks | operations | stages | memory; the usual ones when not given"""
    workload: str = ""
    """preset whose networks and steps; dcgan-64 when not given"""
    batch: tuple[int, ...] = ()
    """images per step; what suits the device when not given"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """arithmetic of the convolutions, as in `fastgan train`; the textbook as it stands has fp32 or tf32"""
    contenders: tuple[str, ...] = ()
    """names of those who take part; the usual ones when not given"""
    match: str = ""
    """those whose name has this in it take part"""
    rounds: int = 9
    """turns of each contender"""
    minutes: float | None = None
    """end after about so long: fewer rounds, at least 3, and what is left over is named; no limit when not given"""
    out: Path = Path("bench")
    """folder for bench.csv, to which results are appended as soon as they are there"""
    list: bool = False
    """name suites, workloads and contenders, and measure nothing"""


def bench(args: list[str]) -> int:
    options = parsing.parse(Bench, args, "bench")
    if options.rounds < 1 or (options.minutes is not None and not options.minutes > 0):
        raise FastganError(f"--rounds {options.rounds} --minutes {options.minutes}: expected 1 or more, and above 0")
    if any(batch < 2 for batch in options.batch):
        raise FastganError(f"--batch {' '.join(map(str, options.batch))}: expected 2 or more; statistics need 2 images")
    from fastgan.bench import results, run, table
    from fastgan.device import pick_device
    from fastgan.train.precision import choose

    device = pick_device(options.device)
    order = run.Order(device, options.suite, options.workload, options.batch, choose(options.precision, device),
                      options.rounds, options.contenders, options.match, minutes=options.minutes or math.inf)
    run.check(order)
    if options.list:
        print(*run.lines(order), sep="\n")
        return 0
    done = run.Done(results.check(options.out))
    try:
        run.measure(order, done)
    except KeyboardInterrupt:
        print(f"fastgan: interrupted: {len(done.rows)} results are kept in {done.path}", file=sys.stderr)
        return 130
    print(*table.tables(done.rows), sep="\n")
    print(*(f"no time was left: {words}" for words in done.late), f"results: {done.path}",
          f"to draw them: fastgan report {options.out}", sep="\n")
    return 0


@dataclass
class Cost:
    """Say what a training step must cost at least on a GPU, kernel by kernel: eager PyTorch, fused, and fastgan.

    A model, counted from the step itself; nothing is computed and no GPU is asked. With --gpu cpu the ceilings of this
    machine are measured, and so are steps on it, to stand beside the model.
    """

    preset: str = "dcgan-64"
    """whose networks and training step; `fastgan presets` lists them"""
    batch: int | None = None
    """images per step; the preset's own when not given"""
    gpu: str = "h100"
    """t4 | v100 | a100 | l4 | 4090 | h100 | h200 | b200, or cpu for this machine"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """arithmetic of the convolutions: auto is bf16 where the GPU has it, else fp16; fp32 on a CPU"""
    memory: bool = False
    """the peak memory of a step, which batches fit, and what is saved for the backward passes, instead of time"""


def cost(args: list[str]) -> int:
    options = parsing.parse(Cost, args, "cost")
    from fastgan.verify import cost as model
    from fastgan.verify.cost import measured, memory, table

    found = model.count(options.preset, options.batch, options.gpu, options.precision)
    if options.memory:
        print(*memory.report(found), sep="\n")
        return 0
    times = measured.steps(found.what) if options.gpu == "cpu" else None
    print(*table.lines(found, times), sep="\n")
    return 0
