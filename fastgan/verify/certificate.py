"""The certificate: a comparison of fastgan's results on this device with those of eager PyTorch.

It checks each block of a preset's networks, in each precision, on each available engine, and then whole training steps.
All results are compared with float64 by the same rule (`fastgan/ops/numerics.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastgan import presets
from fastgan.errors import FastganError
from fastgan.ops import numerics
from fastgan.ops.arguments import check_impl
from fastgan.ops.dispatch import ENGINES
from fastgan.verify import machine
from fastgan.verify.result import Result

if TYPE_CHECKING:
    from fastgan.verify.checks import Check

BATCH, BATCH_ON_A_GPU = 4, 32
NAMES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}


def certificate(preset: str = "digits", *, device: str = "auto", impl: str = "auto", batch: int | None = None,
                steps: int = 3, progress: bool = False) -> dict[str, Any]:
    """Compare fastgan's operations and training steps with eager PyTorch and float64 on a device.

    Args:
        preset: the preset whose networks and training steps are checked.
        device: as in `fastgan train`.
        impl: the engine to check; "auto" for all engines that are available on the device.
        batch: batch size, an even number of at least 4; by default 32 on a GPU and 4 on other devices.
        steps: the number of training steps.
        progress: whether to show a progress bar on stderr.

    Returns:
        A dictionary that can be stored as JSON. "passed" is the verdict; "machine", "engines" and "rule" describe what
            was checked. "operations" and "steps" are lists of dictionaries with the keys "what", "engine", "precision",
            "width" (of narrowed networks, or None), "passed", "error" (a message, or ""), "worst" and "quantities".
            Each quantity has "measure"; "ours", "eager" and "allowed", which are errors relative to the float64 result;
            "by_kinks", whether kinks of the activations increase the allowed error; and "used" = ours / allowed.
            "not_checked" lists what could not be checked and does not affect the verdict.

    Raises:
        FastganError: for an engine or a device that is not available, and for invalid numbers.
    """
    # not at the top, because `fastgan doctor` imports this package and must work if dependencies are missing
    from tqdm import tqdm

    from fastgan.device import pick_device
    from fastgan.verify import checks

    check_impl(impl)
    config, place = presets.get(preset), pick_device(device)
    batch = (BATCH_ON_A_GPU if place.type == "cuda" else BATCH) if batch is None else batch
    if batch < 4 or batch % 2:
        raise FastganError(f"--batch {batch}: expected an even number of at least 4, half of them fakes")
    if steps < 1:
        raise FastganError(f"--steps {steps}: expected 1 or more")
    usable = checks.usable(impl, place)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        all_checks, missing = checks.plan(config, usable, batch, steps, place)
        bar = tqdm(all_checks, desc="verify", unit="check", disable=not progress, dynamic_ncols=True, leave=False)
        rows = [(check.part, _row(check, check.run())) for check in bar]
    return {
        "preset": preset, "batch": batch, "passed": all(row["passed"] for _, row in rows),
        "machine": {"device": machine.describe(place), "driver": machine.driver(), **machine.versions(),
                    "commit": machine.commit()},
        "engines": {name: next((one.note for one in usable if one.impl == name),
                               machine.why_not(name, place) or "not requested") for name in ENGINES},
        "rule": numerics.__doc__,
        "operations": [row for part, row in rows if part == "operations"],
        "steps": [row for part, row in rows if part == "steps"],
        "not_checked": missing,
    }


def _row(check: Check, result: Result) -> dict[str, Any]:
    return {
        "what": check.what, "engine": check.engine, "precision": NAMES[check.precision], "width": check.width,
        "passed": result.passed, "error": result.error, "worst": result.worst,
        "quantities": {name: {**one._asdict(), "used": one.used} for name, one in result.quantities.items()},
    }
