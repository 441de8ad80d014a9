"""The benchmark suite's machinery: who is wrong is not timed, contenders take turns, rows outlive what interrupts."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.bench import gate, job, modules, operations, results, rounds, run, steps, suites, timing, training, worker
from fastgan.bench.contender import USUAL, Contender
from fastgan.bench.entry import Entry
from fastgan.bench.results import Row
from fastgan.bench.rounds import Failed, Taken
from fastgan.errors import FastganError
from fastgan.nn import Chain
from fastgan.ops.tuning import candidates
from fastgan.train import graph
from tests.simulated import SimulatedCuda

CPU = torch.device("cpu")
SMALL = {"image_size": "16", "ngf": 4, "ndf": 4, "nz": 8}
STEP = Entry("step", "dcgan-64", 4, changes=SMALL)
TEXTBOOK, OURS = Contender("textbook"), Contender("ours", "reference", saved=USUAL)
FACTS = {"commit": "abc", "date": "2026-11-23T10:00:00+00:00", "device": "a device", "driver": "", "torch": "2",
         "triton": "3"}


@pytest.fixture(autouse=True)
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this machine are measured once a process, which no test but one is about."""
    monkeypatch.setattr(run, "limit_seconds", lambda *_: None)



def row(contender: str = "ours", *, workload: str = "step/dcgan-64", batch: int = 4, **values: Any) -> Row:
    return Row(**{**FACTS, **{k: values.pop(k) for k in list(values) if k in FACTS}}, workload=workload,
               contender=contender, precision="fp32", batch=batch, **values)


# what is timed


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("preset", ["dcgan-64", "d2l-dcgan-pokemon", "tf-dcgan-mnist"])
def test_textbook_and_ours_make_the_same_steps(preset):
    """Whatever fakes, losses, order and epsilon a preset has; the contenders differ in nothing but how."""
    entry = Entry("step", preset, 4, changes={} if preset.startswith("tf") else SMALL)
    judged = steps.judge(entry, ["fp32"], CPU)
    assert judged.flops and judged.flops > 1e6
    for contender in (TEXTBOOK, TEXTBOOK.named("nchw", nchw=True, reads=True), OURS, OURS.named("bare", saved=()),
                      TEXTBOOK.named("saved", saved=("frozen", "fused_adam"))):
        made = steps.Training(entry, contender, CPU)
        share, name = made.used(judged)
        assert share <= 1, f"{contender.name}: {name}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("entry", "work"), [
    (STEP, steps.Training), (Entry("networks", "dcgan-64", 4, "generator", changes=SMALL), modules.Passes)],
    ids=["step", "network"])
def test_the_gate_finds_a_small_mistake(entry, work, monkeypatch):
    judged = (steps if work is steps.Training else modules).judge(entry, ["fp32"], CPU)
    right = work(entry, OURS, CPU).used(judged)
    forward = Chain.forward
    monkeypatch.setattr(Chain, "forward", lambda self, *args: forward(self, *args) * 1.001)
    share, _ = work(entry, OURS, CPU).used(judged)
    assert right[0] <= 1 < share


@pytest.mark.usefixtures("one_thread")
def test_a_pass_is_judged_by_the_plans_rule():
    entry = next(entry for entry in suites.entries("operations", "dcgan-64", 4, "fp32", CPU, SMALL)
                 if entry.part.startswith("conv_"))
    judged = operations.judge(entry, ["fp32"], CPU)
    assert judged.flops == operations.flops(entry.problem) and judged.moved
    made = operations.Pass(entry, Contender("ours", "reference"), CPU)
    assert made.used(judged)[0] <= 1
    made.calls[0] = lambda call=made.calls[0]: tuple(1.01 * one for one in call())
    assert made.used(judged)[0] > 1


def test_flops_of_a_pass_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    for entry in suites.entries("operations", "dcgan-64", 4, "fp32", CPU, SMALL):
        if entry.part.startswith("conv_"):
            with FlopCounterMode(display=False) as counter:
                operations.Pass(entry, Contender("ours", "reference"), CPU)(0)
            assert counter.get_total_flops() == operations.flops(entry.problem), entry.part


def test_bytes_of_a_pass():
    conv = next(entry.problem for entry in suites.entries("operations", "dcgan-64", 4, "fp32", CPU, SMALL)
                if entry.part == "conv_act_forward conv 3x16x16 -> 4")
    assert operations.moved(conv) == 4 * (4 * 3 * 16 * 16 + 4 * 3 * 4 * 4 + 4 * 4 * 8 * 8)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("contender", [TEXTBOOK, OURS], ids=lambda one: one.name)
