"""The plan: which candidates are chosen or excluded, what is stored, and that training is not affected."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
import fastgan.nn as fnn
from fastgan import cli, ops
from fastgan.errors import FastganError, KernelError
from fastgan.ops import dispatch, engines, reference
from fastgan.ops.specs import RunningStats
from fastgan.ops.torch_ops import pack_bits, unpack_bits
from fastgan.ops.triton import tiles
from fastgan.ops.tuning import Choice, Plan, Problem, Trial, candidates, example, measure, stored, table, use
from fastgan.ops.tuning.problem import OF
from fastgan.trainer import Trainer, plan_setup
from tests.test_train import final_state, same

CPU, EAGER = torch.device("cpu"), Plan(engine="reference")
SECONDS = {"reference": 3.0, "triton": 1.0, "plan": 0.9}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[..., Any]]]:
    """The reference's passes replace Triton's, with times of `SECONDS`. A test may replace them."""
    functions = {name: dispatch.bound("reference", name) for name in OF}

    def calling(name: str) -> Callable[..., Any]:
        return lambda *arguments: functions[name](*arguments)

    dispatch.bound.cache_clear()
    monkeypatch.setitem(sys.modules, "fastgan.ops.triton.passes", SimpleNamespace(**{
        name: calling(name) for name in OF}))
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "triton"])
    monkeypatch.setattr(measure, "race", lambda calls, *_, **__: {name: [SECONDS[name]] for name in calls})
    yield functions
    dispatch.bound.cache_clear()


def problem(kind: str = "conv_forward", dtype: str = "float32", **more: Any) -> Problem:
    """A problem with odd sizes."""
    if kind == "gan_loss":
        return Problem(kind, "cpu", 1, dtype, False, (6,), groups=2, loss=more.get("loss", "logistic"))
    values: dict[str, Any] = {}
    if kind in candidates.CONVOLUTIONS:
        transposed = more.get("transposed", False)
        values = {"weight": (3, 5, 4, 4) if transposed else (5, 3, 4, 4), "weight_dtype": dtype,
                  "bias": kind not in ("dgrad", "wgrad"), "stride": (2, 2), "padding": (1, 1),
                  "output_padding": (0, 0)}
    if kind not in ("conv_forward", "dgrad", "wgrad"):
        values |= {"activation": "leaky_relu", "negative_slope": 0.2}
    if kind == "conv_forward" or kind.startswith("bn"):
        values["groups"] = 2
    if kind in ("bn_act_forward", "bn_backward_apply"):
        values["statistics"] = "given"
    return Problem(kind, "cpu", 1, dtype, False, (4, 3, 7, 6), **(values | more))


KINDS = tuple(OF)
PROBLEMS = {kind: problem(kind) for kind in KINDS} | {
    f"{kind} transposed": problem(kind, transposed=True) for kind in candidates.CONVOLUTIONS} | {
    f"{kind} {name}": problem(kind, activation=name, negative_slope=0.0)
    for kind in ("conv_act_forward", "bn_act_forward", "bn_backward_sums", "bn_backward_apply", "act_backward")
    for name in ("relu", "tanh")} | {
    f"{kind} in-place": problem(kind, inplace=True) for kind in ("conv_act_forward", "act_backward")} | {
    f"{kind} running": problem(kind, groups=1, statistics="running")
    for kind in ("bn_act_forward", "bn_backward_apply")} | {
    "without statistics": problem(groups=0, bias=False), "batch statistics": problem("bn_act_forward",
                                                                                     statistics="batch"),
    "any strides": problem(x_last=False, weight_last=False), "bn any strides": problem("bn_backward_apply",
                                                                                       x_last=False)}
each_problem = pytest.mark.parametrize("asked", PROBLEMS.values(), ids=list(PROBLEMS))


@each_problem
def test_an_example_is_of_its_problem(asked):
    assert OF[asked.kind](*example.draw(asked, CPU).arguments) == asked
    assert Problem.from_json(json.loads(json.dumps(asked._asdict()))) == asked


@each_problem
def test_fastest_of_those_that_are_right(asked, fake):
    choice = measure.examine(asked)
    assert choice.candidate == "triton"
    assert all(trial.seconds == SECONDS[name] and trial.used <= 1 for name, trial in choice.trials.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_right_in_16_bits(kind, dtype, fake):
    assert not any(trial.failure for trial in measure.examine(problem(kind, dtype)).trials.values())


@pytest.mark.skipif(bool(candidates.why_not("native", CPU)), reason="the native engine was not compiled")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_problem
def test_native_is_right(asked, dtype):
    trials = measure.examine(asked._replace(dtype=dtype, weight_dtype=dtype * bool(asked.weight)), 1).trials
    assert len(trials) > 1 and not any(trial.failure for trial in trials.values()), trials


@each_problem
def test_triton_is_right(asked, monkeypatch):
    """In its interpreter: the rule allows another order of summation."""
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "triton"])
    monkeypatch.setattr(measure, "race", lambda calls, *_, **__: {name: [SECONDS[name]] for name in calls})
    trials = measure.examine(asked).trials
    assert not any(trial.failure for trial in trials.values()), trials


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "place", "words"), [
    ("conv_forward", 0, "y"), ("conv_forward", 1, "statistics"), ("conv_act_forward", 0, "a"),
    ("bn_act_forward", 0, "a"), ("bn_act_forward", 1, "mean and rstd"), ("bn_backward_sums", 0, "sums"),
    ("bn_backward_apply", 0, "gradient of y"), ("act_backward", 0, "gradient of y"), ("dgrad", 0, "gradient of x"),
    ("wgrad", 0, "gradient of the weight"), ("gan_loss", 0, "loss"), ("gan_loss", 1, "score"),
    ("gan_loss", 2, "gradient")])
def test_who_is_wrong_is_not_taken(kind, place, words, dtype, fake):
    right = fake[kind]

    def wrong(*arguments: Any) -> Any:
        out = right(*arguments)
        if isinstance(out, Tensor):
            return out * 1.04
        return tuple(one * 1.04 if i == place else one for i, one in enumerate(out))

    fake[kind] = wrong
    choice = measure.examine(problem(kind, dtype))
    trial = choice.trials["triton"]
    assert choice.candidate == "reference" and trial.seconds is None
    assert trial.failure.startswith(f"wrong: {words} has ")


@pytest.mark.parametrize(("moved", "failure"), [(2**-7, None), (0.25, "wrong: mask has")])
def test_a_mask_may_differ_where_z_is_tiny(moved, failure, fake):
    right = fake["conv_act_forward"]

    def shifted(*arguments: Any) -> Any:
        a, mask = right(*arguments)
        return a, pack_bits(torch.where(unpack_bits(mask, a), a, 5 * a) > moved)

    fake["conv_act_forward"] = shifted
    found = measure.examine(problem("conv_act_forward")).trials["triton"].failure
    assert found.startswith(failure) if failure else not found


def test_who_forgets_the_running_statistics_is_not_taken(fake):
    fake["bn_act_forward"] = lambda *given: reference.bn_act_forward(*given[:4], RunningStats(), *given[5:])
    assert "running" in measure.examine(problem("bn_act_forward")).trials["triton"].failure


def raises(*_: Any) -> None:
    raise KernelError("convolve_kernel: out of resource: shared memory\nand more")


def warns(*arguments: Any) -> Any:
    warnings.warn("fastgan: falls back to the reference engine", stacklevel=1)
    return reference.conv_forward(*arguments)


@pytest.mark.parametrize(("function", "failure"), [
    (raises, "KernelError: convolve_kernel: out of resource: shared memory"),
    (warns, "UserWarning: fastgan: falls back to the reference engine"),
    (lambda *_: (torch.zeros(1), torch.zeros(1)), "wrong: the shape of y has inf x the allowed error"),
    (lambda *arguments: tuple(one * torch.nan for one in reference.conv_forward(*arguments)), "wrong: y has inf")],
    ids=["raises", "warns", "shape", "nan"])
def test_who_fails_is_named(function, failure, fake):
    fake["conv_forward"] = function
    choice = measure.examine(problem())
    assert choice.candidate == "reference" and choice.trials["triton"].failure.startswith(failure)
    assert any(failure in line for line in table.lines(Plan({problem(): choice})))


def test_lost_device_ends_the_measurement(fake, monkeypatch):
    """Candidates after the kernel that lost the device fail too, without being incorrect."""
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    fake["conv_forward"] = lost
    monkeypatch.setattr(dispatch, "cuda", SimpleNamespace(
        is_initialized=lambda: True, is_current_stream_capturing=lambda: False, synchronize=lost))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.examine(problem())


def test_error_of_a_signal_handler_ends_the_measurement(fake):
    """The error is not caused by the running candidate."""
    def handler(number: int, frame: Any) -> None:
        raise RuntimeError("a worker has died")

    fake["conv_forward"] = lambda *_: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(RuntimeError, match=r"^a worker has died$"):
            measure.examine(problem())
    finally:
        signal.signal(signal.SIGINT, before)


def test_race(monkeypatch):
    """In turns; one interruption of a short call is ignored, and a much slower candidate is not called again."""
    turns: list[str] = []

    def taking(name: str, *seconds: float) -> Callable[[], float]:
        left = list(seconds)

        def call() -> float:
            turns.append(name)
            return left.pop(0) if len(left) > 1 else left[0]
        return call

    monkeypatch.setattr(measure, "_lap", lambda call, repeats: call())
    took = measure.race({"slow": taking("slow", 0.006, 0.006, 0.005, 0.007, 0.9), "fast": taking("fast", 0.016, 0.004),
                         "hopeless": taking("hopeless", 0.2)}, CPU, 3)
    assert took == {"slow": [0.005, 0.007, 0.9], "fast": [0.004] * 3, "hopeless": [0.2]}
    assert measure.medians(took) == {"slow": 0.007, "fast": 0.004, "hopeless": 0.2}
    assert turns == ["slow", "fast", "hopeless", "slow", "fast", *["slow", "fast"] * 3]


def test_a_lap_is_wall_time():
    assert 0.01 <= measure._lap(lambda: time.sleep(0.01), 3) < 0.5


@pytest.mark.parametrize("slope", ["relu", "leaky_relu"])
def test_examples_stay_away_from_kinks_and_from_the_global_generator(slope):
    before = torch.get_rng_state()
    _, y, stats, gamma, beta, _ = example.draw(problem("bn_backward_sums", "bfloat16", activation=slope), CPU).arguments
    mean, rstd = (part.repeat_interleave(2, 0)[:, :, None, None] for part in stats)
    z = gamma[:, None, None] * (y.float() - mean) * rstd + beta[:, None, None]
    assert z.abs().min() > example.KINK / 4
    assert torch.equal(before, torch.get_rng_state())


def network(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return fnn.Chain(nn.Conv2d(3, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.ConvTranspose2d(5, 2, 4, 2, 1),
                     nn.Tanh(), **more)


def outcome(plan: Plan | None, net: nn.Module | None = None) -> list[Tensor]:
    """Output, gradients and buffers of a network with impl "auto", and those of the loss."""
    net = network() if net is None else net
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with use(plan):
        y = net(x)
        loss, _ = ops.gan_loss(y.mean((1, 2, 3)), (1.0, 0.0))
        return [y.detach(), *torch.autograd.grad(loss.sum(), [x, *net.parameters()]), *net.buffers()]


def test_record_finds_each_problem_once():
    found = measure.record(lambda: (outcome(ops.tuning.active()), outcome(ops.tuning.active())))
    assert [asked.kind for asked in found] == [
        "conv_forward", "bn_act_forward", "conv_act_forward", "gan_loss", "act_backward", "dgrad", "wgrad",
        "bn_backward_sums", "bn_backward_apply", "dgrad", "wgrad"]
    first, norm, second = found[:3]
    assert (first.x, first.weight, first.transposed) == ((4, 3, 8, 8), (5, 3, 4, 4), False)
    assert (norm.x, norm.activation, norm.statistics, norm.groups) == ((4, 5, 4, 4), "leaky_relu", "batch", 1)
    assert (second.x, second.weight, second.transposed) == ((4, 5, 4, 4), (5, 2, 4, 4), True)


@pytest.mark.parametrize("left", [None, *(kind for kind in KINDS)])
def test_each_pass_by_its_own_engine(left, fake):
    """One pass by the reference, all others by another engine."""
    asked: set[str] = set()
    for name, function in fake.items():
        fake[name] = lambda *given, name=name, function=function: (asked.add(name), function(*given))[1]
    problems = measure.record(lambda: outcome(ops.tuning.active()))
    plan = Plan({one: Choice("reference" if one.kind == left else "triton", {}) for one in problems})
    torch.testing.assert_close(outcome(plan), outcome(EAGER), rtol=1e-4, atol=1e-6)
    assert asked == set(KINDS) - {left}


def test_how_candidates_are_called():
    calls: list[Any] = []

    def run(engine: str, name: str, *arguments: Any, **options: Any) -> None:
        calls.append((engine, name, arguments, options))

    for candidate in ("native/gemm", "native", "triton", "reference"):
        candidates.called(run, candidate, "dgrad", 1, 2)
    assert calls == [("native", "dgrad", (1, 2), {"variant": "gemm"}), ("native", "dgrad", (1, 2), {}),
                     ("triton", "dgrad", (1, 2), {}), ("reference", "dgrad", (1, 2), {})]


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_convolutions_are_candidates_when_tuning(kind, fake, monkeypatch):
    taken: set[tiles.Tile] = set()
    function = fake[kind]

    def tiled(*arguments: Any) -> Any:
        taken.update(tiles.choose(name, 0, rows=8, columns=8, depth=8, size=4) for name in ("convolve", "wgrad"))
        return function(*arguments)

    fake[kind] = tiled
    best = "triton/128x64x32w4s3"
    for name in candidates.TILES:
        monkeypatch.setitem(SECONDS, f"triton/{name}", 0.5 if f"triton/{name}" == best else 5.0)
    assert set(measure.examine(problem(kind)).trials) == {"reference", "triton"}
    usual = set(taken)
    choice = measure.examine(problem(kind), tiles=True)
    if kind in candidates.CONVOLUTIONS:
        assert choice.candidate == best and len(taken - usual) == len(candidates.TILES)
        assert tiles.Tile(128, 64, 32, 4, 3) in taken
    else:
        assert choice.candidate == "triton" and taken == usual


def test_what_nobody_measured_is_computed_by_the_default(fake, monkeypatch):
    torch.testing.assert_close(outcome(Plan()), outcome(EAGER), rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(candidates, "why_not", lambda engine, device: "" if engine == "native" else "no")
    assert [candidates.default(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == ["native", "reference",
                                                                                           "reference"]


def test_a_kernel_that_fails_later_is_replaced(fake, monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", set())
    plan = Plan({one: Choice("triton", {}) for one in measure.record(lambda: outcome(ops.tuning.active()))})
    fake["conv_forward"] = raises
    with pytest.warns(UserWarning, match="(?s)out of resource.*falls back to the reference"):
        found = outcome(plan)
    torch.testing.assert_close(found, outcome(EAGER), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_auto_is_what_the_plan_in_use_says(engine, monkeypatch):
    x, logits = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.float64)
    monkeypatch.setattr(ops.tuning, "default", lambda device: engine)
    monkeypatch.setattr(engines, "why_not", lambda impl, device: "")
    assert engines.resolve("auto", x) == engine
    assert engines.resolve("auto", x.double()) == "reference" == engines.resolve("auto", x[:0])
    with use(Plan()):
        assert engines.resolve("auto", x) == "plan"
        assert engines.resolve("auto", x.double()) == "reference" == engines.resolve("auto", x[:0])
        assert engines.resolve_for("auto", "logits", logits, logits.dtype) == "reference"
        assert engines.resolve("reference", x) == "reference"
        with use(Plan(engine="reference")):
            assert engines.resolve("auto", x) == "reference"
        with use(Plan(engine="native")):
            assert engines.resolve("auto", x) == "native"
    assert ops.tuning.active() is None


def test_backward_after_the_plan_is_out_of_use():
    net, x = network(), torch.randn(4, 3, 8, 8)
    with use(Plan()):
        y = net(x)
    torch.autograd.grad(y.sum(), list(net.parameters()))


@pytest.mark.parametrize(("seconds", "engine"), [
    ({}, "plan"), ({"plan": 3.5, "triton": 4.0}, "reference"), ({"plan": 1.5}, "triton")],
    ids=["plan", "reference", "engine"])
def test_the_whole_step_decides(seconds, engine, fake, monkeypatch):
    """Between PyTorch's operators, each engine with its defaults, and the choices of each pass."""
    timed: list[set[str]] = []

    def race(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, list[float]]:
        timed.append(set(calls))
        return {name: [{**SECONDS, **seconds}[name]] for name in calls}

    monkeypatch.setattr(measure, "race", race)
    plan = measure.make(lambda: outcome(ops.tuning.active()))
    assert timed[-1] == {"reference", "triton", "plan"} == set(plan.step) and plan.engine == engine
    fastest = sorted({**SECONDS, **seconds}[name] for name in plan.step)[0]
    assert f"ms of a step: {engine} {1e3 * fastest:.1f}, " in table.verdict(plan)


