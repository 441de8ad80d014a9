"""Kernels that a GPU runs for an operator of PyTorch, and what each of them must read and write.

An operator is one kernel that reads its inputs once and writes its outputs once; a view, an allocation or a question is
none. The exceptions, from PyTorch's sources (aten/src/ATen/native, cuda/ and cudnn/), stand in `_SEVERAL`:

    convolution                        1, and 1 for its bias
    convolution_backward               1 for each gradient that is asked for
    batch norm, training               statistics; running statistics; normalise
    its backward                       sums; gradient of the input
    binary_cross_entropy_with_logits   1 - t, times logit, log sigmoid, difference, mean
    select_backward, slice_backward    fill; copy
    _foreach_*, _fused_adam_           1 for 36 to 110 tensors and 320 blocks of 65,536 elements (MultiTensorApply.cuh)
    _foreach_norm                      fill; norms of blocks; norms of tensors

It is the fewest: a library's transposes, workspaces and split sums are left out. Batch normalisation is counted as
PyTorch's own kernels (Normalization.cuh, channels_last); cuDNN's may do with less in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fastgan.verify.cost.kernel import Access, Kernel, Kind

_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
         "_reshape_alias", "is_same_size", "promote_types")
_OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_", "_foreach_copy_", "_foreach_zero_")
_RANDOM = ("normal_", "uniform_", "rand", "randn", "rand_like", "randn_like", "bernoulli_")
_PART = ("index_select", "index", "embedding", "gather", "slice", "select")  # of their source, as much as comes out
_ARITHMETIC = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_CHUNK, _BLOCKS, _TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """In a tensor, or in lists and tuples of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def accesses(tensors: Iterable[Tensor], number: Callable[[Tensor], int], most: int | None = None) -> tuple[Access, ...]:
    """What is touched, once each: views of one storage together are not more than all of it; `most` bytes of one."""
    found: dict[int, dict[tuple[Any, ...], int]] = {}
    limit: dict[int, int] = {}
    for tensor in tensors:
        which = number(tensor)
        size = tensor.element_size()
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            size *= length if stride else min(length, 1)
        place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        found.setdefault(which, {})[place] = size if most is None else min(size, most)
        limit[which] = tensor.untyped_storage().nbytes()
    return tuple(Access(which, min(sum(parts.values()), limit[which])) for which, parts in found.items())


@dataclass
class Call:
    """An operator's call: what it was given, what came out, and how storages are numbered."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    number: Callable[[Tensor], int]
    owner: str = ""

    @property
    def name(self) -> str:
        return str(self.operator._schema.name).split("::")[1]

    def kernel(self, name: str, kind: Kind, reads: Any, writes: Any, flops: int = 0) -> Kernel:
        """One that reads and writes these tensors; None among them is no tensor."""
        reads, writes = list(tensors_in(reads)), list(tensors_in(writes))
        size = max((tensor.numel() for tensor in (*reads, *writes)), default=0)
        most = max((tensor.nbytes for tensor in writes), default=0) if name in _PART else None
        made = Kernel(name, self._words(reads, writes), self.owner, kind, accesses(reads, self.number, most),
                      accesses(writes, self.number), size)
        return made._replace(flops=flops, arithmetic=self._arithmetic(reads), bare=made.bytes) if flops else made

    def given(self) -> Iterator[tuple[Any, bool]]:
        """(argument, whether it is written)."""
        for i, argument in enumerate(self.operator._schema.arguments):
            value = self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
            yield value, argument.alias_info is not None and argument.alias_info.is_write

    def _words(self, reads: list[Tensor], writes: list[Tensor]) -> str:
        largest = max((*writes, *reads), key=Tensor.numel, default=None)
        if largest is None:
            return ""
        return f"{'x'.join(map(str, largest.shape)) or 'scalar'} {str(largest.dtype).removeprefix('torch.')}"

    def _arithmetic(self, reads: list[Tensor]) -> str:
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        return _ARITHMETIC.get(reads[0].dtype, "tf32" if tf32 else "fp32")


def kernels(call: Call) -> list[Kernel]:
    """Of an operator's call, in order."""
    if call.operator.is_view or call.name in _FREE:
        return []
    several = _SEVERAL.get(call.name) or (_foreach if call.name.startswith(("_foreach_", "_fused_")) else _one)
    return [kernel for kernel in several(call) if kernel.size]  # of no elements, nothing is launched


def _one(call: Call) -> list[Kernel]:
    reads, writes = [], [call.out]
    for value, written in call.given():
        if written:
            writes.append(value)
        if not written or call.name not in _OVERWRITES:
            reads.append(value)
    count = flop_registry.get(call.operator._overloadpacket)
    flops = int(count(*call.args, **call.kwargs, out_val=call.out)) if count else 0
    kind: Kind = "product" if flops else "other" if call.name in _RANDOM else _shape(reads, writes)
    return [call.kernel(call.name, kind, reads, writes, flops)]


