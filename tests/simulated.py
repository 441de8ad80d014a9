"""CUDA graphs without a GPU: record every operation of one call, undo its effects, replay them into the same memory.

    tape = record(lambda: step.run(phase, images))      # runs once, and leaves everything as it was
    tape.replay()                                       # the same operations on the same storages, Python left out

A replay knows what a graph knows: addresses, sizes and the plain numbers that Python passed when it was recorded. So
all that Python decided is frozen, memory that was freed or moved since is found, and operations that wait for the
device, or copy from the host, are refused while recording. Random operations draw from the default generator again,
as a graph does on CUDA. What this cannot see: streams, kernels that go past PyTorch's dispatcher, and what happens
inside an operator of ours, which is replayed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten

WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
MORE_WAITING = {"aten::is_nonzero", "aten::_pin_memory", "aten::set_", "aten::resize_"}
HOST_READS = {"cpu", "numpy", "tolist", "__array__", "__dlpack__", "pin_memory"}
PREVIOUS_ERROR = "CUDA error: operation failed due to a previous error during capture"
EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


class CaptureRefused(RuntimeError):
    """An operation that no graph can hold."""


class StaleMemory(RuntimeError):
    """Memory that a tape reads or writes was freed, moved or resized since."""


def refuse(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureRefused` where capture on CUDA would: the host waits for the device, or its data is copied."""
    name = func._schema.name
    if name == "aten::lift_fresh":
        raise CaptureRefused(f"{func}: data of the host is copied to the device (torch.tensor, from_numpy)")
    if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
        raise CaptureRefused(f"{func}: a generator that is not the default one")
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise CaptureRefused(f"{func}: a boolean mask, whose number of ones the host would have to know")
        return
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
        return
    if name in MORE_WAITING or WAITING & set(func.tags):
        raise CaptureRefused(f"{func}: the host waits for the device, or memory is replaced")


class _HostReads(TorchFunctionMode):
    """Reads of a tensor's memory by Python, which on the CPU no operator tells of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HOST_READS:
            raise CaptureRefused(f"Tensor.{func.__name__}: the host waits for the device")
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Refuses, and records nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse(func, args, kwargs or {})
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


class _External:
    """A storage that outlives the call, held weakly, with what it contained before."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.weak, self.address, self.size = StorageWeakRef(storage), storage.data_ptr(), storage.nbytes()
        self.before = storage.clone()
        self.changed = False

    def restore(self) -> None:
        if (storage := self._alive()) is not None and self._unmoved(storage):
            self.changed = not torch.equal(_bytes(storage), _bytes(self.before))
            storage.copy_(self.before)
        del self.before

    def open(self) -> torch.UntypedStorage:
        if (storage := self._alive()) is None:
            raise StaleMemory(f"{self.size} bytes that the tape uses were freed")
        if not self._unmoved(storage):
            raise StaleMemory(f"{self.size} bytes that the tape uses were moved or resized")
        return storage

    def _alive(self) -> torch.UntypedStorage | None:
        return torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)

    def _unmoved(self, storage: torch.UntypedStorage) -> bool:
        return (storage.data_ptr(), storage.nbytes()) == (self.address, self.size)


class _Geometry(NamedTuple):
    """A tensor without its memory."""

    storage: int  # the key of its storage
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def of(self, storage: torch.UntypedStorage) -> Tensor:
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class _Slot(NamedTuple):
    """Where an argument is a tensor: its number in the table of geometries."""

    number: int


class _Call(NamedTuple):
    func: Any
    arguments: list[Any]
    tree: Any
    fresh: list[tuple[int, int]]  # (which output, its number in the table)


