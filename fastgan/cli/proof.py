"""`verify` and `doctor`: what this device computes, and what it can."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgan.cli import parsing


@dataclass
class Verify:
    """Prove that fastgan computes on this device what eager PyTorch computes, and write a certificate.

    Each block of a preset's networks, forward and backward, and whole training steps: both by fastgan's engines and by
    eager PyTorch, against float64. The exit code is 1 when something is further from float64 than the rule allows.
    """

    preset: str = "digits"
    """whose networks and training steps; `fastgan presets` lists them"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    impl: Literal["auto", "reference", "native", "triton"] = "auto"
    """the engine to examine: auto is every one that runs here"""
    batch: int | None = None
    """images, an even number; 32 on a GPU and 4 elsewhere when not given"""
    steps: int = 3
    """how many training steps"""
    out: Path = Path("certificate.json")
    """certificate to write: device, versions, and all numbers"""


def verify(args: list[str]) -> int:
    """`fastgan verify`."""
    options = parsing.parse(Verify, args, "verify")
    parsing.writable(options.out)
    from fastgan.device import pick_device
    from fastgan.files import replacing
    from fastgan.verify import certificate, table

    if pick_device(options.device).type == "cpu":
        # kernels have only Triton's interpreter to run in there, which is chosen before they are imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    found = certificate(options.preset, device=options.device, impl=options.impl, batch=options.batch,
                        steps=options.steps, progress=True)
    print(*table.lines(found), sep="\n")
    with replacing(options.out) as stream:
        stream.write(table.as_json(found).encode())
    print(f"certificate: {options.out}")
    return 0 if found["passed"] else 1


@dataclass
class Doctor:
    """Show what is installed, what can be used, and whether fastgan is ready."""


def doctor(args: list[str]) -> int:
    """`fastgan doctor`."""
    parsing.parse(Doctor, args, "doctor")
    from fastgan.verify.doctor import report as findings

    for subject, finding in findings():
        print(f"{subject:17}{finding}")
    return 0