def _shape(reads: Any, writes: Any) -> Kind:
    inputs = max((tensor.numel() for tensor in tensors_in(reads)), default=0)
    return "reduction" if inputs > max((tensor.numel() for tensor in tensors_in(writes)), default=0) else "pointwise"


def _convolution(call: Call) -> list[Kernel]:
    x, weight, bias = call.args[:3]
    flops = int(flop_registry[call.operator._overloadpacket](*call.args, out_val=call.out))
    found = [call.kernel("convolution", "product", (x, weight), call.out, flops)]
    return found if bias is None else [*found, call.kernel("add bias", "pointwise", (call.out, bias), call.out)]


def _convolution_backward(call: Call) -> list[Kernel]:
    gy, x, weight, (gx, gweight, gbias) = *call.args[:3], call.out
    flops = int(flop_registry[torch.ops.aten.convolution](x, weight, None, *call.args[4:10], out_val=gy))
    found = []
    if gx is not None:
        found.append(call.kernel("convolution dgrad", "product", (gy, weight), gx, flops))
    if gweight is not None:
        found.append(call.kernel("convolution wgrad", "product", (gy, x), gweight, flops))
    if gbias is not None:
        found.append(call.kernel("bias gradient", "reduction", gy, gbias))
    return found


def _batch_norm(call: Call) -> list[Kernel]:
    x, gamma, beta, *running = call.args[:5]
    y, mean, rstd = call.out
    if not call.args[5]:
        return [call.kernel("batch norm, evaluation", "pointwise", (x, gamma, beta, running), y)]
    return [call.kernel("batch norm: statistics", "reduction", x, (mean, rstd)),
            call.kernel("batch norm: running statistics", "pointwise", (mean, rstd, running), (rstd, running)),
            call.kernel("batch norm: normalise", "pointwise", (x, mean, rstd, gamma, beta), y)]


def _batch_norm_backward(call: Call) -> list[Kernel]:
    gy, x, gamma, _, _, mean, rstd = call.args[:7]
    gx, ggamma, gbeta = call.out
    found = [call.kernel("batch norm backward: sums", "reduction", (gy, x, mean, rstd), (ggamma, gbeta))]
    if gx is not None:
        found.append(call.kernel("batch norm backward: input", "pointwise",
                                 (gy, x, gamma, mean, rstd, ggamma, gbeta), gx))
    return found


def _logistic(call: Call) -> list[Kernel]:
    logits, target = call.args[:2]
    like = torch.empty_like(logits)
    steps = [("1 - target", target, like), ("times logit", (like, logits), like), ("log sigmoid", logits, like),
             ("subtract", like, like)]
    return [*(call.kernel(f"logistic loss: {name}", "pointwise", reads, writes) for name, reads, writes in steps),
            call.kernel("logistic loss: mean", "reduction", like, call.out)]


def _fill_and_copy(call: Call) -> list[Kernel]:
    return [call.kernel("fill", "pointwise", (), call.out),
            call.kernel(call.name, "pointwise", call.args[0], call.args[0])]


def _foreach(call: Call) -> list[Kernel]:
    """All tensors are touched by one kernel or a few, each of which is told a share of them."""
    whole, lists = _one(call)[0], [value for value, _ in call.given() if isinstance(value, (list, tuple))]
    lists = [value for value in lists if value and isinstance(value[0], Tensor) and value[0].dim() >= 0]
    made = [call.out] if isinstance(call.out, (list, tuple)) and call.out is not call.args[0] else []
    sizes = [tensor.numel() for tensor in lists[0]]
    parts = multi_tensor_launches(sizes, min(len(lists) + len(made), 5) if "fused" not in call.name else 4)
    found = [whole._replace(kind="other", what=f"{len(sizes)} tensors", owner="", size=sum(sizes),
                            reads=_share(whole.reads, parts), writes=_share(whole.writes, parts))] * parts
    if call.name == "_foreach_norm":
        norms = call.kernel("_foreach_norm: of blocks", "other", (), call.out)._replace(what=found[0].what, owner="")
        return [norms._replace(name="_foreach_norm: fill"), *found, norms._replace(name="_foreach_norm: of tensors")]
    return found


def _share(whole: tuple[Access, ...], parts: int) -> tuple[Access, ...]:
    return tuple(access._replace(bytes=access.bytes // parts) for access in whole)


def multi_tensor_launches(sizes: list[int], lists: int) -> int:
    """How many launches PyTorch's multi_tensor_apply makes for tensors of so many elements, in so many lists."""
    launches = tensors = blocks = 0
    for size in sizes:
        tensors, chunks = tensors + 1, -(-size // _CHUNK)
        for chunk in range(chunks):
            blocks, last = blocks + 1, chunk == chunks - 1
            if blocks == _BLOCKS or (tensors == _TENSORS[lists] and last):
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


_SEVERAL: dict[str, Callable[[Call], list[Kernel]]] = {
    "convolution": _convolution, "convolution_backward": _convolution_backward, "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward, "binary_cross_entropy_with_logits": _logistic,
    "select_backward": _fill_and_copy, "slice_backward": _fill_and_copy, "_foreach_norm": _foreach}
