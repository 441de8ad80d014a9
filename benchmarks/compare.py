"""Is a change faster? Two clones of this repository take turns with a training step.

    python -m benchmarks.compare BEFORE AFTER [--preset dcgan-64] [--batch 64] [--engine native] [--precision fp32]

Each clone has a process of its own and its own compiled modules (`python setup.py build_ext --inplace` in it). The
ratio is that of the two times of a round, so that a machine which slows down slows both.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from fastgan.bench.contender import USUAL, Contender
from fastgan.bench.entry import Entry
from fastgan.bench.rounds import Taken, Worker, play
from fastgan.verify.machine import describe


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="folder of a clone")
    parser.add_argument("after", type=Path, help="folder of the other one")
    parser.add_argument("--preset", default="dcgan-64", help="whose networks (dcgan-64)")
    parser.add_argument("--batch", type=int, default=64, help="images (64)")
    parser.add_argument("--engine", default="native", help="reference, native, triton or auto, which tunes (native)")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16 (fp32)")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each (21)")
    given = parser.parse_args()
    for clone in (given.before, given.after):
        if not (clone / "fastgan" / "bench" / "worker.py").is_file():
            parser.error(f"{clone}: expected the folder of a clone of this repository")
    return given


def main() -> None:
    given = options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contender = Contender(given.engine, given.engine, given.precision, saved=USUAL, graph=device == "cuda")
    entry, taken = Entry("step", given.preset, given.batch), dict[str, Taken]()
    workers = {name: Worker(contender, device, torch.get_num_threads(), str(clone.resolve()))
               for name, clone in (("before", given.before), ("after", given.after))}
    with tqdm(bar_format="{desc}") as line:
        try:
            play(entry, workers, "", taken, rounds=given.rounds, deadline=math.inf,
                 order=random.Random(0), progress=line.set_description_str)
        finally:
            for worker in workers.values():
                worker.close()
    print(f"{describe(torch.device(device))}\n{given.preset}, batch {given.batch}, {given.engine}, {given.precision}")
    for name, did in taken.items():
        if did.error:
            raise SystemExit(f"{name}: {did.error}")
        print(f"{name:7}{1e3 * statistics.median(did.seconds):9.1f} ms, at best {1e3 * min(did.seconds):.1f}, "
              f"peak {did.peak_mb:.0f} MB")
    ratios = [one / other for one, other in zip(taken["before"].seconds, taken["after"].seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"before / after {middle:.3f} (quartiles {low:.3f} and {high:.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