class Tape:
    """What one call did; `changed` are the storages outside the tape that it changed."""

    def __init__(self) -> None:
        self.outputs: Any = None
        self.changed: set[int] = set()
        self._calls: list[_Call] = []
        self._numbers: dict[_Geometry, int] = {}
        self._outside: dict[int, _External] = {}
        self._pool: dict[int, torch.UntypedStorage] = {}  # created by the call; the graph's own

    def replay(self) -> Any:
        """Do it again; returns the outputs, which every replay overwrites. Raises `StaleMemory`."""
        storages = {**self._pool, **{key: outside.open() for key, outside in self._outside.items()}}
        table = [geometry.of(storages[geometry.storage]) for geometry in self._numbers]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for call in self._calls:
                values = [table[a.number] if isinstance(a, _Slot) else a for a in call.arguments]
                args, kwargs = tree_unflatten(values, call.tree)
                results = tree_flatten(call.func(*args, **kwargs))[0]
                for position, number in call.fresh:
                    _store(call.func, results[position], table[number])
        return self.outputs

    def add(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and remember it."""
        refuse(func, args, kwargs)
        values, tree = tree_flatten((args, kwargs))
        arguments = [_Slot(self._number(v)) if isinstance(v, Tensor) else v for v in values]
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        if not func.is_view:
            outputs = tree_flatten(result)[0]
            fresh = [(i, self._adopt(out)) for i, out in enumerate(outputs)
                     if isinstance(out, Tensor) and not self._knows(out)]
            self._calls.append(_Call(func, arguments, tree, fresh))
        return result

    def undo(self) -> None:
        """Memory outside as it was; the tape's own full of NaN, as nothing has computed it yet."""
        for key, outside in self._outside.items():
            outside.restore()
            if outside.changed:
                self.changed.add(key)
        for storage in self._pool.values():
            storage.fill_(255)

    def _knows(self, tensor: Tensor) -> bool:
        key = storage_key(tensor)
        return key in self._pool or key in self._outside

    def _adopt(self, tensor: Tensor) -> int:
        self._pool[storage_key(tensor)] = tensor.untyped_storage()
        return self._number(tensor)

    def _number(self, tensor: Tensor) -> int:
        if not self._knows(tensor):
            self._outside[storage_key(tensor)] = _External(tensor.untyped_storage())
        geometry = _Geometry(storage_key(tensor), tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride())
        return self._numbers.setdefault(geometry, len(self._numbers))


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.tape.add(func, args, kwargs or {})


@contextmanager
def recording() -> Iterator[Tape]:
    """A tape of what happens in the block; raises `CaptureRefused`, and leaves memory and random state as they were."""
    tape, random = Tape(), torch.get_rng_state()
    try:
        with _HostReads(), _Recorder(tape):
            yield tape
    finally:
        tape.undo()
        torch.set_rng_state(random)


def record(function: Callable[[], Any]) -> Tape:
    """A tape of one call; its `outputs` are what the call returned, with nothing in them until a replay."""
    with recording() as tape:
        tape.outputs = function()
    return tape


def storage_key(tensor: Tensor) -> int:
    """The same for all views of one memory, and for nothing else while anything refers to it."""
    return tensor.untyped_storage()._cdata


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shapes, dtypes and bits: a NaN equals itself, and 0 is not -0."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (left, right)))


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _store(func: Any, value: Tensor, place: Tensor) -> None:
    """The result of an operation where it was when recorded; memory that nothing has written is full of NaN."""
    if value.shape != place.shape:
        raise StaleMemory(f"{func}: {tuple(value.shape)} where {tuple(place.shape)} was recorded")
    if func._schema.name in EMPTY:
        place.untyped_storage().fill_(255)
    else:
        place.copy_(value)


class Step(Protocol):
    """What `fastgan.train.graph.Capturable` asks for."""

    def phase(self) -> Hashable: ...
    def run(self, phase: Any, *inputs: Tensor) -> dict[str, Tensor]: ...
    def advance(self, phase: Any, *inputs: Tensor) -> None: ...
    def state(self) -> list[Tensor]: ...
    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]: ...


