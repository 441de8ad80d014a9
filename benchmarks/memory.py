"""Peak memory of a call on a CPU, as the sum of all live tensors."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import Parameter


def peak_mb(call: Callable[[], object]) -> float:
    """Peak of the memory of live tensors during a call, in MB (2^20 bytes), independent of the allocator."""
    gc.collect()
    storages = {tensor.untyped_storage() for tensor in gc.get_objects()
                if type(tensor) in (Tensor, Parameter) and tensor.is_cpu and tensor.layout == torch.strided}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes: dict[int, int] = {}
    for storage in storages:
        with suppress(RuntimeError):  # of a compiler's tensors, which have no memory
            sizes[storage.data_ptr()] = storage.nbytes()
    return (sum(sizes.values()) + max(itertools.accumulate(changes), default=0)) / 2**20
