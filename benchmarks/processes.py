"""Steps on the CPU that take turns, each in a process of its own, as training is: none runs in memory that another has
grown, or torn to pieces.

A worker makes its step and does two to warm up. For each line that it reads it does one more and prints the seconds;
when there are no more it prints how much memory a step needs, and how much the process has had.
"""

from __future__ import annotations

import gc
import itertools
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm import tqdm

from benchmarks.contenders import on_cpu

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """One contender."""

    def __init__(self, table: str, name: str, batch: int, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes", table, name, str(batch), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        self._read()  # it is warm

    def seconds(self) -> float:
        """Of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def peak_mb(self) -> tuple[float, float]:
        """Of the tensors of a last step, which ends it, and of the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peaks = self._read(), self._read()
        self._process.wait()
        return peaks

    def _read(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())


def measure(table: str, batch: int, rounds: int,
            threads: int) -> tuple[dict[str, list[float]], dict[str, tuple[float, float]]]:
    """Seconds of each round and the peak memory, in MB, of each contender. The order of a round is drawn."""
    workers = {name: Worker(table, name, batch, threads) for name in on_cpu(table, batch)}
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in tqdm(range(rounds), desc="rounds", unit="round"):
        for name in order.sample(list(workers), len(workers)):
            seconds[name].append(workers[name].seconds())
    return seconds, {name: worker.peak_mb() for name, worker in workers.items()}


def images(batch: int) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(batch, 3, 64, 64) * 2 - 1).to(memory_format=torch.channels_last)


def peak_mb(step: Callable[[Tensor], object], real: Tensor) -> float:
    """Of all tensors that live during a step: what it needs, whatever the allocator makes of it."""
    gc.collect()
    storages = {tensor.untyped_storage() for tensor in gc.get_objects() if type(tensor) in (Tensor, Parameter)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(real)
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return (sum(sizes.values()) + max(itertools.accumulate(changes))) / 2**20


def work(table: str, name: str, batch: int) -> None:
    torch.manual_seed(0)
    step, real = on_cpu(table, batch)[name](), images(batch)
    for _ in range(2):
        step(real)
    print(0, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step(real)
        print(time.perf_counter() - begin, flush=True)
    print(peak_mb(step, real), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