def assert_replays_equal_eager(make_step: Callable[[], Step], inputs: Sequence[tuple[Tensor, ...]], count: int = 10,
                               seed: int = 0) -> None:
    """`count` eager calls and as many replays, from the same state, are the same to the last bit after each call.

    Args:
        make_step: a step, new or in the middle of a run, in the same state each time it is called.
        inputs: those of each call; taken again from the first one when there are fewer than `count`.
    Raises `AssertionError` that names the call and the tensor, for outputs, state and random state; also when a call
    changes memory that `state` does not name. `CaptureRefused` and `StaleMemory` pass through.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny operations, each of which would wait for a second thread
    try:
        calls = [inputs[i % len(inputs)] for i in range(count)]
        eager, graphed = make_step(), make_step()
        _compare("before the first call, make_step twice", _named(eager), _named(graphed))
        torch.manual_seed(seed)
        seen = list(_eager_calls(eager, calls))
        torch.manual_seed(seed)
        for number, (expected, got) in enumerate(zip(seen, _replayed_calls(graphed, calls), strict=True), 1):
            _compare(f"call {number}", expected, got)
    finally:
        torch.set_num_threads(threads)


def _eager_calls(step: Step, calls: Iterable[tuple[Tensor, ...]]) -> Iterator[dict[str, Tensor]]:
    """All that can be seen after each call."""
    for given in calls:
        outputs = step(*given)
        yield _named(step, outputs)


def _replayed_calls(step: Step, calls: Iterable[tuple[Tensor, ...]]) -> Iterator[dict[str, Tensor]]:
    tapes: dict[Hashable, tuple[Tape, tuple[Tensor, ...]]] = {}
    for given in calls:
        phase = step.phase()
        if phase not in tapes:
            static = tuple(x.clone() for x in given)
            tapes[phase] = _record_step(step, phase, static), static
        tape, static = tapes[phase]
        for mine, theirs in zip(static, given, strict=True):
            mine.copy_(theirs)
        outputs = tape.replay()
        step.advance(phase, *given)
        yield _named(step, outputs)


def _record_step(step: Step, phase: Hashable, static: tuple[Tensor, ...]) -> Tape:
    before = [storage_key(t) for t in step.state()]
    tape = record(lambda: step.run(phase, *static))
    for i, (key, tensor) in enumerate(zip(before, step.state(), strict=True)):
        assert storage_key(tensor) == key, f"run replaces state[{i}] {tuple(tensor.shape)} by a new tensor"
    unnamed = tape.changed - set(before)
    assert not unnamed, f"run changes {len(unnamed)} storages that state() does not name"
    return tape


def _named(step: Step, outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copies, as a reference would keep memory alive that the step lets go."""
    named = {f"state[{i}]": t for i, t in enumerate(step.state())}
    named |= {f"output {key}": t for key, t in (outputs or {}).items()}
    return {**{key: t.detach().clone() for key, t in named.items()}, "random state": torch.get_rng_state()}


def _compare(where: str, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    assert expected.keys() == got.keys(), f"{where}: {sorted(expected.keys() ^ got.keys())} on one side only"
    for name, value in expected.items():
        other = got[name]
        if not same_bits(value, other):
            apart = (value.double() - other.double()).abs().max().item() if value.shape == other.shape else "shape"
            raise AssertionError(f"{where}: {name} {tuple(value.shape)} {value.dtype} differs by {apart}")


class _Stream:
    def __init__(self, cuda: SimulatedCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: _Stream) -> None:
        self.cuda.events.append(f"{self.name} waits for {other.name}")


class _Graph:
    """As torch.cuda.CUDAGraph: captured once, replayed until it is reset."""

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
    """Stands in for torch.cuda, with the CPU as its device; `events` says what it was asked for, in order.

    A test may set `broken` to what every replay is to raise, `refusal` to what the end of a capture is to raise, and
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
        except Exception:  # as torch.cuda.graph: the end of the capture fails too, and the stream stays
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
            self._watch.enter_context(_HostReads())
            self._watch.enter_context(_Watch())

    def _next(self, kind: str) -> str:
        self._made[kind] += 1
        return f"{kind} {self._made[kind]}"
