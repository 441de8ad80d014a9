"""Compare the speed of a training step in two clones of this repository, which take turns.

    python -m benchmarks.compare BEFORE AFTER [--preset dcgan-64] [--batch 64] [--engine native] [--precision fp32]

Each clone runs in a separate process with its own compiled modules (`python setup.py build_ext --inplace` in it).
Ratios are of the two times of a round, so that slower phases of the machine affect both.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.implementation import SAVINGS, Implementation
from benchmarks.worker import Session
from benchmarks.workload import Workload
from fastgan.ops.numerics import products
from fastgan.verify.machine import describe

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="folder of a clone")
    parser.add_argument("after", type=Path, nargs="?", help="folder of another clone; without it, time the first clone "
                        "in this process, once for each line of stdin")
    parser.add_argument("--preset", default="dcgan-64", help="preset with the networks (dcgan-64)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (64)")
    parser.add_argument("--engine", default="native", help="reference, native, triton or auto, which tunes (native)")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16 (fp32)")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each (21)")
    return parser


def serve(given: argparse.Namespace) -> None:
    """Print the peak memory in MB, then the seconds of a step for each line of stdin."""
    session = Session(Implementation(given.engine, given.engine, given.precision, savings=SAVINGS,
                                     graph=DEVICE.type == "cuda"), DEVICE)
    with products(given.precision):
        session.make(Workload("step", given.preset, given.batch), "")
        print(session.peak(), flush=True)
        for _ in sys.stdin:
            print(session.turn(), flush=True)


def start(clone: Path, given: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that runs `serve` with the code of a clone."""
    arguments = [str(clone.resolve()), "--preset", given.preset, "--batch", str(given.batch), "--engine", given.engine,
                 "--precision", given.precision]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.compare", *arguments], cwd=clone, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(clone.resolve())})


def answer(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended with {process.wait()}")
    return float(line)


def turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def main() -> None:
    given = parser().parse_args()
    if given.after is None:
        return serve(given)
    for clone in (given.before, given.after):
        if not (clone / "benchmarks" / "compare.py").is_file():
            parser().error(f"{clone}: expected the folder of a clone of this repository")
    processes = {"before": start(given.before, given), "after": start(given.after, given)}
    try:
        peaks = {name: answer(process) for name, process in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in tqdm(range(given.rounds), "rounds"):
            for name in random.sample(list(processes), 2):
                seconds[name].append(turn(processes[name]))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    print(f"{describe(DEVICE)}\n{given.preset}, batch {given.batch}, {given.engine}, {given.precision}")
    for name, times in seconds.items():
        print(f"{name:7}{1e3 * statistics.median(times):9.1f} ms, at best {1e3 * min(times):.1f}, "
              f"peak {peaks[name]:.0f} MB")
    ratios = [one / other for one, other in zip(seconds["before"], seconds["after"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"before / after {middle:.3f} (quartiles {low:.3f} and {high:.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
