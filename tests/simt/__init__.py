"""The kernels of csrc/cuda as a program for this CPU, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILER = os.environ.get("CXX", "g++")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++17", "-O1", "-g1", "-fno-strict-aliasing", *SANITIZERS, f"-I{HERE}", f"-I{CSRC / 'include'}",
         f"-I{CSRC / 'cuda'}")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Argument = int | float | Tensor | None


def why_not() -> str:
    """Why the harness cannot be built here, in words; "" when it can."""
    if sys.platform != "linux":
        return f"the harness is for Linux, this is {sys.platform}"
    return "" if shutil.which(COMPILER) else f"no C++ compiler {COMPILER!r}"


class SimtError(Exception):
    """What a sanitizer, or the harness itself, says of a call."""


class Program(NamedTuple):
    path: Path

    def call(self, name: str, *arguments: Argument, seed: int = 0) -> None:
        """Run a row kernel of csrc/cuda/kernels.h, structures spelt out; tensors are read, and written, in place.

        Pointers lie beyond a multiple of 16 bytes as the tensors do. `seed` decides the order of threads and blocks.
        """
        done = subprocess.run([self.path], input=struct.pack("=qq", seed, len(name)) + name.encode()
                              + b"".join(map(_packed, arguments)), capture_output=True, check=False)
        if done.returncode:
            raise SimtError(done.stderr.decode(errors="replace"))
        result = memoryview(done.stdout)
        for tensor in arguments:
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                _bytes(tensor)[:] = torch.tensor(result[:size].tolist(), dtype=torch.uint8)
                result = result[size:]
        assert not result


def _bytes(tensor: Tensor) -> Tensor:
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8)


def _packed(argument: Argument) -> bytes:
    if argument is None:
        return b"n"
    if isinstance(argument, Tensor):
        content = _bytes(argument).numpy().tobytes()
        return struct.pack("=cqq", b"p", argument.data_ptr() % 16, len(content)) + content
    return struct.pack("=cd", b"d", argument) if isinstance(argument, float) else struct.pack("=cq", b"i", argument)


def build(folder: Path, sources: Sequence[Path], *flags: str) -> Program:
    """Compile `sources` one after another and link them, into `folder`."""
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        if not objects[-1].exists():
            _run(*FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(objects[-1]))
    _run(*SANITIZERS, "-no-pie", *flags, *map(str, objects), "-o", str(folder / "simt"))
    return Program(folder / "simt")


def _run(*arguments: str) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