def test_training_sees_each_image_of_an_epoch(contender, monkeypatch):
    monkeypatch.setattr(training, "WORKERS", 0)
    monkeypatch.setattr(training, "batches", _one_process)
    made = training.Fed(Entry("training", "dcgan-64", 4, changes=SMALL), contender, CPU)
    for index in range(training.BATCHES + 1):
        assert made.trouble(made(index)) == ""


def _one_process(data: Tensor, batch: int, pinned: bool) -> Any:
    while True:
        yield from (training._Normalised(data)[slice(i, i + batch)] for i in range(0, len(data), batch))


@pytest.mark.parametrize("suite", [name for name in suites.SUITES if name != "operations"])
def test_work_travels_as_json(suite):
    for entry in suites.entries(suite, "dcgan-64", 4, "fp32", CPU, SMALL):
        assert Entry.from_json(json.loads(json.dumps(entry.as_json()))) == entry
        for one in suites.contenders(entry, CPU, "fp32"):
            given = json.loads(rounds.command(one, "cpu", 1)[-1])["contender"]
            assert Contender.from_json(given) == one


def test_an_operation_travels_as_json():
    entry = suites.entries("operations", "dcgan-64", 4, "fp32", CPU, SMALL)[0]
    assert Entry.from_json(json.loads(json.dumps(entry.as_json()))) == entry


@pytest.mark.parametrize("suite", suites.SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_are_unique_and_ours_are_known_by_them(suite, device, monkeypatch):
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "native", "triton"])
    found = suites.SUITES[suite].contenders(torch.device(device), "bf16" if device == "cuda" else "fp32")
    assert len({one.name for one in found}) == len(found) > 2
    if suite not in ("ablation", "operations"):
        assert all(one.name.startswith("fastgan") == (one.engine != "textbook") for one in found)
    assert all(not one.graph for one in found) or device == "cuda"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_chain_adds_one_thing_after_another(device, monkeypatch):
    monkeypatch.setattr(candidates, "engines", lambda device: ["reference", "native", "triton"])
    links = suites.chain(torch.device(device), "bf16" if device == "cuda" else "fp32")
    assert not links[0].name.startswith("+") and all(one.name.startswith("+ ") for one in links[1:])
    assert links[0].nchw and links[-1].engine == "auto"
    assert [one.name for one in suites.total(torch.device(device), "fp32")] == [links[0].name, links[-1].name]
    assert len({one.named("", usual=True) for one in links}) == len(links)


# who is timed


