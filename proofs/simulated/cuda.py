"""A stand-in for torch.cuda whose graphs are tapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from proofs.simulated.tape import HostReads, Tape, Watch, recording

PREVIOUS_ERROR = "CUDA error: operation failed due to a previous error during capture"


class _Stream:
    def __init__(self, cuda: SimulatedCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: _Stream) -> None:
        self.cuda.events.append(f"{self.name} waits for {other.name}")


class _Graph:
    """Same as torch.cuda.CUDAGraph: captured once, replayed until it is reset."""

    def __init__(self, cuda: SimulatedCuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.tape: Tape | None = None

    def replay(self) -> None:
        self.cuda.events.append(f"replay {self.name}")
        if self.tape is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if self.cuda.broken:
            raise RuntimeError(self.cuda.broken)
        self.tape.replay()
        self.cuda.after_replay()

    def reset(self) -> None:
        self.cuda.events.append(f"reset {self.name}")
        self.tape = None


class SimulatedCuda:
    """A replacement for torch.cuda whose device is the CPU; `events` lists its calls in order.

    A test may set `broken` and `refusal` to error messages, which every replay and the end of a capture then raise, and
    `after_replay` to a function that is called after each replay.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.broken = self.refusal = ""
        self.after_replay: Callable[[], None] = lambda: None
        self.default_generators: tuple[torch.Generator, ...] = (torch.default_generator,)
        self._current = _Stream(self, "main")
        self._made = {"stream": 0, "graph": 0, "pool": 0}
        self._watch = ExitStack()
        self._capturing = False

    def is_available(self) -> bool:
        return True

    def Stream(self, device: Any = None) -> _Stream:
        return _Stream(self, self._next("stream"))

    def current_stream(self, device: Any = None) -> _Stream:
        return self._current

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def CUDAGraph(self) -> _Graph:
        return _Graph(self, self._next("graph"))

    def graph_pool_handle(self) -> str:
        self.events.append(f"make {self._next('pool')}")
        return f"pool {self._made['pool']}"

    @contextmanager
    def graph(self, cuda_graph: _Graph, pool: str | None = None, stream: _Stream | None = None,
              capture_error_mode: str = "global") -> Iterator[None]:
        assert stream is not None and stream.name != "main", "a graph is captured on a side stream"
        self.events.append(f"capture {cuda_graph.name} in {pool} on {stream.name}, {capture_error_mode}")
        before, self._current, self._capturing = self._current, stream, True
        try:
            with recording() as tape:
                yield
        except Exception:  # as in torch.cuda.graph, the end of the capture also fails, and the stream is not restored
            raise RuntimeError(PREVIOUS_ERROR) from None
        finally:
            self._capturing = False
        if self.refusal:
            raise RuntimeError(self.refusal)
        self._current = before
        self.events.append(f"captured {cuda_graph.name}")
        cuda_graph.tape = tape

    def is_current_stream_capturing(self) -> bool:
        return self._capturing

    def synchronize(self, device: Any = None) -> None:
        self.events.append("synchronize")

    def get_rng_state(self, device: Any = None) -> Tensor:
        self.events.append("get random state")
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.events.append("set random state")
        torch.set_rng_state(state)

    def get_sync_debug_mode(self) -> int:
        return 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.events.append(f"waiting is {'an error' if mode == 'error' else 'allowed'}")
        self._watch.close()
        if mode == "error":
            self._watch.enter_context(HostReads())
            self._watch.enter_context(Watch())

    def _next(self, kind: str) -> str:
        self._made[kind] += 1
        return f"{kind} {self._made[kind]}"
