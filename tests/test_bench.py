"""The benchmark suite: incorrect implementations are not timed, implementations take turns, rows are written at once.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import correctness, lines, networks, results, run, steps, suites, test_workloads, training, worker
from benchmarks.implementation import SAVINGS, Implementation
from benchmarks.results import Row
from benchmarks.run import Timings
from benchmarks.worker import Failed, Session, Worker
from benchmarks.workload import Expected, Job, Workload
from fastgan.errors import FastganError
from fastgan.nn import Chain
from fastgan.ops.tuning import candidates
from fastgan.train import graph
from proofs.simulated import SimulatedCuda

CPU = torch.device("cpu")
SMALL = {"image_size": "16", "ngf": 4, "ndf": 4, "nz": 8}
STEP = Workload("step", "dcgan-64", 4, changes=SMALL)
PYTORCH, OURS = Implementation("PyTorch"), Implementation("ours", "reference", savings=SAVINGS)
FACTS = {"commit": "abc", "date": "2026-11-23T10:00:00+00:00", "device": "a device", "driver": "", "torch": "2",
         "triton": "3"}


def row(implementation: str = "ours", *, workload: str = "step/dcgan-64", batch: int = 4, **values: Any) -> Row:
    return Row(**{**FACTS, **{k: values.pop(k) for k in list(values) if k in FACTS}}, workload=workload,
               implementation=implementation, precision="fp32", batch=batch, **values)


# what is timed


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("preset", ["dcgan-64", "d2l-dcgan-pokemon", "tf-dcgan-mnist"])
def test_pytorch_and_ours_make_the_same_steps(preset):
    """For all settings of fakes, losses, order and epsilon in presets."""
    workload = Workload("step", preset, 4, changes={} if preset.startswith("tf") else SMALL)
    expected = steps.expect(workload, ["fp32"], CPU)
    assert expected.flops and expected.flops > 1e6
    for one in (PYTORCH, PYTORCH.but("nchw", nchw=True, reads_losses=True), OURS, OURS.but("bare", savings=()),
                PYTORCH.but("saving", savings=("frozen", "fused_adam"))):
        used, name = steps.Steps(workload, one, CPU).check(expected)
        assert used <= 1, f"{one.name}: {name}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("workload", "work"), [
    (STEP, steps.Steps), (Workload("networks", "dcgan-64", 4, "generator", changes=SMALL), networks.ForwardBackward)],
    ids=["step", "network"])
def test_a_small_mistake_is_found(workload, work, monkeypatch):
    expected = (steps if work is steps.Steps else networks).expect(workload, ["fp32"], CPU)
    right, _ = work(workload, OURS, CPU).check(expected)
    forward = Chain.forward
    monkeypatch.setattr(Chain, "forward", lambda self, *args: forward(self, *args) * 1.001)
    wrong, _ = work(workload, OURS, CPU).check(expected)
    assert right <= 1 < wrong


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_of_each_engine_are_correct(network, precision):
    workload = Workload("networks", "dcgan-64", 4, network, changes=SMALL)
    expected = networks.expect(workload, [precision], CPU)
    for engine in ("pytorch", "reference", "native"):
        used, name = networks.ForwardBackward(workload, Implementation(engine, engine, precision), CPU).check(expected)
        assert used <= 1, f"{engine}: {name}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("implementation", [PYTORCH, OURS], ids=lambda one: one.name)
def test_training_sees_each_image_of_an_epoch(implementation, monkeypatch):
    monkeypatch.setattr(training, "batches", _one_process)
    job = training.StepsWithData(Workload("training", "dcgan-64", 4, changes=SMALL), implementation, CPU)
    for index in range(training.BATCHES + 1):
        assert job.failure(job(index)) == ""


def _one_process(data: Tensor, batch: int, pinned: bool) -> Any:
    while True:
        yield from (training._Normalised(data)[slice(i, i + batch)] for i in range(0, len(data), batch))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("problem", test_workloads.problems(), ids=lambda one: f"{one.kind}-{one.x[1]}")
def test_passes_of_pytest_benchmark(problem):
    calls: list[Any] = []
    for engine in candidates.engines(CPU):
        test_workloads.test_pass(problem._replace(x=(2, *problem.x[1:])), engine, lambda call: calls.append(call()))
    assert calls == [None] * len(candidates.engines(CPU))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workload", [STEP, Workload("networks", "dcgan-64", 4, "generator", changes=SMALL)], ids=str)
def test_networks_and_steps_of_pytest_benchmark(workload):
    timed = test_workloads.test_step if workload is STEP else test_workloads.test_network
    seconds: dict[str, float] = {}
    for row in test_workloads.rows(workload):
        given, one = row.values
        timed(given, one, lambda call, *arguments, to=one.name: seconds.update({to: call(*arguments)}))
    assert len(seconds) > 2 and min(seconds.values()) > 0
    assert next(iter(seconds)).endswith(", NCHW") and any(name.startswith("fastgan") for name in seconds)


@pytest.mark.parametrize("suite", suites.SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_are_unique_and_ours_are_known_by_them(suite, device, monkeypatch):
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "native", "triton"])
    found = suites.SUITES[suite].implementations(torch.device(device), "bf16" if device == "cuda" else "fp32")
    assert len({one.name for one in found}) == len(found) > 2
    if suite != "ablation":
        assert all(one.name.startswith("fastgan") == (one.engine != "pytorch") for one in found)
    assert all(not one.graph for one in found) or device == "cuda"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_ablation_adds_one_thing_after_another(device, monkeypatch):
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "native", "triton"])
    links = suites.ablation(torch.device(device), "bf16" if device == "cuda" else "fp32")
    assert not links[0].name.startswith("+") and all(one.name.startswith("+ ") for one in links[1:])
    assert links[0].nchw and links[-1].engine == "auto"
    assert len({one.but("", usual=True) for one in links}) == len(links)


# what is not timed


def test_a_graph_that_was_given_up_has_no_time(monkeypatch):
    device = SimulatedCuda()
    device.refusal = "CUDA error: operation failed"
    monkeypatch.setattr(graph, "cuda", device)
    session = Session(OURS.but("graph", graph=True), CPU)
    with pytest.raises(Failed, match="no graph: CUDA error: operation failed"):
        session.make(STEP, "")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", ["pytorch", "reference"])
def test_a_graph_is_checked_by_what_its_replays_compute(engine, monkeypatch):
    monkeypatch.setattr(graph, "cuda", SimulatedCuda())
    expected = steps.expect(STEP, ["fp32"], CPU)
    job = steps.Steps(STEP, OURS.but("graph", engine=engine, graph=True, together=False), CPU)
    job.prepare()
    assert job.check(expected)[0] <= 1
    assert job.failure(job(0)) == ""


def test_losses_that_are_not_finite_have_no_time():
    assert steps.failure(lambda real: None, (1.0, float("nan"))) == "a loss or a gradient is not finite"
    assert steps.failure(lambda real: None, {"finite": torch.zeros(())}) == "a loss or a gradient is not finite"
    assert steps.failure(lambda real: None, {"finite": torch.ones(())}) == ""


def test_a_result_of_another_shape_is_wrong():
    exact = {"y": torch.ones(3, dtype=torch.float64)}
    expected = Expected(exact, {"fp32": [exact]})
    assert correctness.worst({"y": torch.ones(2)}, expected, "fp32") == (float("inf"), "the shape of y")
    assert correctness.worst({"y": torch.full((3,), torch.nan)}, expected, "fp32")[0] == float("inf")
    assert correctness.worst({"y": torch.ones(3)}, expected, "fp32")[0] == 0


def test_a_session(tmp_path):
    """The code of a worker, without its process: errors become messages, and the next call is answered."""
    path, session = str(tmp_path / "expected.pt"), Session(OURS, CPU)
    flops, error = worker.answer(session, "expect", STEP, ["fp32"], path)
    assert flops > 0 and error == ""
    assert worker.answer(session, "make", STEP, path) == (4, "")
    assert worker.answer(session, "turn")[0] > 0 and worker.answer(session, "peak")[0] > 0.1
    _, error = worker.answer(session, "make", Workload("step", "no such preset", 4), "")
    assert error.startswith("unknown preset")


def test_what_is_wrong_has_no_time(tmp_path):
    path, session = str(tmp_path / "expected.pt"), Session(OURS, CPU)
    session.expect(STEP, ["fp32"], path)
    expected = torch.load(path)
    for results_of in (expected["exact"], *expected["runs"]["fp32"]):
        results_of.update({name: 2 * value for name, value in results_of.items()})
    torch.save(expected, path)
    with pytest.raises(Failed, match=r"wrong: .* x the allowed error"):
        session.make(STEP, path)
    assert session.job is None


def test_a_turn_has_several_calls_of_what_is_fast(monkeypatch):
    calls = []
    one = type("One", (Job,), {"__call__": lambda self, index: calls.append(index)})()
    session = Session(OURS, CPU)
    monkeypatch.setattr(steps, "Steps", lambda *given: one)
    session.make(STEP, "")
    assert session.calls == worker.MOST_CALLS
    session.turn()
    assert len(calls) == worker.WARM_UP["cpu"] + worker.MOST_CALLS


# in turns


class Scripted:
    """A worker whose turns take a second; the method `fails` raises an error."""

    def __init__(self, log: list[str], name: str, fails: str = "") -> None:
        self.log, self.name, self.fails = log, name, fails

    def call(self, method: str, *arguments: Any) -> Any:
        if method == self.fails:
            raise Failed("out of order")
        self.log.append(f"{method} {self.name}")
        return {"make": 4, "turn": 1.0, "peak": 1.0, "expect": 1e12}[method]

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def rounds(workers: dict[str, Any], count: int, deadline: float = float("inf")) -> dict[str, Timings]:
    return run.run_rounds(STEP, workers, "", count, deadline, random.Random(0))


def test_implementations_take_turns_in_a_random_order():
    log: list[str] = []
    timings = rounds({name: Scripted(log, name) for name in "abcd"}, 6)
    assert log[:4] == ["make a", "make b", "make c", "make d"]
    turns = [tuple(log[4 + 4 * i:8 + 4 * i]) for i in range(6)]
    assert all(sorted(one) == ["turn a", "turn b", "turn c", "turn d"] for one in turns)
    assert len(set(turns)) > 1
    assert all(one == Timings(4, [1.0] * 6, 1.0) for one in timings.values())


@pytest.mark.parametrize("when", ["make", "turn"])
def test_one_that_fails_stops_no_other(when):
    timings = rounds({"a": Scripted([], "a"), "b": Scripted([], "b", when)}, 3)
    assert (timings["b"].error, timings["b"].seconds) == ("out of order", [])
    assert len(timings["a"].seconds) == 3


def test_rounds_end_at_the_deadline_but_not_before_three():
    assert len(rounds({"a": Scripted([], "a")}, 9, time.monotonic() - 1)["a"].seconds) == run.LEAST_ROUNDS


def crash(*_: Any) -> None:
    sys.exit("no luck today")


def hang(*_: Any) -> None:
    time.sleep(60)


@pytest.mark.parametrize(("target", "words"), [(crash, r"its process ended \(1\)"), (hang, "no answer within")],
                         ids=["crash", "hang"])
def test_a_process_that_ends_or_hangs_is_a_reason(target, words, monkeypatch):
    monkeypatch.setattr(worker, "TIMEOUT", 1.0 if target is hang else 60.0)
    monkeypatch.setattr(worker, "serve", target)
    one = Worker(OURS, CPU)
    with pytest.raises(Failed, match=words):
        one.call("turn")
    one.close()


# a run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers without processes."""
    log: list[str] = []
    monkeypatch.setattr(run, "Worker", lambda one, device: Scripted(
        log, one.name, "turn" if one.name == "fastgan, native" else ""))
    return log


