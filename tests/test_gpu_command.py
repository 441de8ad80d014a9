"""`make gpu`, as far as it goes without a GPU: parts that succeed, fail, hang and crash, and the report of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastgan.bench import results, run
from fastgan.bench.results import Row
from proofs.gpu import __main__ as command
from proofs.gpu import certify, facts, native, parts, tested, timed
from proofs.gpu.parts import ROOT, Part

FACTS: dict[str, str | None] = {"date": "2026-11-23", "device": "NVIDIA H100 80GB HBM3", "driver": None}
FOLDER = "nvidia-h100-80gb-hbm3-2026-11-23"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def isolated(code: str) -> subprocess.CompletedProcess[str]:
    """In a process that has no tyro."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(python("import sys; sys.modules['tyro'] = None\n" + code), capture_output=True, text=True,
                          cwd=ROOT, env=environment, timeout=120)


def test_everything_imports_without_the_command_lines_parser():
    done = isolated("import proofs.gpu.__main__, proofs.gpu.certify, proofs.gpu.native, proofs.gpu.tested\n"
                    "import proofs.gpu.journal, proofs.gpu.timed, fastgan.bench.worker, tests.conftest, tests.test_gpu")
    assert done.returncode == 0, done.stderr


def test_without_a_device_nothing_is_claimed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == "no CUDA device: nothing was tested or measured\n"
    assert not (tmp_path / "results").exists()


def test_interpreted_kernels_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_limits_fit_into_the_time(quick):
    planned = command.parts(quick)
    assert [part.name for part in planned] == ["native", "tests", "certificates", "timings"]
    assert sum(part.limit for part in planned) <= command.SECONDS


@pytest.mark.parametrize(("lacking", "codes", "code", "words"), [
    (["nvcc", "pybind11"], [], 0, "the native engine is left out: no nvcc, no pybind11 here"),
    ([], [0, 0], 0, "fastgan._cpu and fastgan._cuda are built"), ([], [1], 1, "the native engine could not be built"),
    ([], [0, 1], 1, "the native engine could not be built")], ids=["left out", "built", "fails", "cannot be loaded"])
def test_native_engine_is_built_where_it_can_be(lacking, codes, code, words, monkeypatch, capsys):
    commands: list[list[str]] = []
    monkeypatch.setattr(native, "missing", lambda: lacking)
    monkeypatch.setattr(native.subprocess, "call", lambda line, cwd: commands.append(line) or codes[len(commands) - 1])
    assert native.main() == code and len(commands) == len(codes)
    assert capsys.readouterr().out.splitlines()[-1] == words
    assert not commands or commands[0][1:] == ["setup.py", "build_ext", "--inplace"]


def test_what_a_build_needs(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: name if name == "g++" else None)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None if name == "pybind11" else name)
    assert native.missing() == ["nvcc", "pybind11"]


HANGS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"


def test_parts_that_fail_spoil_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "GRACE", 0.5)
    planned = [Part("good", python("print('all | well')"), 60), Part("bad", python("raise SystemExit('no good')"), 60),
               Part("stuck", python(HANGS), 5),
               Part("dead", python("import os; print('now', flush=True); os.abort()"), 60),
               Part("told", [*python("import sys; print(sys.argv)"), "{folder}", "{seconds}"], 60)]
    begin = time.monotonic()
    assert command.examine(tmp_path, FACTS, planned) == 1
    assert time.monotonic() - begin < 30
    folder = tmp_path / FOLDER
    assert json.loads((folder / "facts.json").read_text()) == FACTS
    assert (folder / "stuck.log").read_text() == "begun\n"
    text = (folder / "README.md").read_text()
    for line in ("# NVIDIA H100 80GB HBM3, 2026-11-23", "| good | passed | 0 | all / well |",
                 "| bad | failed | 0 | no good |", "| driver | unknown |"):
        assert line in text
    assert "| stuck | stopped at its limit of 5 s |" in text and "| dead | crashed (SIGABRT) |" in text
    assert f"['-c', '{folder}', '25']" in text
    assert "FAILED: bad, stuck, dead; " in capsys.readouterr().out


def test_whoever_a_part_started_ends_with_it(tmp_path):
    """A grandchild would go on holding the device."""
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {HANGS!r}]).pid)"
    parts.run(Part("parent", python(code), 30), tmp_path, 60)
    status = Path("/proc") / (tmp_path / "parent.log").read_text().split()[0] / "status"
    deadline = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_parts_that_no_longer_fit_are_not_run(tmp_path):
    passed = iter([0.0, 0.0, 545.0])
    planned = [Part("first", python("pass"), 60), Part("second", python("pass"), 60)]
    assert command.examine(tmp_path, FACTS, planned, clock=lambda: next(passed)) == 0
    text = (tmp_path / FOLDER / "README.md").read_text()
    assert "| first | passed |" in text and "| second | not run |  | no time was left |" in text


def test_a_second_folder_of_a_day(tmp_path):
    assert [facts.new_folder(tmp_path, FACTS).name for _ in range(3)] == [FOLDER, f"{FOLDER}-2", f"{FOLDER}-3"]


