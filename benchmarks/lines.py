"""What each line of fastgan in a textbook's training loop earns: the three examples, timed by turns.

    python -m benchmarks.lines [ROUNDS]

Each runs in a process of its own, in interleaved rounds. A step's time is that between the lines that an example prints
after steps 100 and 200, which wait for the device. Times are medians of the rounds, and speed-ups are their ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from fastgan.verify.machine import describe

ROOT = Path(__file__).parent.parent
EXAMPLES = {"dcgan_textbook.py": "none: PyTorch's loop", "dcgan_one_line.py": "1: `fastgan.convert`",
            "dcgan_two_lines.py": "2: `GANStep` and `GraphedStep`"}
BETWEEN = 100  # steps, as the examples print


def seconds_per_step(name: str) -> float:
    """Of one run of an example."""
    said: dict[str, float] = {}
    with subprocess.Popen([sys.executable, "-u", str(ROOT / "examples" / name), str(2 * BETWEEN)], text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said[line.partition(":")[0]] = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    return (said[f"step {2 * BETWEEN}"] - said[f"step {BETWEEN}"]) / BETWEEN


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    turns = [name for _ in range(rounds) for name in EXAMPLES]
    times: dict[str, list[float]] = {name: [] for name in EXAMPLES}
    for name in tqdm(turns, unit="run", file=sys.stderr):
        times[name].append(seconds_per_step(name))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{describe(device)}\n\n| lines | a step | speed-up |\n|---|---|---|")
    plain = statistics.median(times["dcgan_textbook.py"])
    for name, words in EXAMPLES.items():
        median = statistics.median(times[name])
        print(f"| {words} | {1e3 * median:.1f} ms | {plain / median:.2f} x |")


if __name__ == "__main__":
    main()
