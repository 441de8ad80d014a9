"""Comparison of replays of a step's recorded operations with eager steps, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from proofs.simulated.tape import Tape, record, same_bits, storage_key

Step = Any  # a `fastgan.train.capture.Capturable` that is called with tensors


def assert_replays_equal_eager(make_step: Callable[[], Step], inputs: Sequence[tuple[Tensor, ...]], count: int = 10,
                               seed: int = 0) -> None:
    """Check that `count` eager calls and as many replays from the same state are bit for bit equal after each call.

    Args:
        make_step: returns a step, new or in the middle of a run, in the same state in each call.
        inputs: of each call; they are repeated if there are fewer than `count`.

    Raises `AssertionError` that names the call and the tensor, for outputs, state and random state, or if a call
    changes memory that is not in `state`. Does not catch `CaptureRefused` and `StaleMemory`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the thousands of small operations would wait for a second thread
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
    """The visible tensors after each call."""
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
    """Copies, because references would keep memory alive that the step frees."""
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
