"""One job: python -m proofs.gpu.child KIND PART RESULTS.CSV JOURNAL [KEY=VALUE ...]

A job is a function of a `Worker` that executes named items. After an exception the item has failed; if the device then
does not respond, the process ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from proofs.gpu.jobs import LOST, marks
from proofs.gpu.rows import Row, append

PLACES = {"facts": "prepare", "nvcc": "prepare", "kernels": "prepare", "warm": "prepare", "passes": "correctness",
          "replays": "correctness", "steps": "speed", "auto": "speed", "gemm": "kernels",
          "tiles": "kernels", "profile": "tools", "counters": "tools", "sanitizer": "tools", "once": "tools"}


class Worker:
    """The argument of a job: its options, and methods that write rows and marks."""

    def __init__(self, part: str, path: Path, journal: Path, options: dict[str, str]) -> None:
        self.part, self.path, self.journal, self.options = part, path, journal, options
        self._last = {item: mark for mark, item in marks(journal)}

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.path.parent

    @property
    def work(self) -> Path:
        """The folder for logs and tables, which are added to the tar."""
        return self.journal.parent

    def row(self, name: str, quantity: str = "", value: Any = "", unit: str = "", **more: str) -> None:
        number = f"{value:.6g}" if isinstance(value, float) else str(value)
        append(self.path, Row(self.part, name, quantity=quantity, value=number, unit=unit, **more))

    def mark(self, mark: str, item: str) -> None:
        self._last[item] = mark
        with suppress(OSError), self.journal.open("a") as file:
            file.write(f"{mark} {item}\n")

    def is_bad(self, item: str) -> bool:
        return self._last.get(item) == "bad"

    def each(self, items: Iterable[tuple[str, Callable[[], None]]], **row: str) -> None:
        """Execute the items that earlier processes have neither finished nor lost. row: fields for failed items."""
        for item, do in items:
            if self._last.get(item) not in ("end", "bad"):
                self.attempt(item, do, **row)

    def attempt(self, item: str, do: Callable[[], None], **row: str) -> bool:
        """Execute one item; False if it fails."""
        self.mark("begin", item)
        try:
            do()
        except Exception as error:
            traceback.print_exc()
            first = next(iter(str(error).splitlines()), "")
            self.row(item, result="failed", note=f"{type(error).__name__}: {first}", **row)
            self.mark("bad", item)
            self._leave_if_lost()
            return False
        self.mark("end", item)
        return True

    def _leave_if_lost(self) -> None:
        from proofs.gpu import library

        try:
            library.cuda.synchronize()
        except Exception as error:
            print(f"the device is lost: {error}", flush=True)
            os._exit(LOST)


def _die_with_parent() -> None:
    """On Linux, end this process when the command is killed, so that it no longer uses the device."""
    with suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    _die_with_parent()
    kind, part, path, journal, *options = sys.argv[1:]
    if stand_in := os.environ.get("FASTGAN_STAND_IN"):
        import_module(stand_in).install()
    if os.environ.get("FASTGAN_PTXAS") == "torch":
        from proofs.gpu.library import torch_ptxas

        os.environ["TRITON_PTXAS_PATH"] = str(torch_ptxas() or "")
    worker = Worker(part, Path(path), Path(journal), dict(option.split("=", 1) for option in options))
    getattr(import_module(f"proofs.gpu.{PLACES[kind]}"), kind)(worker)


if __name__ == "__main__":
    main()
