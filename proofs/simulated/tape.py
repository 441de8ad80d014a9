"""CUDA graphs without a GPU: record every operation of one call, undo its effects, replay them into the same memory.

    tape = record(lambda: step.run(phase, images))      # runs once, then restores memory and random state
    tape.replay()                                       # the same operations on the same storages, without Python

Like a graph, a replay uses only addresses, sizes and numbers from the time of recording. So decisions of Python are
frozen, memory that was freed or moved since then is detected, and operations that wait for the device, or copy from the
host, are rejected while recording. Random operations draw from the default generator again, as in a graph on CUDA. Not
covered are streams, kernels that bypass PyTorch's dispatcher, and the inside of fastgan's operators, which are replayed
as one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


class CaptureRefused(RuntimeError):
    """An operation that cannot be captured in a graph."""


class StaleMemory(RuntimeError):
    """Memory that a tape reads or writes was freed, moved or resized after recording."""


def refuse(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureRefused` if a capture on CUDA would fail: the host waits for the device, or its data is copied."""
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


class HostReads(TorchFunctionMode):
    """Rejects reads of a tensor's memory by Python, for which the CPU calls no operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HOST_READS:
            raise CaptureRefused(f"Tensor.{func.__name__}: the host waits for the device")
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Rejects operations, and records nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse(func, args, kwargs or {})
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


class _External:
    """A storage that outlives the call, as a weak reference, and its previous content."""

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
    """A tensor argument: its index in the table of geometries."""

    number: int


class _Call(NamedTuple):
    func: Any
    arguments: list[Any]
    tree: Any
    fresh: list[tuple[int, int]]  # (index of the output, index in the table)


class Tape:
    """The operations of one call. changed: keys of the storages outside the tape that it changed."""

    def __init__(self) -> None:
        self.outputs: Any = None
        self.changed: set[int] = set()
        self._calls: list[_Call] = []
        self._numbers: dict[_Geometry, int] = {}
        self._outside: dict[int, _External] = {}
        self._pool: dict[int, torch.UntypedStorage] = {}  # created by the call

    def replay(self) -> Any:
        """Repeat the operations. Returns the outputs, which every replay overwrites. Raises `StaleMemory`."""
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
        """Run an operation and record it."""
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
        """Restore memory outside the tape, and fill that of the tape with NaN, because nothing has computed it yet."""
        for key, outside in self._outside.items():
            outside.restore()
            if outside.changed:
                self.changed.add(key)
        for storage in self._pool.values():
            _bytes(storage).fill_(255)

    def _knows(self, tensor: Tensor) -> bool:
        key = storage_key(tensor)
        return key in self._pool or key in self._outside

    def _adopt(self, tensor: Tensor) -> int:
        self._pool[storage_key(tensor)] = tensor.untyped_storage()
        return self._number(tensor)

    def _number(self, tensor: Tensor) -> int:
        if not self._knows(tensor):
            self._outside[storage_key(tensor)] = _External(tensor.untyped_storage())
        geometry = _Geometry(storage_key(tensor), tensor.dtype, int(tensor.storage_offset()), tensor.size(),
                             tensor.stride())
        return self._numbers.setdefault(geometry, len(self._numbers))


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.tape.add(func, args, kwargs or {})


@contextmanager
def recording() -> Iterator[Tape]:
    """A tape of the operations in the block. Restores memory and random state. Raises `CaptureRefused`."""
    tape, random = Tape(), torch.get_rng_state()
    try:
        with HostReads(), _Recorder(tape):
            yield tape
    finally:
        tape.undo()
        torch.set_rng_state(random)


def record(function: Callable[[], Any]) -> Tape:
    """A tape of one call; its `outputs` are the results of the call, which are undefined until a replay."""
    with recording() as tape:
        tape.outputs = function()
    return tape


def storage_key(tensor: Tensor) -> int:
    """A key of a tensor's storage, the same for all views of it, and unique while the storage is alive."""
    return tensor.untyped_storage()._cdata


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether shapes, dtypes and bits are equal: a NaN equals itself, and 0 differs from -0."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (left, right)))


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _store(func: Any, value: Tensor, place: Tensor) -> None:
    """Store the result of an operation at its recorded place; memory from torch.empty is filled with NaN."""
    if value.shape != place.shape:
        raise StaleMemory(f"{func}: {tuple(value.shape)} where {tuple(place.shape)} was recorded")
    if func._schema.name in EMPTY:
        _bytes(place.untyped_storage()).fill_(255)
    else:
        place.copy_(value)
