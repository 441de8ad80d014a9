"""One D+G step of dcgan-64, the textbook's against fastgan's, and what each saving earns.

    python -m benchmarks.step [--batch 64] [--rounds 9] [--threads N] [--out docs/results/step-cpu.md]
    python -m benchmarks.step --table fp32 [--out docs/results/engines-cpu-fp32.md]     (or bf16)
    python -m benchmarks.step --device cuda [--batch 32 64 128 256] [--seconds 140] [--csv step-gpu.csv]

Contenders take turns, so that a machine that slows down slows all of them; the tables have medians, and medians of the
ratios within a round.

On the CPU there are three tables: what each saving earns, in float32 with PyTorch's operators; and all engines, in
float32 and in bfloat16. A turn is one step, and each contender has a process of its own (`processes.py`); memory is the
peak of its live tensors, and the most that the process has had. On a GPU, a turn is a block of steps on several batches
(`turns.py`), and memory is torch.cuda.max_memory_allocated while a step is made, warmed up and captured.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import rows, turns
from benchmarks.contenders import BASE, on_gpu
from benchmarks.processes import ROOT, measure

BATCHES = [64, 32, 128, 256]  # on a GPU, the preset's own first: time may run out


def table(name: str, batch: int, rounds: int, threads: int) -> str:
    seconds, peaks = measure(name, batch, rounds, threads)
    precision = "bfloat16 by autocast" if name == "bf16" else "float32"
    machine = f"{threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    lines = [f"dcgan-64, batch {batch}, {precision}, {machine}, torch {torch.__version__}, Python "
             f"{platform.python_version()}; {rounds} interleaved rounds.", "",
             f"| step | median ms | against *{BASE}* | tensors, peak MB | process, peak MB |",
             "|---|---|---|---|---|"]
    for name, times in seconds.items():
        ratio = statistics.median(base / mine for base, mine in zip(seconds[BASE], times, strict=True))
        lines.append(f"| {name} | {statistics.median(times) * 1e3:.0f} | {ratio:.3f} x as fast | "
                     f"{peaks[name][0]:.0f} | {peaks[name][1]:.0f} |")
    return "\n".join(lines) + "\n"


def on_the_gpu(options: argparse.Namespace) -> int:
    """Print a table for each batch size as soon as it is there; 1 where a contender failed."""
    device = torch.device("cuda")
    print(f"dcgan-64 on {torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"Python {platform.python_version()}\n", flush=True)
    without = dict(words.partition(": ")[::2] for words in options.without)
    begin, sizes, found = time.monotonic(), options.batch or BATCHES, []
    for number, size in enumerate(sizes, 1):
        if time.monotonic() - begin > options.seconds:
            break
        try:
            measured = turns.measure(on_gpu(device=device), size, device, rounds=options.rounds,
                                     steps=options.steps, deadline=begin + options.seconds * number / len(sizes),
                                     without={engine: why or "left out" for engine, why in without.items()})
        except turns.DeviceLost as lost:
            left = options.seconds - (time.monotonic() - begin)
            return _go_on_without(lost, options, sizes[number - 1:], left)
        found += measured
        print(rows.table(measured), flush=True)
        if options.csv:
            rows.write(options.csv, measured)
    wrong = {row.contender for row in found if row.reason}
    late = [str(size) for size in sizes if size not in {row.batch for row in found}]
    print(f"{sum(not row.reason for row in found)} measurements"
          + (f"; {len(wrong)} contenders failed or were left out" if wrong else "")
          + (f"; no time was left for batch {', '.join(late)}" if late else ""))
    return 1 if wrong else 0


def _go_on_without(lost: turns.DeviceLost, options: argparse.Namespace, sizes: list[int], seconds: float) -> int:
    """The sizes that are left, in a process that has a device, without the engine that lost it."""
    print(f"the device was lost; going on without {lost.engine}: {lost.reason}\n", flush=True)
    without = [*options.without, f"{lost.engine}: {lost.reason}"]
    command = [sys.executable, "-m", "benchmarks.step", "--device", "cuda", "--batch", *map(str, sizes),
               "--rounds", str(options.rounds), "--steps", str(options.steps), "--seconds", str(seconds),
               "--without", *without]
    command += ["--csv", str(options.csv.resolve())] if options.csv else []
    return max(1, subprocess.call(command, cwd=ROOT))


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--table", choices=["savings", "fp32", "bf16"], default="savings", help="on the CPU")
    parser.add_argument("--batch", type=int, nargs="+", help="one on the CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=20, help="of a turn, on a GPU")
    parser.add_argument("--seconds", type=float, default=140.0, help="that rounds may take in all, on a GPU")
    parser.add_argument("--without", nargs="+", default=[], metavar="ENGINE", help="leave out, on a GPU")
    parser.add_argument("--csv", type=Path, help="append what was measured on a GPU to this file")
    parser.add_argument("--out", type=Path, help="write the table there too, on the CPU")
    options = parser.parse_args()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("no CUDA device: nothing was measured")
            return 0
        return on_the_gpu(options)
    text = table(options.table, (options.batch or [64])[0], options.rounds, options.threads)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