def options(**values: Any) -> run.Options:
    return run.Options(CPU, **{"suites": ("step",), "batches": (4,), "rounds": 2, "changes": SMALL, **values})


def measure(given: run.Options, folder: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    skipped: list[str] = []
    run.measure(given, results.prepare(folder), rows, skipped)
    return rows, skipped


def test_rows_of_a_run(scripted, tmp_path):
    rows, _ = measure(options(), tmp_path)
    assert results.read(tmp_path / "bench.csv") == rows
    by_name = {one.implementation: one for one in rows}
    one = by_name["PyTorch, NCHW"]
    assert (one.p20, one.p50, one.p80, one.images_per_s, one.tflop_per_s) == (1000, 1000, 1000, 4, 1)
    assert (one.peak_mb, one.batch, one.workload) == (1, 4, "step/dcgan-64")
    assert by_name["fastgan, native"].error == "out of order" and by_name["fastgan, native"].p50 is None
    assert scripted.count("expect expected") == 1
    assert sum(word.startswith("close") for word in scripted) == len(rows) + 1


def test_the_same_steps_are_expected_once(scripted, tmp_path):
    measure(options(suites=("step", "ablation")), tmp_path)
    assert scripted.count("expect expected") == 1


def test_what_was_measured_outlives_an_interruption(scripted, tmp_path, monkeypatch):
    call = Scripted.call

    def interrupted(self: Scripted, method: str, *arguments: Any) -> Any:
        if method == "make" and arguments[0].batch == 8:
            raise KeyboardInterrupt
        return call(self, method, *arguments)

    monkeypatch.setattr(Scripted, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(options(batches=(4, 8)), tmp_path)
    rows = results.read(tmp_path / "bench.csv")
    assert {one.batch for one in rows} == {4} and scripted[-1].startswith("close")


def test_workloads_without_time_are_named(scripted, tmp_path):
    assert measure(options(minutes=1e-9), tmp_path) == ([], ["step/dcgan-64, batch 4"])


def test_nothing_is_timed_without_something_to_compare_with(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Worker", lambda one, device: Scripted(scripted, one.name, "expect"))
    rows, _ = measure(options(), tmp_path)
    assert {one.error for one in rows} == {"nothing to compare with: out of order"}


def test_a_run_in_processes(tmp_path):
    """One implementation is checked and timed in its process."""
    rows, _ = measure(options(match="fastgan, reference", rounds=3), tmp_path)
    assert [one.implementation for one in rows] == ["fastgan, reference"]
    for one in rows:
        assert one.error == "" and one.p20 <= one.p50 <= one.p80 and one.peak_mb > 0.1 and one.images_per_s > 0


def test_implementations_by_name():
    assert [one.name for one in options(match="NATIVE").implementations(STEP)] == ["fastgan, native"]
    assert not any("max-autotune" in one.name for one in options().implementations(STEP))
    assert any("max-autotune" in one.name for one in options(match="autotune").implementations(STEP))


# rows


def test_numbers_of_a_row():
    timings = Timings(8, [0.5, 0.25, 1.0])
    one = Row.of(FACTS, STEP, OURS, timings, 1e12)
    assert (one.p20, one.p50, one.p80) == pytest.approx((350, 500, 800))
    assert (one.images_per_s, one.tflop_per_s) == (16, 2)


def test_the_columns_and_appending(tmp_path):
    path = results.prepare(tmp_path / "new")
    assert path.read_text().strip() == ("commit,date,device,driver,torch,triton,workload,implementation,precision,"
                                        "batch,p20,p50,p80,images_per_s,tflop_per_s,peak_mb,error")
    one, other = row(p20=1.5, p50=2.0, p80=2.5, images_per_s=3.0), row("a, \"b\"", error="wrong: x\nand more")
    results.append(path, [one])
    results.append(results.prepare(tmp_path / "new"), [other])
    assert results.read(path) == [one, other]


def test_a_file_of_another_version_is_refused_and_kept(tmp_path):
    (tmp_path / "bench.csv").write_text("batch,contender,ms\n64,ours,3\n")
    for refuse in (lambda: results.prepare(tmp_path), lambda: results.read(tmp_path / "bench.csv")):
        with pytest.raises(FastganError, match=r"bench\.csv has other columns \(batch,contender,ms"):
            refuse()
    assert (tmp_path / "bench.csv").read_text() == "batch,contender,ms\n64,ours,3\n"


def test_a_damaged_file_is_refused(tmp_path):
    path = results.prepare(tmp_path)
    with path.open("a") as file:
        file.write("a,b\n")
    with pytest.raises(FastganError, match="cannot read"):
        results.read(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FastganError, match="cannot write there"):
        results.prepare(tmp_path / "file")


def test_the_last_run_counts():
    old, new = row("a", date="2026-01-01"), row("b", date="2026-01-02")
    other = row("a", date="2026-01-01", batch=8)
    assert results.latest([old, new, other]) == [new, other]


# the command


@pytest.mark.parametrize(("args", "words"), [
    (["--device", "cuda"], "--device cuda: expected auto or one of --device cpu"),
    (["--suite", "stepp"], "unknown suite 'stepp'; did you mean step"),
    (["--preset", "dcgan64"], "--preset dcgan64: no preset with convolutions; did you mean dcgan-64"),
    (["--preset", "d2l-gan-gaussian"], "no preset with convolutions"),
    (["--match", "cudnnn"], "--match cudnnn: no implementation has it in its name"),
    (["--precision", "tf32", "--device", "cpu"], "precision tf32 on cpu"),
    (["--rounds", "0"], "--rounds 0"), (["--batch", "1"], "--batch 1"), (["--minutes", "-1"], "--minutes -1")])
def test_options_that_cannot_be(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert command.main(args) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("benchmarks: error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_are_found_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    assert command.main(["--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write there" in capsys.readouterr().err


def test_the_command(capsys, monkeypatch, tmp_path):
    def measure(given: run.Options, path: Path, rows: list[Row], skipped: list[str]) -> None:
        rows += [row("PyTorch, NCHW", p20=1.0, p50=1000.0, p80=1.0), row("fastgan, auto", p20=1.0, p50=500.0, p80=1.0)]
        skipped.append("training/dcgan-64, batch 64")
        results.append(path, rows)
        if given.rounds == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", measure)
    out = str(tmp_path / "out")
    assert command.main(["--suite", "step", "--device", "cpu", "--minutes", "5", "--out", out]) == 0
    text = capsys.readouterr().out
    assert "| fastgan, auto | fp32 | 500 |" in text and "no time was left: training/dcgan-64, batch 64" in text
    assert command.main(["--device", "cpu", "--rounds", "1", "--out", out]) == 130
    assert capsys.readouterr().err == f"benchmarks: interrupted: 2 results are in {out}/bench.csv\n"


def test_the_list_names_everything(capsys):
    assert command.main(["--suite", "step", "networks", "--device", "cpu", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"step/dcgan-64, batch 64", "networks/dcgan-64/generator, batch 64", "    PyTorch, NCHW",
            "    fastgan, reference"} <= set(lines)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_in_the_middle(tmp_path):
    """While its processes run; none of them is left."""
    program = [sys.executable, "-m", "benchmarks", "--suite", "step", "--batch", "2", "--device", "cpu", "--match",
               "PyTorch, NCHW", "--rounds", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parents[1],
                               # a background job of a shell ignores SIGINT, and so would its children
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        while not (tmp_path / "bench.csv").exists() and process.poll() is None:  # imports also start processes
            time.sleep(0.2)
        while not (children := _children(process.pid)) and process.poll() is None:
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert re.search(r"benchmarks: interrupted: \d+ results are in .*bench\.csv\n$", err)
    end = time.monotonic() + 10  # Python's resource tracker ends slightly later
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert isinstance(results.read(tmp_path / "bench.csv"), list) and out == ""


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def test_commands_that_moved_name_their_place(capsys):
    from fastgan import cli

    for name, words in (("bench", "`python -m benchmarks`, in a clone"), ("cost", "python -m benchmarks.counters")):
        assert cli.main([name, "--batch", "4"]) == 2
        assert words in capsys.readouterr().err


class StandIn:
    """A worker of known speed."""

    def __init__(self, implementation: Implementation, device: torch.device) -> None:
        self.seconds = {"none": 1.0, "1: `": 0.5, "2: `": 0.1}[implementation.name[:4]]
        self.turns = 0

    def call(self, method: str, *arguments: Any) -> float:
        self.turns += method == "turn"
        return 100.0 if self.turns == 2 else self.seconds  # an outlier, which a median ignores

    def close(self) -> None:
        """There is no process."""


def test_what_each_line_gains(monkeypatch, capsys):
    monkeypatch.setattr(lines, "Worker", StandIn)
    monkeypatch.setattr(sys, "argv", ["lines", "--rounds", "5"])
    lines.main()
    *_, plain, one, two = capsys.readouterr().out.splitlines()
    assert plain == "| none: PyTorch's loop | 1000.0 ms | 1.00 x |"
    assert one == "| 1: `fastgan.convert` | 500.0 ms | 2.00 x |"
    assert two == "| 2: `GANStep` and `GraphedStep` | 100.0 ms | 10.00 x |"