def test_facts(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = facts.collect()
    assert found["capability"] == "sm_90" and found["torch"] == torch.__version__
    assert facts.collect("abc")["commit"] == "abc"


TESTS = """
    import os, time, pytest, torch
    pytestmark = pytest.mark.gpu
    broken = False
    def wait():
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_available, torch.cuda.synchronize = lambda: True, wait

    def test_good(): pass
    @pytest.mark.parametrize("case", ["one", "lazy r1"])
    def test_wrong(case): assert case == "one", "1 | 2"
    def test_loses_the_device():
        global broken
        broken = True
        wait()
    def test_after_it(): wait()
    def test_kills_its_process(): os.abort()
    def test_hangs(): time.sleep(60)
    def test_skipped(): pytest.skip("no time")
    def test_last(): pass
    """


def test_tests_go_on_after_a_crash(tmp_path, capsys):
    (tmp_path / "test_it.py").write_text(textwrap.dedent(TESTS))
    assert tested.main([str(tmp_path), "--files", str(tmp_path / "test_it.py"), "--patience", "4"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "4 passed, 4 failed, 1 skipped"
    found = {name.partition("::")[2]: test for name, test in tested.read(tmp_path / "tests.jsonl").items()}
    assert [test.outcome for test in found.values()] == [
        "passed", "passed", "failed", "failed", "passed", "failed", "failed", "skipped", "passed"]
    assert found["test_loses_the_device"].why.endswith("CUDA error: an illegal memory access was encountered")
    assert found["test_kills_its_process"].why == "killed its process (-6)"
    assert found["test_hangs"].why == "hung: nothing in 4 s"
    (tmp_path / "results").mkdir()
    command.report.write(tmp_path, FACTS, [], False)
    text = (tmp_path / "README.md").read_text()
    assert "| test_wrong | 1 | 1 |  |  | 0.0 |" in text and "AssertionError: 1 / 2" in text
    assert "| 1 | Skipped: no time |" in text


def test_tests_that_cannot_begin_have_failed(tmp_path, capsys):
    (tmp_path / "test_it.py").write_text("import nothing_of_this_name")
    assert tested.main([str(tmp_path), "--files", str(tmp_path / "test_it.py")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"


def certificate(preset: str, *, device: str) -> dict[str, Any]:
    if preset == "broken":
        raise RuntimeError("CUDA error")
    one = {"measure": "rms", "ours": 1.0, "eager": 2.0, "allowed": 4.0, "used": 0.25}
    check = {"what": "conv 3", "engine": "triton", "precision": "bfloat16", "width": None, "passed": preset == "right",
             "error": "", "worst": "y", "quantities": {"y": one, "grad x": {**one, "used": "inf"}}}
    return {"preset": preset, "passed": preset == "right", "operations": [check], "steps": [check]}


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(lines=lambda found: ["a table"], as_json=json.dumps, verdict=lambda found: "judged")
    monkeypatch.setattr(certify, "certificate", certificate)
    monkeypatch.setattr(certify, "table", table)


@pytest.mark.usefixtures("verifier")
def test_certificates(tmp_path, capsys):
    assert certify.main([str(tmp_path), "right"]) == 0
    assert certify.main([str(tmp_path), "broken", "right", "wrong"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "broken RuntimeError: CUDA error; right judged; wrong judged"
    command.report.write(tmp_path, FACTS, [], False)
    text = (tmp_path / "README.md").read_text()
    assert "| right | triton | bfloat16 | 2 of 2 | inf | conv 3: grad x |" in text
    assert "| wrong | triton | bfloat16 | conv 3 | y |" in text


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[run.Order]:
    """What the suite was asked for; it measures nothing, and finds two contenders."""
    orders: list[run.Order] = []

    def measure(order: run.Order, done: run.Done) -> None:
        orders.append(order)
        row = Row(order.commit, "2026-11-23", "a device", "1", "2", "3", "step/dcgan-64", "textbook", "tf32", 64)
        done.rows += [row.timed([0.2, 0.2, 0.4], 64, None, None, None),
                      Row(**{**vars(row), "contender": "fastgan, triton", "error": "wrong: D has 3 x"})]
        done.late.append("step/dcgan-64, batch 256")
        results.append(done.path, done.rows)
        if order.rounds == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(timed.run, "measure", measure)
    return orders


def test_timings(told, tmp_path, capsys):
    assert timed.main([str(tmp_path), "--device", "cpu", "--batch", "64", "--seconds", "90", "--commit", "abc"]) == 1
    (order,) = told
    assert (order.suites, order.batches, order.minutes, order.commit) == (("step",), [64], 1.5, "abc")
    assert "textbook, NCHW" in order.names and not any("compile" in name or "plan" in name for name in order.names)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 measurements; 1 contenders failed; no time was left for step/dcgan-64, batch 256")
    command.report.write(tmp_path, FACTS, [], True)
    text = (tmp_path / "README.md").read_text()
    assert "| textbook | tf32 | 200 | 200 - 400 | 320 |" in text
    assert "| fastgan, triton | tf32 | wrong: D has 3 x |" in text


def test_timings_that_are_interrupted_are_kept(told, tmp_path, capsys):
    assert timed.main([str(tmp_path), "--device", "cpu", "--rounds", "1"]) == 1
    assert "what was measured is kept" in capsys.readouterr().out
    assert len(results.read(tmp_path / "bench.csv")) == 2
