"""What the model knows of a kernel: its products, and the memory that it must read and write once."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["product", "pointwise", "reduction", "other"]


class Access(NamedTuple):
    """`bytes` of a storage, which keeps its number as long as it lives."""

    storage: int
    bytes: int


class Kernel(NamedTuple):
    """One launch.

    name: of the operator or kernel. what: shapes, in words. owner: the layer whose weight it was given, "" for none.
    flops: two for each multiplication and addition of a matrix product; other arithmetic is not counted.
    arithmetic: of those products, "bf16", "fp16", "tf32" or "fp32", the last on ordinary cores.
    bare: bytes of the two operands and the result of those products, without what is fused into the kernel.
    size: elements that it works on, which decides what may be fused with it.
    """

    name: str
    what: str
    owner: str
    kind: Kind
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    size: int = 0
    flops: int = 0
    arithmetic: str = ""
    bare: int = 0

    @property
    def bytes(self) -> int:
        return sum(access.bytes for access in (*self.reads, *self.writes))