def test_a_graph_that_was_given_up_has_no_time(monkeypatch):
    device = SimulatedCuda()
    device.refusal = "CUDA error: operation failed"
    monkeypatch.setattr(graph, "cuda", device)
    made = steps.Training(STEP, OURS.named("graph", graph=True), CPU)
    with pytest.raises(ArithmeticError, match="no graph: CUDA error: operation failed"):
        timing.Clock(made, CPU).lap(2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", ["textbook", "reference"])
def test_a_graph_is_judged_by_what_its_replays_compute(engine, monkeypatch):
    monkeypatch.setattr(graph, "cuda", SimulatedCuda())
    judged = steps.judge(STEP, ["fp32"], CPU)
    made = steps.Training(STEP, OURS.named("graph", engine=engine, graph=True, together=False), CPU)
    made.settle()
    assert made.used(judged)[0] <= 1
    assert made.trouble(made(0)) == ""


def test_losses_that_are_not_finite_have_no_time():
    assert steps.trouble(lambda real: None, (1.0, float("nan"))) == "a loss or a gradient is not finite"
    assert steps.trouble(lambda real: None, {"finite": torch.zeros(())}) == "a loss or a gradient is not finite"
    assert steps.trouble(lambda real: None, {"finite": torch.ones(())}) == ""


def test_a_result_of_another_shape_is_wrong():
    judged = job.Judged({"y": torch.ones(3, dtype=torch.float64)}, {"fp32": {"y": 1e-7}})
    assert gate.used({"y": torch.ones(2)}, judged, "fp32") == (float("inf"), "the shape of y")
    assert gate.used({"y": torch.full((3,), torch.nan)}, judged, "fp32")[0] == float("inf")
    assert gate.used({"y": torch.ones(3)}, judged, "fp32")[0] == 0


def test_the_other_side_of_the_pipe(tmp_path):
    """A worker without a process: a mistake is a line, and the next order is answered."""
    path, entry = str(tmp_path / "judged.pt"), STEP.as_json
    orders = [{"do": "judge", "entry": entry(), "precisions": ["fp32"], "path": path},
              {"do": "make", "entry": entry(), "judged": path}, {"do": "turn"}, {"do": "peak"},
              {"do": "make", "entry": Entry("step", "no such preset", 4).as_json(), "judged": ""},
              {"do": "first", "entry": entry()}]
    answers = io.StringIO()
    worker.serve(worker.Bench(OURS, CPU), io.StringIO("".join(json.dumps(one) + "\n" for one in orders)), answers)
    judge, make, turn, peak, unknown, first = map(json.loads, answers.getvalue().splitlines())
    assert "error" not in peak, peak
    assert judge["flops"] > 0 and make == {"images": 4} and turn["seconds"] > 0 and peak["mb"] > 0.1
    assert unknown["error"].startswith("unknown preset") and first == {}


def test_who_is_wrong_is_a_line_and_has_no_time(tmp_path):
    bench = worker.Bench(OURS, CPU)
    bench.judge(STEP.as_json(), ["fp32"], str(tmp_path / "judged.pt"))
    judged = torch.load(tmp_path / "judged.pt")
    judged["exact"] = {name: 2 * value for name, value in judged["exact"].items()}
    torch.save(judged, tmp_path / "judged.pt")
    with pytest.raises(worker.Wrong, match=r"wrong: .* x the allowed error"):
        bench.make(STEP.as_json(), str(tmp_path / "judged.pt"))
    assert bench.clock is None


def test_events_stand_around_a_call_behind_a_flush(monkeypatch):
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...
        def record(self) -> None: log.append("event")
        def elapsed_time(self, other: Any) -> float: return 3.0

    class Alone(job.Job):
        alone = True

        def __call__(self, index: int) -> None:
            log.append(f"call {index}")

    flush = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(timing, "torch", SimpleNamespace(empty=lambda *args, **options: flush, int8=torch.int8))
    monkeypatch.setattr(timing, "cuda", SimpleNamespace(Event=Event, _sleep=lambda cycles: log.append("sleep"),
                                                        synchronize=lambda: log.append("wait")))
    clock = timing.Clock(Alone(2), torch.device("cuda"))
    assert clock.lap(2) == pytest.approx(3e-3)
    assert log == ["wait", "sleep", "flush", "event", "call 1", "event", "flush", "event", "call 2", "event", "wait"]


def test_a_turn_lasts():
    clock = timing.Clock(job_of(lambda index: None), CPU)
    assert [clock.calls(took) for took in (1.0, 0.005, 1e-9)] == [1, 4, timing.MOST]


def job_of(call: Any) -> job.Job:
    return type("One", (job.Job,), {"__call__": lambda self, index: call(index)})(1)


# in turns


class Player:
    """Takes a second in a turn; `fails` at a word."""

    def __init__(self, log: list[str], name: str, fails: str = "") -> None:
        self.log, self.name, self.fails = log, name, fails

    def _do(self, what: str) -> float:
        if what == self.fails:
            raise Failed("out of order")
        self.log.append(f"{what} {self.name}")
        return 1.0

    def make(self, entry: Entry, judged: str) -> int:
        return int(self._do("make")) * 4

    def turn(self) -> float:
        return self._do("turn")

    def peak(self) -> float | None:
        return self._do("peak")


def play(players: dict[str, Any], count: int, deadline: float = float("inf")) -> dict[str, Taken]:
    taken: dict[str, Taken] = {}
    rounds.play(STEP, players, "", taken, rounds=count, deadline=deadline, order=random.Random(0))
    return taken


def test_contenders_take_turns_in_an_order_that_is_drawn():
    log: list[str] = []
    taken = play({name: Player(log, name) for name in "abcd"}, 6)
    assert log[:4] == ["make a", "make b", "make c", "make d"]
    turns = [tuple(log[4 + 4 * i:8 + 4 * i]) for i in range(6)]
    assert all(sorted(one) == ["turn a", "turn b", "turn c", "turn d"] for one in turns)
    assert len(set(turns)) > 1
    assert all(one.seconds == [1.0] * 6 and one.images == 4 and one.peak_mb == 1.0 for one in taken.values())


@pytest.mark.parametrize("when", ["make", "turn"])
def test_who_fails_stops_nobody(when):
    taken = play({"a": Player([], "a"), "b": Player([], "b", when)}, 3)
    assert (taken["b"].error, taken["b"].seconds) == ("out of order", [])
    assert len(taken["a"].seconds) == 3


def test_rounds_end_at_the_deadline_but_not_before_three():
    assert len(play({"a": Player([], "a")}, 9, time.monotonic() - 1)["a"].seconds) == rounds.LEAST
    assert play({"a": Player([], "a")}, 0)["a"].peak_mb == 1.0


def test_ctrl_c_before_an_answer_is_awaited(monkeypatch):
    """No thread is left for which a program waits at its end: that took as long as the patience, ten minutes."""
    start = threading.Timer.start

    def interrupted(timer):
        start(timer)
        raise KeyboardInterrupt

    one = rounds.Worker(OURS, "cpu", 1)
    before = set(threading.enumerate())
    monkeypatch.setattr(threading.Timer, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.turn()
    one.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.cancel()
    assert left and all(thread.daemon for thread in left)


def test_a_process_that_ends_is_a_reason(monkeypatch):
    monkeypatch.setattr(rounds, "command", lambda *args: ["-c", "import sys; sys.exit('no luck today')"])
    one = rounds.Worker(OURS, "cpu", 1)
    with pytest.raises(Failed, match=r"its process ended \(1\): no luck today"):
        one.turn()
    one.close()


def test_a_process_that_does_not_answer_is_a_reason(monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    monkeypatch.setattr(rounds, "command", lambda *args: ["-c", "import time; time.sleep(60)"])
    one = rounds.Worker(OURS, "cpu", 1)
    with pytest.raises(Failed, match="no answer within"):
        one.turn()
    one.close()


def test_a_process_that_is_new_in_each_turn():
    assert rounds.Fresh(["-c", "pass"]).turn() > 0
    with pytest.raises(Failed, match="no luck"):
        rounds.Fresh(["-c", "import sys; sys.exit('no luck')"]).turn()


# a run


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers without processes."""
    log: list[str] = []

    class Staged(Player):
        def __init__(self, contender: Contender, device: str, threads: int) -> None:
            super().__init__(log, contender.name, "turn" if contender.name == "fastgan, native" else "")

        def judge(self, entry: Entry, precisions: list[str], path: str) -> tuple[float, None]:
            Path(path).touch()
            log.append("judge")
            return 1e12, None

        def close(self) -> None:
            log.append(f"close {self.name}")

    monkeypatch.setattr(run, "Worker", Staged)
    return log


def order(**values: Any) -> run.Order:
    return run.Order(CPU, **{"suites": ["step"], "batches": [4], "rounds": 2, "changes": SMALL, **values})


def test_rows_of_a_run(staged, tmp_path):
    done = run.Done(results.check(tmp_path))
    run.measure(order(), done)
    by_name = {one.contender: one for one in results.read(done.path)}
    one = by_name["textbook, NCHW"]
    assert (one.p20, one.p50, one.p80, one.images_per_s, one.tflop_per_s) == (1000, 1000, 1000, 4, 1)
    assert (one.peak_mb, one.gb_per_s, one.of_limit, one.batch, one.workload) == (1, None, None, 4, "step/dcgan-64")
    assert by_name["fastgan, native"].error == "out of order" and by_name["fastgan, native"].p50 is None
    assert staged.count("judge") == 1
    assert sum(word.startswith("close") for word in staged) == len(by_name) + 1


def test_what_was_measured_outlives_an_interruption(staged, tmp_path, monkeypatch):
    count = 0

    def turn(self: Player) -> float:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(Player, "turn", turn)
    done = run.Done(results.check(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run.measure(order(batches=[4, 8]), done)
    kept = results.read(done.path)
    assert kept == done.rows and {one.batch for one in kept} == {4, 8}
    assert all(one.p50 for one in kept)
    assert sum(word.startswith("close") for word in staged) > len(done.rows)


def test_what_no_time_is_left_for_is_named(staged, tmp_path):
    done = run.Done(results.check(tmp_path))
    run.measure(order(minutes=1e-9), done)
    assert done.rows == [] and done.late == ["step/dcgan-64, batch 4"]


def test_nothing_is_timed_where_nobody_knows_what_is_right(staged, tmp_path, monkeypatch):
    def fails(*_: Any) -> Any:
        raise Failed("out of memory")

    monkeypatch.setattr(run.Worker, "judge", fails)
    done = run.Done(results.check(tmp_path))
    run.measure(order(), done)
    assert {one.error for one in done.rows} == {"nothing to compare with: out of memory"}


def test_a_run_in_processes(tmp_path):
    """Two contenders, judged and timed, for real."""
    done = run.Done(results.check(tmp_path))
    run.measure(order(names=["textbook, channels_last", "fastgan, reference"], rounds=3), done)
    assert [one.contender for one in done.rows] == ["textbook, channels_last", "fastgan, reference"]
    for one in done.rows:
        assert one.error == "" and one.p20 <= one.p50 <= one.p80 and one.peak_mb > 0.1 and one.images_per_s > 0


# rows


def test_percentiles():
    assert [results.percentile([5, 1, 4, 2, 3], share) for share in (0.2, 0.5, 0.8)] == [1, 3, 4]
    assert results.percentile([4, 1, 2, 3], 0.5) == 2.5 and results.percentile([7], 0.8) == 7


def test_numbers_of_a_row():
    one = row().timed([0.5, 0.25, 1.0], images=8, flops=1e12, moved=2e9, limit=0.1)
    assert (one.p20, one.p50, one.p80) == (250, 500, 1000)
    assert (one.images_per_s, one.tflop_per_s, one.gb_per_s, one.of_limit) == (16, 2, 4, 20)


def test_the_columns_and_appending(tmp_path):
    path = results.check(tmp_path / "new")
    assert path.read_text().strip() == ("commit,date,device,driver,torch,triton,workload,contender,precision,batch,p20,"
                                        "p50,p80,img/s,GB/s,TFLOP/s,% of limit,peak memory,error")
    one, other = row(p20=1.5, p50=2.0, p80=2.5, images_per_s=3.0), row("a, \"b\"", error="wrong: x\nand more")
    results.append(path, [one])
    results.append(results.check(tmp_path / "new"), [other])
    assert results.read(path) == [one, other]


def test_a_file_of_another_version_is_refused_and_kept(tmp_path):
    (tmp_path / "bench.csv").write_text("batch,contender,ms\n64,ours,3\n")
    for refuse in (lambda: results.check(tmp_path), lambda: results.read(tmp_path / "bench.csv")):
        with pytest.raises(FastganError, match=r"bench\.csv has other columns \(batch,contender,ms"):
            refuse()
    assert (tmp_path / "bench.csv").read_text() == "batch,contender,ms\n64,ours,3\n"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FastganError, match="cannot write there"):
        results.check(tmp_path / "file")


def test_the_last_run_counts():
    old, new = row("a", date="2026-01-01"), row("b", date="2026-01-02")
    other = row("a", date="2026-01-01", batch=8)
    assert results.latest([old, new, other]) == [new, other]


# names


@pytest.mark.parametrize(("values", "words"), [
    ({"suites": ["stepp"]}, "unknown suite 'stepp'; did you mean step"),
    ({"preset": "dcgan-46"}, "unknown workload 'dcgan-46'; did you mean dcgan-64"),
    ({"preset": "d2l-gan-gaussian"}, "unknown workload"),
    ({"names": ["fastgan, nativ"]}, "unknown contender 'fastgan, nativ'; did you mean fastgan, native"),
    ({"match": "cudnnn"}, "no contender has it in its name")])
def test_unknown_names(values, words):
    with pytest.raises(FastganError, match=words):
        run.check(order(**values))


def test_names_that_are_known():
    run.check(order(names=["import torch"], suites=["start"]))
    run.check(order(match="torch.compile"))
    assert [one.name for one in order(match="NATIVE").contenders(STEP)] == ["fastgan, native"]
    assert not any("max-autotune" in one.name for one in order().contenders(STEP))
    assert any("max-autotune" in one.name for one in order(match="autotune").contenders(STEP))


def test_the_limit_of_a_step_is_the_models(monkeypatch):
    from fastgan.bench import limit
    from fastgan.verify import cost
    from fastgan.verify.cost.devices import DEVICES

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    entry = Entry("step", "dcgan-64", 8, changes={"ngf": 8, "ndf": 8})
    limit._known.cache_clear()
    cuda = torch.device("cuda")
    assert limit.limit_seconds(entry, "bf16", cuda) == cost.limit(entry.config, 8, "bf16", DEVICES["h100"]) > 0
    assert limit.limit_seconds(Entry("training", "dcgan-64", 8), "bf16", cuda) is None
    assert limit.limit_seconds(entry, "int8", cuda) is None
