"""A replacement for `torch.cuda` on the CPU, whose streams run after the host, in an order that the test chooses.

Within `with machine:`, tensors "on cuda" are on the CPU; `copy_`, `zero_` and functions passed to `launch` are appended
to the queue of the current stream. `run` then empties the queues: it always continues with the first stream of its list
that does not wait for an event. A missing wait leads to wrong data in some order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class Event:
    """Streams that wait for its n-th record do not run before that is reached."""

    def __init__(self) -> None:
        self.recorded = self.reached = 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        number = self.recorded
        stream.queue.append((lambda: True, lambda: setattr(self, "reached", number)))


class Stream:
    """A queue of pairs: whether an operation may run, and the operation."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.queue: list[tuple[Callable[[], bool], Callable[[], Any]]] = []

    def wait_event(self, event: Event) -> None:
        number = event.recorded  # as in CUDA: the last record before this call, if any
        self.queue.append((lambda: event.reached >= number, lambda: None))


class Machine(TorchFunctionMode):
    """The library's `cuda`. trace: the operations that ran: send (from pinned memory), copy, launch."""

    Event = Event

    def __init__(self) -> None:
        super().__init__()
        self.main = self.current = Stream()
        self.side: list[Stream] = []
        self.trace: list[str] = []

    def Stream(self, device: torch.device) -> Stream:
        self.side.append(Stream())
        return self.side[-1]

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def launch(self, work: Callable[[], Any]) -> None:
        self._enqueue("launch", work)

    def run(self, streams: list[Stream]) -> None:
        while ready := [stream for stream in streams if stream.queue and stream.queue[0][0]()]:
            ready[0].queue.pop(0)[1]()
        assert not any(stream.queue for stream in streams), "each waits for another"

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = tree_map(self._to_host, (args, kwargs or {}))
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        if func is Tensor.copy_:
            pinned = hasattr(args[1], "is_pinned_here")
            assert pinned == kwargs["non_blocking"], "only pinned memory is copied while the host goes on"
            return self._enqueue("send" if pinned else "copy", lambda: func(*args), args[0])
        if func is Tensor.zero_:
            return self._enqueue("zero", lambda: func(*args), args[0])
        return func(*args, **kwargs)

    def _enqueue(self, name: str, work: Callable[[], Any], result: Any = None) -> Any:
        def traced() -> None:
            self.trace.append(name)
            work()

        self.current.queue.append((lambda: True, traced))
        return result

    @staticmethod
    def _to_host(value: Any) -> Any:
        return torch.device("cpu") if isinstance(value, torch.device) else value
