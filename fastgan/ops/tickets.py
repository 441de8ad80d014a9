"""Counters by which a block of a launch detects that it is the last to finish.

Each launch leaves them as zeros, so launches of one stream share them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_tickets: dict[tuple[torch.device, int], Tensor] = {}  # by device and stream
_MINIMUM = 1 << 14


def tickets(device: torch.device, count: int) -> Tensor:
    """At least `count` zeros, int32, for a launch on the current stream.

    If a graph is captured on a stream without tickets, each launch gets its own: memory that is allocated in a capture
    contains zeros only after the graph has run.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    zeros = _tickets.get((device, stream))
    if zeros is None or len(zeros) < count:
        zeros = torch.zeros(max(count, _MINIMUM), dtype=torch.int32, device=device)
        if not (stream and torch.cuda.is_current_stream_capturing()):
            _tickets[device, stream] = zeros
    return zeros
