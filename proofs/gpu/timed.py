"""Timings of dcgan-64's step, by `fastgan.bench`: python -m proofs.gpu.timed FOLDER

Without torch.compile and the plan, which take minutes to make: `fastgan bench --device cuda` measures them too. Results
are appended to FOLDER/bench.csv as soon as they are there.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from fastgan.bench import results, run, table
from fastgan.train.precision import choose


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu.timed", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=run.ROUNDS)
    parser.add_argument("--seconds", type=float, default=math.inf, help="that it may take")
    parser.add_argument("--commit", default="", help="of the code, where there is no git to ask")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    order = run.Order.without_compilers(device, choose("auto", device), batches=options.batch, rounds=options.rounds,
                                        minutes=options.seconds / 60, commit=options.commit)
    done = run.Done(results.check(options.folder))
    try:
        run.measure(order, done)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept")
    for group in table.groups(done.rows):
        print("\n".join(table.whole(group)))
    wrong, late = {row.contender for row in done.errors}, ", ".join(done.late)
    print(f"{sum(row.p50 is not None for row in done.rows)} measurements"
          + (f"; {len(wrong)} contenders failed" if wrong else "") + (f"; no time was left for {late}" if late else ""))
    return 1 if wrong or not done.rows else 0


if __name__ == "__main__":
    sys.exit(main())
