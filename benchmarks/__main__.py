"""Measure the speed of training on this device, and what each change contributes; results go to OUT/bench.csv.

All implementations do the same work, each in a separate process: fastgan's engines, eager PyTorch, torch.compile, and
PyTorch's loop with and without the work that fastgan saves. Each is first compared with float64; an incorrect one is
not timed. They take turns in a random order; medians of the rounds are reported.

    python -m benchmarks                                         every suite, in about a quarter of an hour
    python -m benchmarks --suite step --batch 64 128             one suite, two batch sizes
    python -m benchmarks --suite step --match native --rounds 3  some implementations; --list names all of them
    python -m benchmarks.report OUT                              tables and plots of the results
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from benchmarks import report, results, run, suites
from benchmarks.results import Row
from fastgan.device import pick_device
from fastgan.errors import FastganError
from fastgan.train.precision import choose


def parse(args: list[str] | None) -> tuple[run.Options, argparse.Namespace]:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=[], help=f"{' | '.join(suites.SUITES)} (all)")
    parser.add_argument("--preset", default="dcgan-64", help="preset with the networks and steps (dcgan-64)")
    parser.add_argument("--batch", nargs="+", type=int, default=[], help="images per step")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (auto)")
    parser.add_argument("--precision", default="auto", choices=["auto", *suites.PRECISIONS],
                        help="arithmetic of the convolutions, as in `fastgan train`; PyTorch's example: fp32 or tf32")
    parser.add_argument("--match", default="", help="measure the implementations whose name contains this text")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each implementation (9)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="approximate time limit: fewer rounds, at "
                        "least 3; workloads for which no time is left are listed")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for bench.csv (bench)")
    parser.add_argument("--list", action="store_true", help="list workloads and implementations, and exit")
    given = parser.parse_args(args)
    if given.rounds < 1 or not given.minutes > 0:
        raise FastganError(f"--rounds {given.rounds} --minutes {given.minutes}: expected 1 or more, and above 0")
    if any(batch < 2 for batch in given.batch):
        raise FastganError(f"--batch {' '.join(map(str, given.batch))}: expected 2 or more; statistics need 2 images")
    suites.check_names(given.suite, given.preset)
    device = pick_device(given.device)
    options = run.Options(device, tuple(given.suite), given.preset, tuple(given.batch),
                          choose(given.precision, device), given.rounds, given.match, given.minutes)
    if not any(options.implementations(workload) for workload in options.workloads()):
        raise FastganError(f"--match {given.match}: no implementation has it in its name; --list shows all of them")
    return options, given


def main(args: list[str] | None = None) -> int:
    """The exit code is 0, 2 after an error, or 130 after Ctrl-C."""
    rows: list[Row] = []
    skipped: list[str] = []
    try:
        options, given = parse(args)
        if given.list:
            for workload in options.workloads():
                print(workload, *(f"    {one.name}" for one in options.implementations(workload)), sep="\n")
            return 0
        path = results.prepare(given.out)
        run.measure(options, path, rows, skipped)
    except FastganError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"benchmarks: interrupted: {len(rows)} results are in {given.out / results.NAME}", file=sys.stderr)
        return 130
    print(*report.tables(rows), *(f"no time was left: {name}" for name in skipped), f"results: {path}",
          f"plots: python -m benchmarks.report {given.out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
