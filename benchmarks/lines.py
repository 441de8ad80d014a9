"""The speed-up by each line of fastgan: PyTorch's loop, the same loop on converted networks, and `GANStep`.

    python -m benchmarks.lines [--preset dcgan-64] [--batch 32] [--rounds 9]

Each runs in a separate process, and they take turns. Nothing is tuned: engines are the defaults of the device. Times
are medians of the rounds, and speed-ups are their ratios.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics

import torch
from tqdm import tqdm

from benchmarks.implementation import SAVINGS, Implementation
from benchmarks.run import run_rounds
from benchmarks.worker import Worker
from benchmarks.workload import Workload
from fastgan.ops.tuning import candidates
from fastgan.train.gan_losses import ALL_SAVINGS
from fastgan.verify.machine import describe

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = Implementation("none: PyTorch's loop", nchw=True, reads_losses=True)
DEFAULTS = tuple(name for name in SAVINGS if getattr(ALL_SAVINGS, name))  # as in `GANStep`
LINES = [PLAIN, PLAIN.but("1: `fastgan.convert`", converted=True),
         Implementation("2: `GANStep` and `GraphedStep`", candidates.default(DEVICE), savings=DEFAULTS,
                        graph=DEVICE.type == "cuda")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lines", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dcgan-64", help="preset with the networks (dcgan-64)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (32)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (9)")
    given = parser.parse_args()
    workers = {line.name: Worker(line, DEVICE) for line in LINES}
    try:
        with tqdm(bar_format="{desc}") as bar:
            timings = run_rounds(Workload("step", given.preset, given.batch), workers, "", given.rounds, math.inf,
                                 random.Random(0), bar.set_description_str)
    finally:
        for worker in workers.values():
            worker.close()
    if failed := [f"{name}: {each.error}" for name, each in timings.items() if each.error]:
        raise SystemExit("\n".join(failed))
    print(f"{describe(DEVICE)}\n{given.preset}, batch {given.batch}, {given.rounds} rounds\n\n"
          "| lines | a step | speed-up |\n|---|---|---|")
    medians = {name: statistics.median(each.seconds) for name, each in timings.items()}
    for name, median in medians.items():
        print(f"| {name} | {1e3 * median:.1f} ms | {medians[PLAIN.name] / median:.2f} x |")


if __name__ == "__main__":
    main()
