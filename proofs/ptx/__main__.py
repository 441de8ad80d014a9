"""Execute the compiled kernels without a GPU: Triton's PTX in a simulator on the CPU, against float64.

    python -m proofs.ptx --ptxsim PATH [--quick] [--only operations training replays traffic]

operations  stages of every shape in every shipped tile, with 2, 4 and 8 warps and 1 to 4 pipeline stages, in bfloat16,
            float16, tf32 and float32, compiled for sm_80 and sm_90: no race, no access out of bounds, no value that
            was never written, the same bits in whatever order the hardware may choose, and every output, gradient and
            running statistic as near to float64 as eager PyTorch's; the loss on logits likewise
training    three steps of dcgan-64 at full width, every launch simulated, against float64 and eager PyTorch
replays     steps of dcgan-64 as a CUDA graph would repeat them, the same bits as eager ones
traffic     what each launch of a step moves and computes, against what its layer must; written to a CSV file

--quick is what CI runs: every tile as it is shipped, training and replays at batch 8 in bfloat16 on sm_80.
The simulator (ptxsim) executes PTX: what the assembler and the hardware do with it afterwards it cannot see.
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
                        help="folder of the simulator; the environment variable PTXSIM when not given")
    parser.add_argument("--quick", action="store_true", help="the part that CI runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--match", default="", help="only the operations and training steps whose line contains this")
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
    from proofs.ptx import logistic, operations, replays, simulator, traffic, training

    ptxsim = simulator.find(options.ptxsim)
    if ptxsim is None:
        print(f"no PTX simulator (ptxsim) at {options.ptxsim or 'PTXSIM, which is not set'}: nothing was executed")
        return 0
    start, failures = time.perf_counter(), []
    if "operations" in options.only:
        failures += operations.prove(ptxsim, options.quick, options.match)
        failures += logistic.prove(ptxsim, options.quick, options.match)
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
