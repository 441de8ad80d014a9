"""What a compiler such as torch.compile would make of the eager step's kernels: a model of it, by a simple rule.

    products (convolutions), random numbers and the optimizer stay as they are
    between two of them, pointwise kernels and reductions of the same tensors become one, and so does what is
    computed from the result of a reduction alone; what needs that result for the whole tensor is a second one
    a fused kernel reads what came from outside once, and writes what somebody needs later

So batch normalisation and activation are two kernels forward (statistics, the rest) and two backward. No such compiler
was asked: it may do better (persistent reductions) or worse.
"""

from __future__ import annotations

from itertools import groupby

from fastgan.verify.cost.kernel import Access, Kernel

Place = tuple[int, Kernel]  # when in the step, and what
FUSED = ("pointwise", "reduction")


def fused(kernels: list[Kernel], kept: set[int]) -> list[Kernel]:
    """The kernels after fusion. kept: numbers of storages that outlive the step."""
    last_read = {access.storage: i for i, kernel in enumerate(kernels) for access in kernel.reads}
    found: list[Kernel] = []
    for together, run in groupby(enumerate(kernels), lambda one: one[1].kind in FUSED):
        if together:
            found += [_fused(members, last_read, kept) for members in _divided(list(run))]
        else:
            found += [kernel for _, kernel in run]
    return found


def _divided(run: list[Place]) -> list[list[Place]]:
    """The members of each fused kernel of a run."""
    members: list[list[Place]] = []
    made: dict[int, tuple[int, int]] = {}  # by storage: which of them wrote it last, and how large a reader may be
    for place in run:
        _, kernel = place
        after = [made[access.storage] for access in kernel.reads if access.storage in made]
        earliest = max((which + (kernel.size > most) for which, most in after), default=0)
        which = next((i for i in range(earliest, len(members)) if _goes_with(kernel, members[i])), len(members))
        members[which:which + 1] = [[*(members[which] if which < len(members) else []), place]]
        for access in kernel.writes:
            made[access.storage] = which, max(1, access.bytes // 4) if kernel.kind == "reduction" else kernel.size
    return members


def _goes_with(kernel: Kernel, members: list[Place]) -> bool:
    """Whether it works on as many elements as they do, or on what they reduce, and on the same memory."""
    touched = {access.storage for _, one in members for access in (*one.reads, *one.writes)}
    reduced = {access.storage for _, one in members if one.kind == "reduction" for access in one.writes}
    reads = {access.storage for access in kernel.reads}
    return bool(reads & reduced) or (kernel.size == members[0][1].size and bool(
        touched & (reads | {access.storage for access in kernel.writes})))


def _fused(members: list[Place], last_read: dict[int, int], kept: set[int]) -> Kernel:
    own = {i for i, _ in members}
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for _, kernel in members:
        for access in kernel.reads:
            if access.storage not in writes:
                reads[access.storage] = max(access.bytes, reads.get(access.storage, 0))
        for access in kernel.writes:
            writes[access.storage] = max(access.bytes, writes.get(access.storage, 0))
    needed = [Access(storage, size) for storage, size in writes.items()
              if storage in kept or (storage in last_read and last_read[storage] not in own)]
    largest = max((kernel for _, kernel in members), key=lambda kernel: kernel.size)
    name = largest.name if len(members) == 1 else f"fused: {len(members)} with {largest.name}"
    return largest._replace(name=name, kind="other", writes=tuple(needed),
                            reads=tuple(Access(storage, size) for storage, size in reads.items()))