@pytest.mark.parametrize(("seconds", "busy"), [([1.0, 1.1, 1.0, 1.1], False), ([1.0, 1.5, 1.0, 1.5], True)],
                         ids=["quiet", "busy"])
def test_a_busy_machine_is_named(seconds, busy, fake, monkeypatch):
    monkeypatch.setattr(measure, "race", lambda calls, *_, **__: dict.fromkeys(calls, seconds))
    told = table.verdict(measure.make(lambda: outcome(ops.tuning.active())))
    assert ("the machine was busy, steps varied by 1.5 x: `fastgan tune`" in told) == busy


@pytest.fixture
def gpu(fake, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Passes use a simulated GPU. problems: those that were measured; captured: whether a graph is being captured."""
    state = SimpleNamespace(problems=[], captured=False)
    examine = measure.examine

    def examined(asked: Problem, rounds: int) -> Choice:
        state.problems.append(asked)
        return examine(asked._replace(device="cpu"), rounds)

    monkeypatch.setattr(measure, "examine", examined)
    monkeypatch.setattr(measure, "_known", lambda device: {})
    monkeypatch.setattr(measure, "_warned", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.captured)
    monkeypatch.setattr(ops.tuning, "_FIRST_USE", ops.tuning.FirstUse())
    monkeypatch.setattr(ops.tuning, "_active", ops.tuning._FIRST_USE)
    monkeypatch.setattr(ops.tuning, "default", lambda device: "reference")
    return state


GPU = torch.device("cuda")


def test_a_gpu_measures_at_first_use(gpu):
    asked = problem("dgrad")._replace(device="cuda")
    assert ops.tuning.active() is None
    assert ops.tuning.engine_of(GPU) == "plan" and ops.tuning.engine_of(CPU) == "reference"
    assert [ops.tuning.current().choose(asked) for _ in range(2)] == ["triton", "triton"]
    assert gpu.problems == [asked]
    assert ops.tuning.current().choose(problem("dgrad")) == "reference" and gpu.problems == [asked]


def test_nothing_is_measured_at_first_use_while_a_graph_is_captured(gpu):
    asked, gpu.captured = problem()._replace(device="cuda"), True
    assert ops.tuning.current().choose(asked) == "reference" and not gpu.problems
    gpu.captured = False
    assert ops.tuning.current().choose(asked) == "triton" and gpu.problems == [asked]


def test_autotune_is_switched_off(gpu):
    asked = problem()._replace(device="cuda")
    for off in (lambda: fastgan.autotune(False), lambda: use(None)):
        assert ops.tuning.engine_of(GPU) == "plan"
        off()
        assert ops.tuning.engine_of(GPU) == "reference" == ops.tuning.current().choose(asked) and not gpu.problems
        fastgan.autotune(True)


def test_what_is_known_is_not_measured_at_first_use(gpu, monkeypatch):
    asked = problem()._replace(device="cuda")
    monkeypatch.setattr(measure, "_known", lambda device: {asked: Choice("native", {})})
    assert ops.tuning.current().choose(asked) == "native" and not gpu.problems


def test_who_fails_at_first_use_is_named_once(gpu, fake):
    fake["conv_forward"] = raises
    with pytest.warns(UserWarning, match="triton is excluded for conv_forward: KernelError: convolve_kernel"):
        assert ops.tuning.current().choose(problem()._replace(device="cuda")) == "reference"
    assert ops.tuning.current().choose(problem(groups=1)._replace(device="cuda")) == "reference"


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(AssertionError, match="before a graph is captured"):
        measure.make(lambda: None)


def kept(candidate: str = "reference") -> Plan:
    trials = {"reference": Trial(3.0, 0.5), "triton": Trial(1.0, 0.25), "native": Trial(failure="wrong: y")}
    return Plan({problem(kind): Choice(candidate, trials) for kind in KINDS}, step={"reference": 3.0, "plan": 1.0})


def test_measurements_are_kept():
    facts = stored.machine(CPU)
    assert {"device", "threads", "instructions", "fastgan", "torch", "triton", "engines"} == set(facts)
    assert stored.recall(facts) == (({}, {}), "") and stored.remember(facts, kept()) == ""
    known, trouble = stored.recall(facts)
    assert not trouble and known.choices == kept().choices
    assert known.steps == {stored.workload(kept().choices): kept().step}
    assert stored.recall({**facts, "torch": "another"}) == (({}, {}), "")
    one = problem("dgrad", "bfloat16")
    assert stored.remember(facts, Plan({one: Choice("reference", {})})) == ""
    assert set(stored.recall(facts)[0].choices) == {one, *kept().choices}


def test_what_is_known_is_not_measured_again(fake, monkeypatch):
    workload = lambda: outcome(ops.tuning.active())  # noqa: E731
    plan, facts = measure.make(workload), stored.machine(CPU)
    stored.remember(facts, plan)
    monkeypatch.setattr(measure, "examine", None)
    monkeypatch.setattr(measure, "race", None)
    again = measure.make(workload, stored.recall(facts)[0])
    assert (again.choices, again.step, again.engine) == (plan.choices, plan.step, "plan")


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", "3", "{}", '{"format": 4}', '{"format": 0, "machine": FACTS, "steps": {}, "problems": []}',
    '{"format": 4, "machine": {}, "steps": {}, "problems": []}',
    '{"format": 4, "machine": FACTS, "steps": {"a": {"plan": "x"}}, "problems": []}',
    '{"format": 4, "machine": FACTS, "steps": {}, "problems": [{"problem": {"size": 3}, "choice": "", "trials": {}}]}',
    '{"format": 4, "machine": FACTS, "steps": {}, "problems": [{"problem": {"kind": {}, "device": "", "threads": 1, '
    '"dtype": "", "tf32": false, "x": []}, "choice": "", "trials": {}}]}'], ids=range(12))
def test_a_broken_cache_is_no_obstacle(content):
    facts = stored.machine(CPU)
    path = stored.place(facts)
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("FACTS", json.dumps(facts)))
    known, trouble = stored.recall(facts)
    assert known == ({}, {}) and trouble.startswith(f"{path} cannot be used: ") and "\n" not in trouble
    assert stored.remember(facts, kept()) == "" and stored.recall(facts)[0].choices == kept().choices


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "file"))
    assert stored.remember(stored.machine(CPU), kept()).startswith("measurements are not stored: ")


@pytest.mark.parametrize(("names", "place"), [
    ({"XDG_CACHE_HOME": "/x"}, "/x/fastgan/plans"), ({}, "~/.cache/fastgan/plans"),
    ({"FASTGAN_CACHE": "/f"}, "/f/plans")])
def test_where_measurements_are_kept(names, place, monkeypatch):
    for name in ("FASTGAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert stored.folder() == Path(place).expanduser()


def test_export_and_read(tmp_path):
    facts = stored.machine(CPU)
    stored.export(tmp_path / "plan.json", kept(), facts)
    plan, made_on = stored.read(tmp_path / "plan.json", CPU)
    assert (plan.choices, plan.step, plan.engine, made_on) == (kept().choices, kept().step, "plan", facts)


@pytest.mark.parametrize(("edit", "message"), [
    (lambda text: text[:100], "is not a plan ("), (lambda text: "[]", "is not a plan ("),
    (lambda text: text.replace('"format": 4', '"format": 1'), "its format is not that of this version"),
    (lambda text: text.replace('"engine": "plan"', '"engine": "magma"'), "names the engine 'magma'"),
    (lambda text: text.replace('"choice": "reference"', '"choice": "cutlass/4"'),
     "names the engine 'cutlass': expected reference, native, triton"),
    (lambda text: text.replace('"choice": "reference"', '"choice": "native/gemm"'),
     "names the engine 'native': not built"),
], ids=["half", "list", "format", "engine", "candidate", "not-here"])
def test_plans_that_are_refused(edit, message, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "why_not", lambda engine, device: "not built" if engine == "native" else "")
    path = tmp_path / "plan.json"
    stored.export(path, kept(), stored.machine(CPU))
    path.write_text(edit(path.read_text()))
    with pytest.raises(FastganError, match=r"plan.json") as error:
        stored.read(path, CPU)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FastganError, match=r"gone.json is not a plan \(No such file or directory\); expected auto"):
        stored.read(tmp_path / "gone.json", CPU)


def resolved(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_options.json").read_text())["resolved"]


@pytest.mark.parametrize("loss", [{}, {"loss": "wgan-gp", "norm_d": "none", "penalty_every": 2}, {"fakes": "fresh-z"}],
                         ids=["bce", "wgan-gp", "fresh-z"])
def test_training_does_not_notice_the_measuring(loss, tiny, fake, monkeypatch, capsys):
    """Eager PyTorch is the fastest here, so that the same arithmetic is compared."""
    monkeypatch.setitem(SECONDS, "reference", 0.5)
    measured = Trainer(tiny(plan="auto", **loss)).fit()
    assert "plan: reference; ms of a step: reference 500.0, plan 900.0" in capsys.readouterr().err
    assert (measured / plan_setup.FILE).is_file() and resolved(measured)["engine"] == "reference"
    plain = Trainer(tiny(impl="reference", **loss)).fit()
    assert same(final_state(measured), final_state(plain)) and not (plain / plan_setup.FILE).exists()


def test_training_would_notice(tiny, fake, monkeypatch):
    """The test above can fail."""
    monkeypatch.setitem(SECONDS, "reference", 0.5)
    monkeypatch.setattr(plan_setup, "Snapshot", lambda *_: warnings.catch_warnings())
    assert not same(final_state(Trainer(tiny(plan="auto")).fit()), final_state(Trainer(tiny(impl="reference")).fit()))


def test_a_run_follows_its_plan(tiny, fake, monkeypatch, capsys):
    """A resumed run uses its stored plan, and is bit for bit the same."""
    config = tiny(plan="auto")
    whole = Trainer(config).fit()
    found = resolved(whole)
    assert found["engine"].startswith("triton ") and set(found["plan"].values()) == {"triton"}
    part = Trainer(config.replace(steps=3)).fit()
    monkeypatch.setattr(measure, "make", None)
    assert Trainer.resume(part, config).fit() == part
    assert same(final_state(part), final_state(whole))
    path = part / plan_setup.FILE
    assert same(final_state(Trainer(tiny(plan=str(path))).fit()), final_state(whole))
    capsys.readouterr()
    Trainer(tiny(plan=str(path), batch=8, steps=1)).fit()
    told = re.findall(r"plan\.json has no entry for (\d+) of (\d+) passes, first conv_forward", capsys.readouterr().err)
    assert len(told) == 1 and 0 < int(told[0][0]) == int(told[0][1])


def test_plan_default_measures_nothing(tiny, fake, monkeypatch):
    monkeypatch.setattr(measure, "examine", None)
    folder = Trainer(tiny(plan="default")).fit()
    assert resolved(folder)["engine"] == f"{candidates.default(CPU)}, nothing measured"
    assert not (folder / plan_setup.FILE).exists()


def test_where_nothing_but_the_reference_is_nothing_is_measured(tiny, monkeypatch):
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference"])
    monkeypatch.setattr(measure, "record", None)
    folder = Trainer(tiny(plan="auto")).fit()
    assert resolved(folder)["engine"] == f"{candidates.default(CPU)}, nothing measured"
    assert resolved(folder)["plan"] == {}


def test_a_plan_needs_impl_auto(tiny, tmp_path):
    with pytest.raises(FastganError, match=r"--plan .*plan.json with --impl reference: expected --impl auto"):
        Trainer(tiny(plan=str(tmp_path / "plan.json"), impl="reference"))


def test_command(tmp_path, fake, capsys):
    path = tmp_path / "plan.json"
    arguments = ["tune", "--preset", "digits", "--batch", "4", "--device", "cpu", "--rounds", "1"]
    assert cli.main([*arguments, "--export", str(path)]) == 0
    out = capsys.readouterr().out
    assert "conv_forward      conv_transpose 4x4/2 4x128x4x4 -> 64, float32\n  * triton" in out
    assert "1000.000 ms" in out and " of the allowed error" in out and "engines       reference, triton" in out
    assert re.search(r"triton (\d+) of \1 passes; ms of a step: plan 900.0, triton 1000.0, reference 3000.0", out)
    assert set(json.loads(path.read_text())) == {"format", "machine", "engine", "step", "problems"}
    assert stored.recall(stored.machine(CPU))[0].choices == stored.read(path, CPU)[0].choices


@pytest.mark.parametrize(("arguments", "message"), [
    (["--rounds", "0"], "--rounds 0: expected 1 or more"),
    (["--export", "gone/plan.json"], "--export gone/plan.json: no such folder: gone"),
    (["--batch", "1"], "--batch 1 with batch normalization"), (["--preset", "dcgan"], "unknown preset 'dcgan'")])
def test_command_refuses(arguments, message, capsys):
    assert cli.main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err
