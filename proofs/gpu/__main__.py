"""Everything that a GPU can prove or measure in under ten minutes, as one folder of results.

    make gpu            or: TRITON_INTERPRET=0 PYTHONPATH=. python3 -m proofs.gpu [--quick] [--out docs/results/gpu]

native        csrc/ compiled in place, where there are nvcc, a compiler and pybind11; else why the engine is left out
tests         pytest -m gpu: operations against float64, replays against eager steps, memory, whole runs
certificates  fastgan.verify, for digits and dcgan-64
timings       fastgan.bench: the textbook's step and ours, at several batch sizes

Each part is a process with a time limit of its own, so one that hangs or crashes spoils nothing; what no longer fits
into the time is not run, and README.md in the folder says so. --quick takes about three minutes.

The exit code is 0, or 1 when a part failed. Nothing is installed, and no more is needed than PyTorch and pytest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from proofs.gpu import facts, report
from proofs.gpu.parts import ROOT, Outcome, Part, run

SECONDS = 570.0  # of the whole command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"),
                        help="where a folder named after device and day is made (docs/results/gpu)")
    parser.add_argument("--quick", action="store_true", help="16-bit tests, one certificate, one batch size")
    parser.add_argument("--commit", default="", help="of the code, where there is no git to ask")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was tested or measured")
        return 0
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    return examine(options.out.resolve(), facts.collect(options.commit), parts(options.quick), options.quick)


def parts(quick: bool) -> list[Part]:
    """What is correct comes before what is fast. Each command runs in the repository."""
    python = [sys.executable, "-m"]
    native = Part("native", [*python, "proofs.gpu.native"], 60 if quick else 120)
    tests, certificates = [*python, "proofs.gpu.tested", "{folder}"], [*python, "proofs.gpu.certify", "{folder}"]
    timings = [*python, "proofs.gpu.timed", "{folder}"]
    if quick:
        return [native, Part("tests", [*tests, "--quick"], 120), Part("certificates", [*certificates, "digits"], 60),
                Part("timings", [*timings, "--batch", "64", "--rounds", "3", "--seconds", "{seconds}"], 60)]
    return [native, Part("tests", tests, 220), Part("certificates", [*certificates, "digits", "dcgan-64"], 100),
            Part("timings", [*timings, "--seconds", "{seconds}"], 130)]


def examine(out: Path, found: dict[str, str | None], planned: list[Part], quick: bool = False,
            seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> int:
    """Run the parts, one after the other, and keep the summary true after each."""
    end = clock() + seconds
    folder = facts.new_folder(out, found)
    facts.write(folder / "facts.json", found)
    print(f"{found['device']}: results go to {folder}", flush=True)
    outcomes: list[Outcome] = []
    report.write(folder, found, [_waiting(part) for part in planned], quick)
    for part in planned:
        print(f"{part.name} (at most {part.limit:.0f} s) ...", flush=True)
        outcomes.append(run(part, folder, end - clock()))
        print(f"    {outcomes[-1].result} in {outcomes[-1].seconds:.0f} s: {outcomes[-1].words}", flush=True)
        report.write(folder, found, [*outcomes, *map(_waiting, planned[len(outcomes):])], quick)
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'no part failed'}; {where / 'README.md'}")
    return 1 if failed else 0


def _waiting(part: Part) -> Outcome:
    return Outcome(part.name, "not run", words="its turn has not come")


if __name__ == "__main__":
    sys.exit(main())
