"""Part three: the step replayed like a CUDA graph, on the compiled kernels. Replays equal eager steps bit for bit.

The tape of proofs/simulated has the operations of one step of dcgan-64 at full width, including those of fastgan. The
simulator executes every launch, recorded or replayed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan import models, presets
from fastgan.errors import first_line
from fastgan.nn import use
from fastgan.train.step import GANStep, Savings
from proofs.ptx.simulator import PLAIN, executing
from proofs.simulated import assert_replays_equal_eager

STEPS, BATCH = 3, 8
CASES = [("bf16", 80), ("tf32", 90)]


def images() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return [(torch.rand(BATCH, 3, 64, 64) * 2 - 1,) for _ in range(STEPS)]


def make(precision: str) -> GANStep:
    torch.manual_seed(0)
    config = presets.get("dcgan-64", ema=0.999)
    generator, discriminator = (use(network, "triton").to(memory_format=torch.channels_last)
                                for network in models.build(config.model, (3, 64, 64)))
    step = GANStep(generator, discriminator, config.model, config.train, precision=precision,
                   savings=Savings(keep_casts=True))
    step.allocate(*images()[0])
    return step


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all cases, print a line for each, and return the failures."""
    failures = []
    for precision, arch in CASES[:1] if quick else CASES:
        line = f"sm_{arch} {precision} dcgan-64 batch {BATCH}, {STEPS} replays against {STEPS} eager steps"
        if match not in line:
            continue
        begin = time.perf_counter()
        try:
            with executing(ptxsim, arch, PLAIN) as names:
                assert_replays_equal_eager(partial(make, precision), images(), STEPS)
            words = f"the same bits, {len(names)} launches"
        except AssertionError as error:
            words = f"FAILED: {first_line(error)}"
            failures.append(f"{line}: {first_line(error)}")
        print(f"{line}: {words}, {time.perf_counter() - begin:.0f} s", flush=True)
    return failures
