"""Every operation of a step written down as it is dispatched: kernels with their bytes, and the memory that is alive.

The step runs on fake tensors, which have shapes and storages but no data, so that nothing is computed and any batch
fits. PyTorch's operators become kernels by the table in `operators.py`; fastgan's own are opened, and what their engine
launches comes from the seam where kernels start (`fastgan.ops.triton.launch`). Nothing between them is left out:
copies, casts, random numbers, the optimizer and the ring are operators like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.ops import library
from fastgan.verify.cost import launched, operators
from fastgan.verify.cost.kernel import Kernel
from fastgan.verify.cost.operators import Call, tensors_in

_RESULTS = {"conv_forward": ("raw output", "statistics"), "conv_act_forward": ("activation", "mask"),
            "bn_act_forward": ("activation", "statistics")}


class Origin(NamedTuple):
    """Where a storage comes from: the layer whose parameter was at work ("D main.0"), and what it is there."""

    owner: str
    what: str


class Tape(TorchDispatchMode):
    """While it is entered, operations are recorded.

    Args:
        parameters: by name, "D main.0.weight". state: other tensors that are there before the step. host: those that
            an optimizer keeps on the host, where an operation is no launch.

    Attributes:
        before: numbers of the storages that were there before the step. kernels: in order.
        peak: bytes of the storages that were alive together, at most. origins: by storage number.
    """

    def __init__(self, parameters: dict[str, Tensor], state: Iterable[Tensor] = (),
                 host: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.origins: dict[int, Origin] = {}
        self.peak = 0
        self._numbers: dict[int, tuple[StorageWeakRef, int]] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._count = 0
        self._owner = ""  # of the operator that has been opened
        self._host = {self.number(tensor) for tensor in host}
        for name, tensor in parameters.items():
            self.origins[self.number(tensor)] = Origin(*name.rsplit(".", 1)) if "." in name else Origin("", name)
        self._parameters = set(self.origins)
        state = list(state)
        for tensor in state:
            self.origins.setdefault(self.number(tensor), Origin("", "state"))
        self.before = set(self._alive)
        self._look()

    def number(self, tensor: Tensor) -> int:
        """Of the tensor's storage, as long as it lives: an address is used again."""
        storage = tensor.untyped_storage()
        known = self._numbers.get(storage._cdata)
        if known is not None and not known[0].expired():
            return known[1]
        self._count += 1
        reference = StorageWeakRef(storage)
        self._numbers[storage._cdata] = reference, self._count
        self._alive[self._count] = reference, storage.nbytes()
        return self._count

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        owner = self._owner or self._owner_of(args)
        if func.namespace == "fastgan":
            return self._open(func, owner, args, kwargs)
        if func.namespace != "aten":
            return func(*args, **kwargs)
        if func._schema.name == "aten::_local_scalar_dense":
            return 1  # whatever it is, no shape depends on it
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # made of others: within fastgan's operators, below autograd, it arrives whole
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        call = Call(func, args, kwargs, out, self.number, owner)
        if not all(self.number(tensor) in self._host for tensor in tensors_in([args, out])):
            self.kernels += operators.kernels(call)
        self._came(out, owner, self._what(call))
        return out

    def launched(self, kernel: Any, grid: tuple[int, ...], given: dict[str, Any], options: dict[str, int]) -> None:
        """A handler for `fastgan.ops.triton.launch.through`."""
        name = str(kernel.fn.__name__)
        read, written = [], []
        for tensor, is_read, is_written in launched.tensors(name, given):
            assert isinstance(tensor, Tensor)
            read += [tensor] * is_read
            written += [tensor] * is_written
        flops = launched.flops(name, given)
        self.kernels.append(Kernel(
            f"triton {name.removesuffix('_kernel')}", launched.words(name, given), self._owner,
            "product" if flops else "other", operators.accesses(read, self.number),
            operators.accesses(written, self.number), max(tensor.numel() for tensor in (*read, *written)), flops,
            launched.arithmetic(name, given), launched.bare(name, given)))

    def _open(self, func: Any, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func._schema.name.split("::")[1]
        before, self._owner = self._owner, owner
        try:
            with self:
                out = library.IMPLEMENTATIONS[name](*args, **kwargs)
        finally:
            self._owner = before
        outs = (out,) if isinstance(out, Tensor) else out
        for one, what in zip(outs, _RESULTS.get(name, (name,) * len(outs)), strict=True):
            self.origins[self.number(one)] = Origin(owner, what)
        return out

    def _came(self, out: Any, owner: str, what: str) -> None:
        fresh = [tensor for tensor in tensors_in(out) if self.number(tensor) not in self.origins]
        for tensor in fresh:
            self.origins[self.number(tensor)] = Origin(owner, what)
        if fresh:
            self._look()

    def _look(self) -> None:
        self._alive = {number: one for number, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))

    def _owner_of(self, args: tuple[Any, ...]) -> str:
        """The layer of the last weight among an operator's arguments, or of a cast of one; else that of its input."""
        found = [self.origins[number] for tensor in args if isinstance(tensor, Tensor)
                 if (number := self.number(tensor)) in self.origins]
        weights = [one.owner for one in found if one.what in ("weight", "weight, cast")]
        return weights[-1] if weights else next((one.owner for one in found if one.owner), "")

    def _what(self, call: Call) -> str:
        if call.name == "_to_copy" and self.number(call.args[0]) in self._parameters:
            return f"{self.origins[self.number(call.args[0])].what}, cast"
        return call.name


@contextmanager
def recording(tape: Tape, arch: int | None) -> Iterator[Tape]:
    """The block's operations go to `tape`, Triton kernels for architecture `arch` among them; None: there are none."""
    if arch is None:
        with tape:
            yield tape
        return
    from fastgan.ops.triton import launch

    with launch.through(tape.launched, arch), tape:
        yield tape

