"""GraphedStep has the results of the step, calls CUDA in the right order, and reports why it cannot capture.

On a replacement for torch.cuda whose graphs are tapes (proofs/simulated).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan.config import ModelConfig, TrainConfig
from fastgan.errors import FastganError
from fastgan.train import graph
from fastgan.train.graph import GraphedStep
from fastgan.train.snapshot import Snapshot, distance
from fastgan.train.step import GANStep
from proofs.simulated import PREVIOUS_ERROR, SimulatedCuda, same_bits
from tests.small_step import SmallStep, batches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    simulated = SimulatedCuda()
    monkeypatch.setattr(graph, "cuda", simulated)
    return simulated


class ToldStep(SmallStep):
    """Its runs and its bookkeeping are added to the events of the device."""

    events: list[str]

    def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
        self.events.append(f"run {phase}")
        return super().run(phase, *inputs)

    def advance(self, phase: str, *inputs: Tensor) -> None:
        self.events.append(f"advance {phase}")
        super().advance(phase, *inputs)


def told(cuda: SimulatedCuda) -> ToldStep:
    step = ToldStep()
    step.events = cuda.events
    return step


def seed() -> None:
    for function in (torch.manual_seed, random.seed, np.random.seed):
        function(3)


def everything(step: SmallStep, outputs: dict[str, Tensor]) -> list[Tensor]:
    """Copies of all results of a call."""
    left = (*step.state(), *outputs.values(), torch.tensor(step.steps), torch.get_rng_state())
    return [t.detach().clone() for t in left]


def assert_same_training(make_step: Callable[[], SmallStep], calls: int = 10,
                         between: Callable[[SmallStep, int], None] = lambda step, number: None) -> GraphedStep:
    """Graphed and plain calls have the same results after each call, including random states of Python and NumPy."""
    plain, graphed = make_step(), GraphedStep(make_step())
    seed()
    expected = []
    for number, given in enumerate(batches(calls)):
        between(plain, number)
        expected.append((everything(plain, plain(*given)), random.getstate(), np.random.get_state()[1].tolist()))
    seed()
    for number, given in enumerate(batches(calls)):
        between(graphed.step, number)
        got = everything(graphed.step, graphed(*given))
        tensors, python, numpy = expected[number]
        assert len(got) == len(tensors), f"call {number}"
        assert all(map(same_bits, got, tensors)), f"call {number}"
        assert random.getstate() == python and np.random.get_state()[1].tolist() == numpy, f"call {number}"
    return graphed


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fastgan"]


CAPTURE = """
get random state
stream 1 waits for main
run {phase}
run {phase}
waiting is an error
run {phase}
waiting is allowed
main waits for stream 1
set random state
{pool}capture graph {n} in pool 1 on stream 1, thread_local
run {phase}
captured graph {n}
set random state
run {phase}
run {phase}
run {phase}
set random state
replay graph {n}
replay graph {n}
replay graph {n}
set random state
run {phase}
run {phase}
run {phase}
set random state
"""


def capture(phase: str, n: int) -> list[str]:
    """Warm-up, restore, capture, check, restore."""
    return CAPTURE.format(phase=phase, n=n, pool="make pool 1\n" if n == 1 else "").split("\n")[1:-1]


def test_order_of_events(cuda):
    graphed = GraphedStep(told(cuda))
    for given in batches(4):
        graphed(*given)
    graphed.close()
    graphed.close()
    assert cuda.events == [
        *capture("D", 1), "replay graph 1", "advance D",
        *capture("D and G", 2), "replay graph 2", "advance D and G",
        "replay graph 1", "advance D",
        "replay graph 2", "advance D and G",
        "synchronize", "reset graph 1", "reset graph 2"]


def test_ten_calls_are_ten_steps(cuda, caplog):
    graphed = assert_same_training(SmallStep)
    assert graphed.failure == "" and graphed.description == "one CUDA graph a step"
    assert cuda.events.count("replay graph 1") == cuda.events.count("replay graph 2") == 5 + 3
    assert logged(caplog) == []


def test_resumed_in_place_in_the_middle(cuda):
    saved = [t.clone() for t in SmallStep().state()]

    def load(step: SmallStep, number: int) -> None:
        if number == 5:
            for tensor, old in zip(step.state(), saved, strict=True):
                tensor.copy_(old)

    assert_same_training(SmallStep, between=load)
    assert cuda._made["graph"] == 2


def test_replaced_state_is_captured_again(cuda, caplog):
    def load(step: SmallStep, number: int) -> None:
        if number == 5:
            step.adam_d.load_state_dict(copy.deepcopy(step.adam_d.state_dict()))
            step.generator[0].weight.data = step.generator[0].weight.data.clone()

    assert assert_same_training(SmallStep, between=load).failure == ""
    assert cuda._made["graph"] == 4
    assert {"reset graph 1", "reset graph 2", "make pool 2"} <= set(cuda.events)
    assert logged(caplog) == ["the step's state has moved in memory; capturing its CUDA graphs again"]


def test_state_that_moves_all_the_time_is_trained_eagerly(cuda, caplog):
    def move(step: SmallStep, number: int) -> None:
        step.count = step.count.clone()

    graphed = assert_same_training(SmallStep, between=move)
    assert graphed.description == "eager: the step's state moves in memory from call to call"
    assert cuda._made["graph"] == 2 and len(logged(caplog)) == 2


class Frozen(GANStep):
    """A step of networks with an unused parameter."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 1, 3, 1, 1))
        discriminator = nn.Sequential(nn.Conv2d(1, 2, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(2, 1, 3), nn.Flatten(0))
        generator.register_parameter("unused", nn.Parameter(torch.ones(2)))
        super().__init__(generator, discriminator, ModelConfig(nz=3), TrainConfig(d_steps=2), precision="fp32")


def test_frozen_parameters_are_captured_again(cuda, caplog):
    """Also if they are trained again later: a graph trains the parameters of the time of its capture."""
    def freeze(step: Frozen, number: int) -> None:
        step.discriminator[0].requires_grad_(4 <= number < 8 or number >= 12)

    assert assert_same_training(Frozen, calls=16, between=freeze).failure == ""
    assert cuda._made["graph"] == 2 * 4
    assert logged(caplog) == 3 * ["the step's state has moved in memory; capturing its CUDA graphs again"]


class Waits(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * (2 if real[0, 0, 0, 0].item() > 9 else 1)


class WaitsInCapture(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * (real.sum().item() if graph.cuda.is_current_stream_capturing() else 1)


class Fails(SmallStep):
    """Fails in a capture, like an optimizer that is not capturable."""

    def update(self, adam: torch.optim.Adam, loss: Tensor) -> None:
        if graph.cuda.is_current_stream_capturing():
            raise RuntimeError("no step of Adam in a capture: capturable is False")
        super().update(adam, loss)


class HostNoise(SmallStep):
    def draw(self, real: Tensor) -> Tensor:
        return super().draw(real) * (random.random() + float(np.random.rand()))


class Replaces(SmallStep):
    def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
        outputs = super().run(phase, *inputs)
        self.count = self.count + 0
        return outputs


class Elsewhere(SmallStep):
    """One tensor is on another device."""

    def state(self) -> list[Tensor]:
        return [*super().state(), torch.empty(1, device="meta")]


@pytest.mark.parametrize(("make_step", "reason"), [
    (Waits, "aten._local_scalar_dense.default: the host waits for the device, or memory is replaced (CaptureRefused "
            "at tape.py:"),
    (WaitsInCapture, "aten._local_scalar_dense.default: the host waits"),
    (Fails, "no step of Adam in a capture: capturable is False (RuntimeError at test_graph.py:"),
    (HostNoise, "3 replays differ from "),
    (Replaces, "the step replaces tensors of its state; expected a step that changes them in place"),
], ids=["item", "item-in-capture", "error-of-the-step", "noise-of-the-host", "replaced-state"])
def test_what_cannot_be_captured_is_trained_eagerly(cuda, caplog, make_step, reason):
    graphed = assert_same_training(make_step)
    assert graphed.failure.startswith(reason)
    assert graphed.description == f"eager: {graphed.failure}"
    assert logged(caplog) == [f"training continues without CUDA graphs: {graphed.failure}"]
    assert graphed._captured == {} and graphed.inputs == () and cuda.current_stream().name == "main"


def test_graph_of_replaced_state_is_never_replayed(cuda):
    """It would write to memory that may have been reused."""
    GraphedStep(Replaces())(*batches(1)[0])
    assert cuda.events[-4:] == ["captured graph 1", "synchronize", "reset graph 1", "set random state"]


def test_end_of_capture_that_fails(cuda, caplog, monkeypatch):
    cuda.refusal = PREVIOUS_ERROR
    monkeypatch.setattr(Snapshot, "renew_generator", lambda self: cuda.events.append("renew generator"))
    step = told(cuda)
    graphed = GraphedStep(step)
    before, state = [t.clone() for t in step.state()], torch.get_rng_state()
    assert not graphed._try_to_capture(step.phase(), batches(1)[0])
    assert all(map(same_bits, step.state(), before)) and same_bits(torch.get_rng_state(), state)
    assert cuda.current_stream().name == "main"
    assert cuda.events == [*capture("D", 1)[:12], "reset graph 1", "renew generator", "set random state"]
    assert graphed.failure.startswith(cuda.refusal) and len(logged(caplog)) == 1


def test_second_phase_that_fails_ends_the_first(cuda):
    class SecondFails(SmallStep):
        def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
            if phase == "D and G":
                inputs[0].sum().item()
            return super().run(phase, *inputs)

    assert assert_same_training(SecondFails).failure
    assert cuda.events.count("replay graph 1") == 1 + 3 and cuda.events[-1] == "set random state"
    assert "reset graph 1" in cuda.events


def test_replay_that_disagrees(cuda, caplog):
    """One tensor differs by a thousandth of its change in three steps."""
    steps: list[SmallStep] = []

    def make() -> SmallStep:
        steps.append(SmallStep())
        return steps[-1]

    cuda.after_replay = lambda: steps[-1].ring.mul_(1.001)
    graphed = assert_same_training(make)
    assert graphed.failure.startswith("3 replays differ from ")
    assert graphed.failure.endswith("but eager steps from each other by 0.0e+00")
    assert len(logged(caplog)) == 1


def test_replay_that_miscounts(cuda):
    step = SmallStep()
    cuda.after_replay = lambda: step.count.add_(1)
    graphed = GraphedStep(step)
    graphed(*batches(1)[0])
    assert graphed.failure.startswith("3 replays differ from 3 eager steps by inf of their change") and step.count == 1


@pytest.mark.parametrize(("factor", "agrees"), [(1, True), (100, False)], ids=["as-eager", "a-hundred-times"])
def test_noise_of_the_kernels_is_no_disagreement(cuda, factor, agrees):
    """Replays may differ from eager runs as much as these differ from each other."""
    shaken = torch.Generator().manual_seed(0)

    class Shaken(SmallStep):
        def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
            outputs = super().run(phase, *inputs)
            self.shake()
            return outputs

        def shake(self, factor: int = 1) -> None:
            if not torch.utils._python_dispatch._get_current_dispatch_mode():
                self.ring.add_(torch.randn(self.ring.shape, generator=shaken), alpha=1e-6 * factor)

    step = Shaken()
    cuda.after_replay = lambda: step.shake(factor)
    graphed = GraphedStep(step)
    graphed(*batches(1)[0])
    assert (graphed.failure == "") == agrees, graphed.failure


def test_counters_that_differ_are_never_noise(cuda):
    """They fail the check even if those of eager runs differ from each other."""
    drawn = iter(range(100))

    class Unsettled(SmallStep):
        def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
            outputs = super().run(phase, *inputs)
            self.count += next(drawn)
            return outputs

    graphed = GraphedStep(Unsettled())
    graphed(*batches(1)[0])
    assert graphed.failure.startswith("3 replays differ from 3 eager steps by inf of their change")
    assert graphed.failure.endswith("but eager steps from each other by inf")


@pytest.mark.parametrize(("given", "words"), [
    ((torch.zeros(3, 1, 8, 8),), "got (3, 1, 8, 8) float32 on cpu"),
    ((torch.zeros(5, 1, 8, 8, dtype=torch.float64),), "got (5, 1, 8, 8) float64 on cpu"),
    ((torch.zeros(5, 1, 8, 8, device="meta"),), "got (5, 1, 8, 8) float32 on meta"),
    ((torch.zeros(5, 1, 8, 8), torch.zeros(5)), "got (5, 1, 8, 8) float32 on cpu, (5,) float32 on cpu"),
    ((), "got nothing"),
], ids=["shape", "dtype", "device", "one-more", "none"])
@pytest.mark.parametrize("calls", [1, 2], ids=["new-phase", "captured-phase"])
def test_inputs_of_another_kind(cuda, given, words, calls):
    graphed = GraphedStep(SmallStep())
    for batch in batches(calls):
        graphed(*batch)
    before = [t.clone() for t in graphed.step.state()]
    with pytest.raises(FastganError) as raised:
        graphed(*given)
    assert str(raised.value) == (f"this step was captured for (5, 1, 8, 8) float32 on cpu, {words}; expected the same "
                                 "shapes, or a call of the step itself for a short batch")
    assert all(map(same_bits, graphed.step.state(), before))
    graphed(*batches(1)[0])
    assert graphed.step.steps == calls + 1


def test_short_batch_through_the_step_itself(cuda):
    plain, graphed = SmallStep(), GraphedStep(SmallStep())
    for step in (plain, graphed):
        seed()
        for number, (real,) in enumerate(batches(6)):
            (step if number != 3 else plain if step is plain else graphed.step)(real if number != 3 else real[:3])
    assert all(map(same_bits, plain.state(), graphed.step.state())) and graphed.failure == ""


def test_static_inputs_are_not_copied(cuda, monkeypatch):
    graphed, (first, second) = GraphedStep(SmallStep(d_steps=1)), batches(2)
    graphed(*first)
    copied: list[bool] = []
    copy_ = Tensor.copy_

    def counted(self: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
        copied.append(non_blocking)
        return copy_(self, other, non_blocking)

    monkeypatch.setattr(Tensor, "copy_", counted)
    monkeypatch.setattr(cuda, "after_replay", lambda: copied.append("replayed"))
    monkeypatch.setattr(type(graphed._captured["D and G"].graph), "replay", lambda self: None)
    graphed(*second)
    assert copied == [True] and same_bits(graphed.inputs[0], second[0])
    graphed(*graphed.inputs)
    assert copied == [True]


def test_inputs_filled_in_place_are_used(cuda):
    plain, graphed = SmallStep(), GraphedStep(SmallStep())
    for number, given in enumerate(batches(3)):
        torch.manual_seed(number)
        expected = plain(*given)
        torch.manual_seed(number)
        if number:
            graphed.inputs[0].copy_(given[0])
        assert same_bits(graphed(*(graphed.inputs or given))["loss_d"], expected["loss_d"])


def test_callers_tensors_stay_the_callers(cuda):
    graphed, given = GraphedStep(SmallStep()), batches(3)
    for batch in given:
        graphed(*batch)
    assert all(same_bits(mine[0], theirs[0]) for mine, theirs in zip(given, batches(3), strict=True))
    assert graphed.inputs[0].data_ptr() not in {x.data_ptr() for (x,) in given}


def test_outputs_are_static(cuda):
    graphed = GraphedStep(SmallStep())
    first, _, third = (graphed(*given) for given in batches(3))
    assert first["loss_d"].data_ptr() == third["loss_d"].data_ptr()
    first["of the caller"] = first["loss_d"]
    assert graphed._captured["D"].outputs.keys() == {"loss_d"}


def test_error_of_a_replay(cuda, caplog):
    graphed, calls = GraphedStep(SmallStep()), batches(6)
    for given in calls[:4]:
        graphed(*given)
    cuda.broken = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
    expected = ("the device failed during a step (CUDA error: an illegal memory access was encountered) and its state "
                "cannot be trusted; resume from the last checkpoint")
    for given in calls[4:]:  # the second is rejected without a query of the device
        with pytest.raises(FastganError) as raised:
            graphed(*given)
        assert str(raised.value) == expected
    assert graphed.step.steps == 4 and cuda.events[-1] == "replay graph 1"
    graphed.close()
    with pytest.raises(FastganError, match="cannot be trusted"):
        graphed(*calls[5])


def test_device_that_fails_while_state_is_put_back(cuda, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(cuda, "set_rng_state", fail)
    with pytest.raises(FastganError, match=r"unspecified launch failure.* cannot be trusted"):
        GraphedStep(SmallStep())(*batches(1)[0])


def test_closed(cuda):
    with GraphedStep(SmallStep()) as graphed:
        graphed(*batches(1)[0])
        loss = graphed(*batches(1)[0])["loss_d"]
    assert cuda.events[-3:] == ["synchronize", "reset graph 1", "reset graph 2"]
    assert loss.isfinite() and graphed._captured == {} and graphed._pool is None
    with pytest.raises(FastganError, match="was closed; expected a new one"):
        graphed(*batches(1)[0])
    assert graphed.step.steps == 2


def test_closed_after_a_failure(cuda):
    graphed = GraphedStep(Waits())
    graphed(*batches(1)[0])
    graphed.close()
    with pytest.raises(FastganError, match="was closed"):
        graphed(*batches(1)[0])


def test_close_of_a_failed_device(cuda, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    graphed = GraphedStep(SmallStep())
    graphed(*batches(1)[0])
    monkeypatch.setattr(cuda, "synchronize", fail)
    monkeypatch.setattr(type(graphed._captured["D"].graph), "reset", fail)
    graphed.close()
    assert graphed._captured == {}


@pytest.mark.parametrize(("make_step", "available", "reason"), [
    (Elsewhere, True, "a CUDA graph needs all tensors on one device, got cpu, meta"),
    (SmallStep, False, "a CUDA graph needs a CUDA device, and there is none"),
], ids=["two-devices", "no-cuda"])
def test_no_place_for_a_graph(cuda, monkeypatch, make_step, available, reason):
    monkeypatch.setattr(cuda, "is_available", lambda: available)
    graphed, plain = GraphedStep(make_step()), SmallStep()
    for step in (graphed, plain):
        seed()
        step(*batches(1)[0])
    assert graphed.failure == reason and cuda.events == []
    assert all(map(same_bits, SmallStep.state(graphed.step), plain.state()))


def test_torch_cuda_itself_without_a_device():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    graphed = GraphedStep(SmallStep())
    assert graphed(*batches(1)[0])["loss_d"].isfinite()
    assert graphed.failure == "a CUDA graph needs a CUDA device, and there is none"


def test_state_made_by_the_first_step_cannot_be_put_back(cuda):
    class Lazy(SmallStep):
        def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
            self.late = torch.zeros(1)
            return super().run(phase, *inputs)

        def state(self) -> list[Tensor]:
            return [*super().state(), *([self.late] if hasattr(self, "late") else [])]

    with pytest.raises(FastganError, match="changed the number of state tensors from 62 to 63"):
        GraphedStep(Lazy())(*batches(1)[0])


def test_torch_without_the_mode_that_finds_waits(cuda, monkeypatch):
    monkeypatch.delattr(SimulatedCuda, "set_sync_debug_mode")
    graphed = assert_same_training(Waits)
    assert graphed.failure.startswith("aten._local_scalar_dense") and "capture graph 1" in " ".join(cuda.events)


def test_collector_rests_during_capture(cuda):
    import gc

    seen = []

    class Watched(SmallStep):
        def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
            seen.append(gc.isenabled())
            return super().run(phase, *inputs)

    assert GraphedStep(Watched())(*batches(1)[0])["loss_d"].isfinite()
    assert seen == [True] * 3 + [False] + [True] * 6 and gc.isenabled()


def test_generator_left_in_a_capture_is_renewed(cuda, monkeypatch):
    class Left:
        def clone_state(self) -> str:
            return "clean"

        def graphsafe_set_state(self, state: str) -> None:
            renewed.append(state)

    renewed: list[str] = []
    cuda.default_generators = (Left(),)
    snapshot = Snapshot(SmallStep().state, torch.device("cpu"), cuda)
    snapshot.renew_generator()
    assert renewed == []

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch, "rand", fail)
    snapshot.renew_generator()
    assert renewed == ["clean"]


def test_snapshot_puts_back_every_random_state(cuda, monkeypatch):
    step = SmallStep()
    seed()
    snapshot = Snapshot(step.state, torch.device("cpu"), cuda)
    snapshot.cuda = SimulatedCuda()
    monkeypatch.setattr(snapshot.cuda, "set_rng_state", lambda state, device: None)  # it would set the host's, too
    draws = [(random.random(), np.random.rand(), torch.rand(()).item(), snapshot.restore())[:3] for _ in range(2)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(("left", "right", "expected"), [
    ([1.0, 1.0], [1.0, 1.0], 0.0),
    ([1.0, 1.0], [1.5, 0.5], 0.5),
    ([torch.nan, 1.0], [torch.nan, 1.0], 0.0),
    ([torch.inf, 1.0], [torch.inf, 1.0], 0.0),
    ([torch.nan, 1.0], [1.0, 1.0], torch.nan),  # fails every check
    ([0.0, 0.0], [0.0, 0.0], 0.0),
    ([0.0, 0.0], [0.0, 1e-30], 1.0),
], ids=["equal", "half", "nan-on-both-sides", "infinity-on-both-sides", "nan-on-one-side", "unmoved",
        "moved-on-one-side"])
def test_distance_of_one_tensor(left, right, expected):
    found = distance(*([torch.tensor(values, dtype=torch.float64)] for values in ([0.0, 0.0], left, right)))
    assert found == pytest.approx(expected, nan_ok=True)


def test_distance_of_many_tensors():
    start = [torch.zeros(2), torch.zeros(8), torch.zeros(0), torch.zeros(3, dtype=torch.int64)]
    left = [torch.ones(2), torch.full((8,), 4.0), *start[2:]]
    right = [torch.full((2,), 1.6), torch.full((8,), 0.8), *start[2:]]
    assert distance(start, left, right) == pytest.approx(((0.6**2 + 0.8**2 + 0) / 3) ** 0.5)
    assert distance(start, left, [*left[:3], torch.tensor([0, 0, 1])]) == torch.inf
    assert not distance(start, left, [torch.full((2,), torch.nan), *left[1:]]) < torch.inf
