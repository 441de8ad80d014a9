"""`verify` and `doctor`: checks of this device and installation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgan.cli import parsing


@dataclass
class Verify:
    """Compare fastgan's results on this device with those of eager PyTorch, and write a certificate.

    Runs each layer of a preset's networks, forward and backward, and whole training steps, with fastgan's engines and
    with eager PyTorch, and compares both with float64. The exit code is 1 if an error is larger than 1.5 times that of
    eager PyTorch plus one rounding unit.
    """

    preset: str = "digits"
    """preset whose networks and training steps are run; `fastgan presets` lists the presets"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    impl: Literal["auto", "reference", "native", "triton"] = "auto"
    """engine to check; auto checks every engine that is available on the device"""
    batch: int | None = None
    """batch size, an even number; 32 on a GPU and otherwise 4 if not given"""
    steps: int = 3
    """number of training steps"""
    out: Path = Path("certificate.json")
    """output file, with device, versions, and all numbers"""


def verify(args: list[str]) -> int:
    """`fastgan verify`."""
    options = parsing.parse(Verify, args, "verify")
    parsing.writable(options.out)
    from fastgan.device import pick_device
    from fastgan.files import replacing
    from fastgan.verify import certificate, table

    if pick_device(options.device).type == "cpu":
        # Triton kernels run on a CPU only in the interpreter, which must be enabled before they are imported
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
    """Show the versions of the installed packages, the available engines, and the reasons why others are missing."""


def doctor(args: list[str]) -> int:
    """`fastgan doctor`."""
    parsing.parse(Doctor, args, "doctor")
    from fastgan.verify.doctor import report as findings

    for subject, finding in findings():
        print(f"{subject:17}{finding}")
    return 0
