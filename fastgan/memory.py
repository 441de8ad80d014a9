"""How much memory there is for this process, and whether an exception says that it ran out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# what PyTorch's allocators say on a CPU, on Linux and macOS, and on Windows
_SAID = ("can't allocate memory", "not enough memory")


def limit() -> int:
    """Bytes that this process may have: the machine's memory, less where its container, control group or `ulimit -v`
    allows less; without bound where the system does not tell."""
    return min(_limits())


def ran_out(error: Exception) -> bool:
    """Whether an exception means that memory ran out, on the host or on a device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(said in str(error) for said in _SAID)


def _limits() -> Iterator[int]:
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    if sys.platform != "win32":
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY:
            yield allowed
    for path in _group_files():
        with contextlib.suppress(OSError, ValueError):  # one that a container hides, or "max"
            yield int(path.read_text())


def _group_files() -> Iterator[Path]:
    """Where the limits of the control groups stand in which this process is, and of those above; of both versions."""
    with contextlib.suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if kinds else (_GROUPS, "memory.max")
            parts = Path(group.lstrip("/")).parts
            yield from (root.joinpath(*parts[:depth], name) for depth in range(len(parts) + 1))
