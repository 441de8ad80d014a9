"""Memory of the process: its limit, the reuse of freed memory, and detection of out-of-memory errors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# fragments of the messages of PyTorch's CPU allocators on Linux and macOS, and on Windows
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def limit() -> int:
    """The memory limit of this process in bytes: the smallest of physical memory, the limits of its container or
    control groups, and `ulimit -v`; sys.maxsize if none is known."""
    return min(_limits())


def ran_out(error: Exception) -> bool:
    """Whether an exception means that memory ran out, on the host or on a device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        text in str(error) for text in _OUT_OF_MEMORY)


def keep_freed() -> None:
    """Make malloc keep freed memory, because the next step needs the same amount again. By default glibc returns most
    of it to the system after each step, and the page faults that follow take 3 % of a step of dcgan-64.

    Does nothing with another C library, or if environment variables already configure glibc's malloc.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def _limits() -> Iterator[int]:
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    if sys.platform != "win32":
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY:
            yield allowed
    for path in _group_files():
        with contextlib.suppress(OSError, ValueError):  # the file is hidden in a container, or contains "max"
            yield int(path.read_text())


def _group_files() -> Iterator[Path]:
    """The limit files of this process's control groups (v1 and v2) and of their parents."""
    with contextlib.suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if kinds else (_GROUPS, "memory.max")
            parts = Path(group.lstrip("/")).parts
            yield from (root.joinpath(*parts[:depth], name) for depth in range(len(parts) + 1))
