"""The kernels of csrc/cuda as a program for this CPU, under AddressSanitizer and UndefinedBehaviorSanitizer.

Not optimized, because compiling takes longer than running.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILER = os.environ.get("CXX", "g++")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++17", "-O0", "-g1", "-fno-strict-aliasing", f"-I{HERE}", f"-I{CSRC / 'include'}",
         f"-I{CSRC / 'cuda'}")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Argument = int | float | Tensor | None


def why_not() -> str:
    """The reason why the harness cannot be built here; "" if it can."""
    if sys.platform != "linux":
        return f"the harness is for Linux, this is {sys.platform}"
    return "" if shutil.which(COMPILER) else f"no C++ compiler {COMPILER!r}"


class SimtError(Exception):
    """The message of a sanitizer, or of the harness, about a call."""


class Program:
    """A process that runs one call after another, until a call fails or `close`. The first call starts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, name: str, *arguments: Argument, seed: int = 0) -> None:
        """Run a kernel of csrc/include/fastgan/kernels.h. Members of structures are separate arguments, and tensors are
        read and written in place.

        A pointer has the alignment of its tensor; a tensor that is passed twice is the same memory. seed: for the order
        of threads and blocks.
        """
        tensors: list[Tensor] = []
        packed = b"".join([_packed(argument, tensors) for argument in arguments])
        sizes = [len(tensor) for tensor in tensors]
        answer = self._answer(struct.pack("=qq", seed, len(name)) + name.encode() + packed, sum(sizes) + 1)
        contents = torch.frombuffer(bytearray(answer[:-1]), dtype=torch.uint8) if any(sizes) else torch.empty(0)
        for tensor, content in zip(tensors, contents.split(sizes), strict=True):
            tensor.copy_(content)

    def close(self) -> str:
        """End the process, and return its error message or "". Leaks are detected at the end of the process."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with suppress(BrokenPipeError):
            process.communicate()
        said = self._log.read_text(errors="replace") or f"it ended with {process.returncode}"
        return said if process.returncode else ""

    def _answer(self, question: bytes, size: int) -> bytes:
        if self._process is None:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen([self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(question)
            self._process.stdin.flush()
        answer = self._process.stdout.read(size)
        if len(answer) != size:
            raise SimtError(self.close())
        return answer

    @property
    def _log(self) -> Path:
        return self.path.with_suffix(".log")


def _bytes(tensor: Tensor) -> Tensor:
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8)


def _packed(argument: Argument, sent: list[Tensor]) -> bytes:
    """The bytes that main.cpp reads for an argument; a new tensor is added to `sent`."""
    if argument is None:
        return b"n"
    if isinstance(argument, Tensor):
        content = _bytes(argument)
        for number, other in enumerate(sent):
            if len(content) and other.data_ptr() == content.data_ptr():
                return struct.pack("=cq", b"s", number)
        sent.append(content)
        return struct.pack("=cqq", b"p", argument.data_ptr() % 16, len(content)) + content.numpy().tobytes()
    return struct.pack("=cd", b"d", argument) if isinstance(argument, float) else struct.pack("=cq", b"i", argument)


def build(folder: Path, sources: Sequence[Path], *flags: str) -> Program:
    """Compile `sources` and the harness in `folder`, except objects that exist there, and link them."""
    objects = []
    for source in (*sources, HERE / "main.cpp", HERE / "simt.cpp"):
        objects.append(folder / f"{source.stem}.o")
        if not objects[-1].exists():
            how = (*FLAGS, *SANITIZERS, *flags) if source.name != "simt.cpp" else (*FLAGS, "-O2")
            _run(*how, "-x", "c++", "-c", str(source), "-o", str(objects[-1]))
    _run(*SANITIZERS, "-no-pie", *flags, *map(str, objects), "-o", str(folder / "simt"))
    return Program(folder / "simt")


def _run(*arguments: str) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
