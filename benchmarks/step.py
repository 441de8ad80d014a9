"""One D+G step of dcgan-64, the textbook's against fastgan's, and what each saving earns.

    python benchmarks/step.py [--batch 64] [--rounds 9] [--threads N] [--out docs/results/step-cpu.md]

Contenders take turns, a step each a round, so that a machine that slows down slows all of them; the table has medians,
and medians of the ratios within a round. Memory is the peak of a process that does two steps of one contender and
nothing else. Everything is float32 on the CPU with PyTorch's operators.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastgan
from fastgan import presets
from fastgan.models import build
from fastgan.train.step import GANStep, Savings

Step = Callable[[Tensor], object]
BASE = "textbook, channels_last"


def textbook(layout: torch.memory_format) -> Step:
    """The loop of PyTorch's DCGAN example, with eager layers."""
    config = presets.get("dcgan-64")
    generator, discriminator = (fastgan.to_eager(network).to(memory_format=layout)
                                for network in build(config.model, (3, 64, 64)))
    adam_d, adam_g = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
                      for network in (discriminator, generator))
    criterion = nn.BCEWithLogitsLoss()

    def step(real: Tensor) -> object:
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        discriminator.zero_grad()
        on_real = discriminator(real.to(memory_format=layout))
        loss_real = criterion(on_real, ones)
        loss_real.backward()
        fake = generator(torch.randn(len(real), 100))
        on_fake = discriminator(fake.detach())
        loss_fake = criterion(on_fake, zeros)
        loss_fake.backward()
        adam_d.step()
        generator.zero_grad()
        loss_g = criterion(discriminator(fake), ones)
        loss_g.backward()
        adam_g.step()
        return loss_real.item() + loss_fake.item(), loss_g.item()

    return step


def ours(savings: Savings) -> Step:
    config = presets.get("dcgan-64")
    generator, discriminator = (network.to(memory_format=torch.channels_last)
                                for network in build(config.model, (3, 64, 64)))
    return GANStep(generator, discriminator, config.model, config.train, precision="fp32", savings=savings, history=10)


def contenders() -> dict[str, Callable[[], Step]]:
    names = [field.name for field in fields(Savings)]
    none = Savings(**dict.fromkeys(names, False))
    return {
        "textbook, NCHW": lambda: textbook(torch.contiguous_format),
        BASE: lambda: textbook(torch.channels_last),
        "fastgan, no saving": lambda: ours(none),
        **{f"fastgan without {name}": partial(ours, replace(Savings(), **{name: False}))
           for name in names if name != "foreach_ema"},  # dcgan-64 keeps no moving average
        "fastgan": lambda: ours(Savings()),
    }


def images(batch: int) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(batch, 3, 64, 64) * 2 - 1).to(memory_format=torch.channels_last)


def measure(batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round."""
    steps = {}
    for name, make in contenders().items():
        torch.manual_seed(0)
        steps[name] = make()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    real = images(batch)
    for turn in tqdm(range(rounds + 1), desc="rounds", unit="round"):
        for name, step in steps.items():
            begin = time.perf_counter()
            step(real)
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def peak_mb(name: str, batch: int, threads: int) -> float:
    """Of a fresh process, in MB."""
    done = subprocess.run([sys.executable, __file__, "--batch", str(batch), "--threads", str(threads), "--peak", name],
                          capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def table(batch: int, rounds: int, threads: int) -> str:
    seconds = measure(batch, rounds)
    lines = [f"dcgan-64, batch {batch}, float32, {threads} threads, {torch.backends.cpu.get_cpu_capability()}, torch "
             f"{torch.__version__}, Python {platform.python_version()}; {rounds} interleaved rounds.", "",
             f"| step | median ms | against *{BASE}* | peak MB |", "|---|---|---|---|"]
    for name, times in seconds.items():
        ratio = statistics.median(base / mine for base, mine in zip(seconds[BASE], times, strict=True))
        lines.append(f"| {name} | {statistics.median(times) * 1e3:.0f} | {ratio:.3f} x as fast | "
                     f"{peak_mb(name, batch, threads):.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the table there too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # the name of a contender: print its peak memory
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        step, real = contenders()[options.peak](), images(options.batch)
        for _ in range(2):
            step(real)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    text = table(options.batch, options.rounds, options.threads)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
