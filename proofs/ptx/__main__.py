"""Execute the compiled kernels without a GPU: Triton's PTX runs in a simulator on the CPU and is compared with float64.

    python -m proofs.ptx --ptxsim PATH [--quick] [--only operations training replays traffic]

operations  blocks of many shapes in every tile, with 2, 4 and 8 warps and 1 to 4 pipeline stages, in bfloat16, float16,
            tf32 and float32, compiled for sm_80 and sm_90: no race, no access out of bounds, no read of uninitialized
            memory, bit for bit the same results in every tested order of execution, and the error of every output,
            gradient and running statistic within the limit; the same for the loss, spectral normalization and the
            kernel that gathers a batch
training    three steps of dcgan-64 at full width, every launch simulated, compared with float64 and eager PyTorch
replays     steps of dcgan-64 replayed like a CUDA graph, bit for bit equal to eager steps
traffic     bytes and operations of each launch of a step, compared with those of its layer; written to a CSV file

--quick is the part that CI runs: every tile with its own warps and stages, training and replays at batch 8 in bfloat16
on sm_80. The simulator (ptxsim) executes PTX, so errors of the assembler or the hardware are not detected.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

PARTS = ("operations", "training", "replays", "traffic")


def main() -> int:
    parser = argparse.ArgumentParser("python -m proofs.ptx", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptxsim", metavar="PATH", default=os.environ.get("PTXSIM"),
                        help="folder of the simulator (default: the environment variable PTXSIM)")
    parser.add_argument("--quick", action="store_true", help="the part that CI runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--match", default="", help="run only the cases whose line contains this text")
    parser.add_argument("--out", type=Path, default=Path("build/ptx.csv"), help="the table of traffic")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    return prove(options)


def prove(options: argparse.Namespace) -> int:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        print(f"Triton cannot be imported ({error}): nothing was executed")
        return 0
    from proofs.ptx import batch, gan_loss, operations, replays, simulator, spectral, traffic, training

    ptxsim = simulator.find(options.ptxsim)
    if ptxsim is None:
        print(f"no PTX simulator (ptxsim) at {options.ptxsim or 'PTXSIM, which is not set'}: nothing was executed")
        return 0
    start, failures = time.perf_counter(), []
    if "operations" in options.only:
        failures += operations.prove(ptxsim, options.quick, options.match)
        failures += gan_loss.prove(ptxsim, options.quick, options.match)
        failures += spectral.prove(ptxsim, options.quick, options.match)
        failures += batch.prove(ptxsim, options.quick, options.match)
    if "training" in options.only:
        failures += training.prove(ptxsim, options.quick, options.match)
    if "replays" in options.only:
        failures += replays.prove(ptxsim, options.quick, options.match)
    if "traffic" in options.only:
        failures += traffic.prove(ptxsim, options.out)
    minutes = (time.perf_counter() - start) / 60
    for failure in failures:
        print(f"FAILED {failure}")
    verdict = f"{len(failures)} failed" if failures else f"{', '.join(options.only)}: all passed"
    print(f"{verdict}; {minutes:.1f} minutes")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
