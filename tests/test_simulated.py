"""The simulator of CUDA graphs: a correct step replays bit for bit, and every kind of frozen decision is detected."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from proofs.simulated import CaptureRefused, StaleMemory, assert_replays_equal_eager, record, same_bits
from tests.small_step import SmallStep, batches, make_adam

pytestmark = pytest.mark.usefixtures("one_thread")


def resumed() -> SmallStep:
    """A step in the middle of a run: after three calls, and a state that is loaded in place."""
    old, new = SmallStep(), SmallStep()
    torch.manual_seed(4)
    for given in batches(3):
        old(*given)
    for mine, theirs in zip(new.state(), old.state(), strict=True):
        mine.copy_(theirs)
    new.steps = old.steps
    return new


@pytest.mark.parametrize("make_step", [SmallStep, resumed], ids=["fresh", "resumed"])
def test_sound_step_replays_as_it_runs(make_step):
    assert_replays_equal_eager(make_step, batches())


def test_learning_rate_on_the_device_may_change_between_calls():
    class Scheduled(SmallStep):
        def advance(self, phase: str, *inputs: Tensor) -> None:
            super().advance(phase, *inputs)
            self.adam_d.param_groups[0]["lr"].mul_(0.5)

    assert_replays_equal_eager(Scheduled, batches())


class FloatLearningRate(SmallStep):
    def __init__(self) -> None:
        super().__init__()
        self.adam_d.param_groups[0]["lr"] = 1e-3

    def advance(self, phase: str, *inputs: Tensor) -> None:
        super().advance(phase, *inputs)
        self.adam_d.param_groups[0]["lr"] *= 0.5


class StepsInArithmetic(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) / (1 + self.steps)


class PythonNoise(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * random.random()


class NumpyNumber(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) + np.random.rand()


class NumpyNoise(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return torch.from_numpy(np.random.randn(len(real), 3, 1, 1).astype("float32"))


class BytesOfTheHost(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return torch.frombuffer(bytearray(12 * len(real)), dtype=torch.float32).view(-1, 3, 1, 1) * 1


class Reseeded(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        torch.manual_seed(7)
        return super().draw(real)


class OwnGenerator(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return torch.randn(len(real), 3, 1, 1, generator=torch.Generator().manual_seed(7))


class FreshData(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * torch.tensor(0.5)


class FreedBuffer(SmallStep):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3, 1, 1)

    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * self.scale

    def advance(self, phase: str, *inputs: Tensor) -> None:
        super().advance(phase, *inputs)
        self.scale = self.scale.clone()


class ResizedBuffer(FreedBuffer):
    def advance(self, phase: str, *inputs: Tensor) -> None:
        SmallStep.advance(self, phase, *inputs)
        self.scale.untyped_storage().resize_(4096 * self.steps)


class ReplacedState(SmallStep):
    def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
        outputs = super().run(phase, *inputs)
        self.count = self.count + 0
        return outputs


class ReplacedParameter(SmallStep):
    def advance(self, phase: str, *inputs: Tensor) -> None:
        super().advance(phase, *inputs)
        self.discriminator[0].weight.data = self.discriminator[0].weight.data.clone()


class LoadedOptimizer(SmallStep):
    def advance(self, phase: str, *inputs: Tensor) -> None:
        super().advance(phase, *inputs)
        if self.steps == 4:
            self.adam_d.load_state_dict(copy.deepcopy(self.adam_d.state_dict()))


class KeptOldState(LoadedOptimizer):
    """The old tensors are kept alive, so that their memory is not reported as freed."""

    def __init__(self) -> None:
        super().__init__()
        self.old = list(self.adam_d.state.values())


class DrawsOnceMore(SmallStep):
    """In the last call, so that only the random state differs."""

    def draw(self, real: Tensor) -> Tensor:
        noise = super().draw(real)
        if self.steps == 9:
            super().draw(real)
        return noise


class UnnamedState(SmallStep):
    def state(self) -> list[Tensor]:
        return super().state()[1:]


class OnePhase(SmallStep):
    """Two kinds of calls with the same phase."""

    def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
        return super().run("D and G" if self.steps > 3 else "D", *inputs)

    def phase(self) -> str:
        return "always"


@pytest.mark.parametrize(("mistake", "error", "said"), [
    (FloatLearningRate, AssertionError, r"call 3: state"),
    (StepsInArithmetic, AssertionError, r"call 3: "),
    (PythonNoise, AssertionError, r"call 1: "),
    (NumpyNumber, AssertionError, r"call 1: "),
    (NumpyNoise, CaptureRefused, r"lift_fresh.*of the host"),
    (BytesOfTheHost, StaleMemory, r"60 bytes .* freed"),
    (Reseeded, AssertionError, r"call 1: "),
    (OwnGenerator, CaptureRefused, r"generator"),
    (FreshData, CaptureRefused, r"lift_fresh"),
    (FreedBuffer, StaleMemory, r"12 bytes .* freed"),
    (ResizedBuffer, StaleMemory, r"12 bytes .* moved or resized"),
    (ReplacedState, AssertionError, r"replaces state\[1\]"),
    (ReplacedParameter, StaleMemory, r"freed"),
    (LoadedOptimizer, StaleMemory, r"freed"),
    (KeptOldState, AssertionError, r"call 5: "),
    (DrawsOnceMore, AssertionError, r"call 10: random state"),
    (UnnamedState, AssertionError, r"1 storages that state\(\) does not name"),
    (OnePhase, AssertionError, r"call 5: .*output loss_g"),
], ids=lambda value: value.__name__ if isinstance(value, type) and issubclass(value, SmallStep) else None)
def test_mistake_is_found(mistake, error, said):
    with pytest.raises(error, match=said):
        assert_replays_equal_eager(mistake, batches())


HOST_WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "if": lambda x: 1 if (x > 0).all() else 2,
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "pin-memory": lambda x: x.pin_memory(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "masked-select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique-consecutive": lambda x: x.unique_consecutive(),
    "boolean-index": lambda x: x[x > 0],
    "boolean-index-put": lambda x: torch.index_put(x, (x > 0,), x[0, 0]),
    "repeat-interleave": lambda x: torch.repeat_interleave(x, torch.ones(3, dtype=torch.long), 0),
    "bincount": lambda x: torch.bincount(x.long().flatten().abs()),
    "tensor": lambda x: torch.tensor([1.0]),
    "new-tensor": lambda x: x.new_tensor([1.0]),
    "as-tensor": lambda x: torch.as_tensor([1.0]),
    "list-index": lambda x: x[[0, 1]],
    "resize": lambda x: x.clone().resize_(1),
}


@pytest.mark.parametrize("wait", HOST_WAITS.values(), ids=HOST_WAITS.keys())
def test_waiting_for_the_device_is_refused(wait):
    x = torch.randn(3, 3)
    before = x.clone()
    with pytest.raises(CaptureRefused):
        record(lambda: wait(x))
    assert same_bits(x, before)


def test_what_graphs_can_hold_is_not_refused():
    x, index, counts = torch.randn(4, 3), torch.arange(3), torch.ones(4, dtype=torch.long)
    tape = record(lambda: [torch.where(x > 0, x, 0.0), x[index], x.index_put((index,), x[:3]), x.masked_fill(x > 0, 2),
                           torch.repeat_interleave(x, counts, 0, output_size=4), torch.full((2,), 3.0), x.half()])
    assert same_bits(tape.replay()[0], x.relu())


def test_recording_computes_nothing():
    """Memory and random state are unchanged, and running statistics, although their operator declares no mutation."""
    mean, variance, x = torch.zeros(4), torch.ones(4), torch.randn(5, 4)
    before = [t.clone() for t in (mean, variance, x, torch.get_rng_state())]
    tape = record(lambda: batch_norm(x.mul_(2) + torch.randn(5, 4), mean, variance, training=True))
    assert all(same_bits(t, old) for t, old in zip((mean, variance, x, torch.get_rng_state()), before, strict=True))
    assert tape.outputs.isnan().all()
    assert len(tape.changed) == 3
    tape.replay()
    assert not same_bits(mean, before[0]) and not tape.outputs.isnan().any()
    assert not same_bits(torch.get_rng_state(), before[3])


def test_recording_that_fails_computes_nothing():
    x, random_state = torch.ones(3), torch.get_rng_state()
    with pytest.raises(CaptureRefused):
        record(lambda: (x.uniform_(), x.sum().item()))
    assert same_bits(x, torch.ones(3)) and same_bits(torch.get_rng_state(), random_state)


def test_replays_go_on_from_each_other_through_views_and_lists():
    def call(x: Tensor, y: Tensor) -> Tensor:
        x.view(2, 2).t()[0].add_(y[1])
        torch._foreach_add_([x, y], [y.sum(), x[2:]])
        return x * y.sum()

    eager, replayed = ([torch.arange(4.0), torch.ones(2)] for _ in range(2))
    tape = record(lambda: call(*replayed))
    for _ in range(3):
        assert same_bits(call(*eager), tape.replay())
        assert all(map(same_bits, eager, replayed))


def test_memory_that_nothing_writes_is_poisoned():
    def call() -> tuple[Tensor, Tensor]:
        memory = torch.empty(3)
        return memory * 1, memory.fill_(1)

    tape = record(call)
    for _ in range(2):
        found, filled = tape.replay()
        assert found.isnan().all() and filled.tolist() == [1, 1, 1]


def test_tape_keeps_no_memory_alive():
    holder = [torch.ones(3)]
    tape, gone = record(lambda: holder[0] + 1), weakref.ref(holder[0])
    assert tape.replay().tolist() == [2, 2, 2]
    holder.clear()
    assert gone() is None
    with pytest.raises(StaleMemory, match="12 bytes that the tape uses were freed"):
        tape.replay()


def test_steps_that_start_apart_are_no_comparison():
    makes = iter([SmallStep(), SmallStep()])

    def make() -> SmallStep:
        step = next(makes)
        step.ring += torch.rand(())
        return step

    with pytest.raises(AssertionError, match="make_step twice"):
        assert_replays_equal_eager(make, batches())


def test_bits():
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1)) and not same_bits(torch.zeros(2), torch.zeros(2).double())


def test_small_step_trains():
    """Every tensor of its state changes; otherwise equal replays would prove little."""
    step = SmallStep()
    before = [t.clone() for t in step.state()]
    for given in batches(2):
        step(*given)
    assert not any(same_bits(t, old) for t, old in zip(step.state(), before, strict=True))
    assert make_adam(step.generator).param_groups[0]["capturable"]
