"""Kills short runs with SIGKILL at random times and resumes them: only steps after the last checkpoint may be lost.

    make faults         or: python -m proofs.kills [--runs 50] [--seed 0] [--folder DIR]

A run is killed at a random time in the life of its process, including imports, or after its first checkpoint. Then it
is resumed; half of the resumed processes are also killed, and then the run is resumed until it ends. After each kill,

- either there is no run folder, or its options can be read;
- each checkpoint can be read, the newest is not older than before, and the log has at most one snapshot interval more;
- either there is no exported generator, or it can be loaded.

At the end, the last checkpoint equals, bit for bit, that of an uninterrupted run, the log has every step once, and no
temporary files are left. The exit code is 1 if any of these does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastgan.models.pretrained import WEIGHTS, Pretrained
from fastgan.trainer import checkpoint, run_files
from fastgan.trainer.log import read_stats

STEPS, SNAP = 60, 6
OPTIONS = ["--preset", "d2l-gan-gaussian", "--steps", str(STEPS), "--snap", str(SNAP), "--log-every", "1",
           "--grid", "16", "--device", "cpu", "--plan", "default", "--no-tensorboard"]
PATIENCE = 300.0  # timeout of a process in seconds; it needs a few


class Lost(AssertionError):
    """A kill has lost or damaged something that must survive it."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.kills", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs to kill (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the times (0)")
    parser.add_argument("--folder", type=Path, help="folder in which the runs are kept (default: they are removed)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        told = prove(options.folder or Path(temporary), options.runs, options.seed)
    print(*told, sep="\n")
    return 1 if any("LOST" in line for line in told) else 0


def prove(folder: Path, count: int, seed: int) -> list[str]:
    """A line for each run in `folder`, which contains LOST if a check failed, and a summary.

    Runs are started until `count` were killed, at most three times as many: some may end before they are killed.
    """
    begin = time.monotonic()
    whole, _ = _process(["train", *OPTIONS, "--outdir", str(folder / "whole")], None)
    if whole:
        raise RuntimeError(f"the uninterrupted run ended with {whole}")
    life = time.monotonic() - begin
    right = checkpoint.read_newest(folder / "whole" / "00000-d2l-gan-gaussian" / "checkpoints")[0]
    draw, told, killed = random.Random(seed), list[str](), 0
    with tqdm(total=count, unit="run", desc="Killing") as bar:
        while killed < count and len(told) < 3 * count:
            number = len(told)
            try:
                told.append(f"run {number}: {_run(folder / str(number), draw, life, right)}")
            except Lost as error:
                told.append(f"run {number}: LOST: {error}")
            bar.update("killed after" in told[-1])
            killed += "killed after" in told[-1]
    lost = sum("LOST" in line for line in told)
    return [*told, f"{killed} of {len(told)} runs killed at times of seed {seed}, a whole run takes {life:.1f} s: "
                   f"{f'{lost} LOST' if lost else 'nothing lost'}"]


def _run(outdir: Path, draw: random.Random, life: float, right: dict[str, Any]) -> str:
    """Kill and resume one run, and describe it. Raises `Lost` if a check fails."""
    _, words = _process(["train", *OPTIONS, "--outdir", str(outdir)], _moment(draw, life, outdir))
    story, folder = [words], outdir / "00000-d2l-gan-gaussian"
    if not folder.exists():
        return f"{words}, before there was a folder"
    newest = _check(folder, 0)
    story.append(f"newest checkpoint {newest}")
    if draw.random() < 0.5:
        words = _process(["resume", str(folder)], _moment(draw, life, outdir))[1]
        before, newest = newest, _check(folder, newest)
        story.append(f"resumed from {before}, {words}, newest checkpoint {newest}")
    ended, _ = _process(["resume", str(folder)], None)
    if ended:
        raise Lost(f"{', '.join(story)}; resume ended with {ended}")
    _check_end(folder, right)
    return f"{', '.join(story)}; resumed to the end, equal"


def _moment(draw: random.Random, life: float, outdir: Path) -> tuple[Path | None, float]:
    """The time of a kill: seconds after the start, or after the first checkpoint."""
    if draw.random() < 0.5:
        return None, draw.uniform(0, life)
    return outdir, draw.uniform(0, life / 2)


def _process(arguments: list[str], moment: tuple[Path | None, float] | None) -> tuple[int, str]:
    """The exit code of `fastgan ARGUMENTS`, killed at a given time, and a description of its end."""
    command = [sys.executable, "-m", "fastgan", *arguments]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        if moment is not None:
            outdir, delay = moment
            while (outdir is not None and not any(outdir.glob("*/checkpoints/step*.pt")) and process.poll() is None
                   and time.monotonic() < begin + PATIENCE):
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
        try:
            _, told = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Lost(f"fastgan {arguments[0]} did not end within {PATIENCE:.0f} s") from None
        seconds = time.monotonic() - begin
    if process.returncode == -signal.SIGKILL:
        return process.returncode, f"killed after {seconds:.2f} s"
    if process.returncode:
        last = told.splitlines()[-1] if told else "no message"
        raise Lost(f"fastgan {arguments[0]} ended with {process.returncode}: {last}")
    return 0, f"ended before its kill, after {seconds:.2f} s"


def _check(folder: Path, before: int) -> int:
    """The step of the newest checkpoint, 0 for none. Raises `Lost` if a check fails."""
    try:
        run_files.read_options(folder)
        states = [checkpoint.read(path) for path in checkpoint.newest_first(folder / "checkpoints")]
        newest = states[0]["step"]["steps"] if states else 0
        if (folder / WEIGHTS).exists() and (folder / "config.json").exists():
            Pretrained.load(folder)
    except ValueError as error:
        raise Lost(str(error)) from error
    logged = max((record["step"] for record in read_stats(folder / "stats.jsonl")), default=0)
    # the snapshot of a step is written after its record
    if newest < before or not newest <= logged <= newest + SNAP:
        raise Lost(f"the newest checkpoint is of step {newest}, previously {before}, and {logged} steps are logged")
    return newest


def _check_end(folder: Path, right: dict[str, Any]) -> None:
    state = checkpoint.read_newest(folder / "checkpoints")[0]
    if not same(state, right):
        raise Lost(f"the last checkpoint in {folder} is not that of an uninterrupted run")
    steps = [record["step"] for record in read_stats(folder / "stats.jsonl")]
    if steps != list(range(1, STEPS + 1)):
        raise Lost(f"the logged steps in {folder} are {steps}")
    left = list(folder.rglob(".*.tmp"))
    if left:
        raise Lost(f"left behind: {', '.join(map(str, left))}")


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal bit for bit, including dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
