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

from benchmarks import rows, step, turns
from benchmarks.contenders import on_gpu
from fastgan import presets
from fastgan.train import graph
from proofs.gpu import __main__ as command
from proofs.gpu import certify, facts, native, parts, tested
from proofs.gpu.parts import ROOT, Part
from tests.simulated import SimulatedCuda

FACTS: dict[str, str | None] = {"date": "2026-11-23", "device": "NVIDIA H100 80GB HBM3", "driver": None}
FOLDER = "nvidia-h100-80gb-hbm3-2026-11-23"
CPU = torch.device("cpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def isolated(code: str) -> subprocess.CompletedProcess[str]:
    """In a process that has no tyro."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(python("import sys; sys.modules['tyro'] = None\n" + code), capture_output=True, text=True,
                          cwd=ROOT, env=environment, timeout=120)


def test_everything_imports_without_the_command_lines_parser():
    done = isolated("import proofs.gpu.__main__, proofs.gpu.certify, proofs.gpu.native, proofs.gpu.tested\n"
                    "import proofs.gpu.journal, benchmarks.step, benchmarks.turns, tests.conftest, tests.test_gpu")
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


class Device(SimulatedCuda):
    """With what the benchmark asks beyond graphs; `lost` is what it says once it cannot go on."""

    lost = ""

    def synchronize(self, device: Any = None) -> None:
        if self.lost:
            raise RuntimeError(self.lost)

    def memory_allocated(self) -> int:
        return 2**20

    def max_memory_allocated(self) -> int:
        return 6 * 2**20

    def reset_peak_memory_stats(self) -> None: ...

    def empty_cache(self) -> None: ...


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    simulated = Device()
    monkeypatch.setattr(graph, "cuda", simulated)
    monkeypatch.setattr(turns, "cuda", simulated)
    return simulated


def measured(contenders: list[turns.Contender], **options: Any) -> dict[str, rows.Row]:
    found = turns.measure(contenders, 4, CPU, rounds=2, steps=2, deadline=0.0, **options)
    return {row.contender: row for row in found}


def small() -> list[turns.Contender]:
    return on_gpu(presets.get("dcgan-64", ngf=2, ndf=2), CPU)


@pytest.mark.usefixtures("device", "one_thread")
def test_timings(tmp_path):
    """All of them but the kernels, whose bfloat16 the interpreter refuses: which is a line, and spoils nothing."""
    found = measured(small())
    assert len(found) == 20
    for name, row in found.items():
        if "triton" in name:
            assert row.reason and row.ms == 0
        else:
            assert not row.reason and row.ms > 0 and row.ratio > 0 and row.rounds == 2 and row.peak_mb == 5, name
    path = tmp_path / "timings.csv"
    for _ in range(2):
        rows.write(path, found.values())
    kept = rows.read(path)
    assert [row.contender for row in kept] == [*found] * 2
    command.report.write(tmp_path, FACTS, [], True)
    text = (tmp_path / "README.md").read_text()
    assert "| textbook: channels_last, autocast bf16 |" in text and "1.00 x as fast (tf32)" in text
    assert "computes it wrongly" in text


def fake(name: str, make: Any, engine: str = "torch") -> turns.Contender:
    return turns.Contender(name, engine, "bf16", "base", make)


@pytest.mark.usefixtures("device")
def test_timings_without_a_number():
    found = measured([fake("base", lambda: lambda real: (1.0, 2.0)),
                      fake("nan", lambda: lambda real: (1.0, float("nan"))),
                      fake("halted", lambda: lambda real: {"finite": torch.zeros(())}),
                      fake("left out", lambda: lambda real: (1.0, 2.0), "triton")], without={"triton": "not today"})
    assert {name: row.reason for name, row in found.items()} == {
        "base": "", "nan": "a loss or a gradient is not finite (ArithmeticError)",
        "halted": "a loss or a gradient is not finite (ArithmeticError)", "left out": "not today"}


@pytest.mark.usefixtures("one_thread")
def test_timings_of_a_graph_that_was_given_up(device):
    device.refusal = "CUDA error: operation failed"
    found = measured(small()[1:4])
    assert found["fastgan, reference: graph"].reason.startswith("no graph: CUDA error: operation failed")
    assert not found["fastgan, reference: by hand"].reason


def test_timings_when_the_device_is_lost(device, monkeypatch, capsys):
    def breaks() -> Any:
        device.lost = "CUDA error: an illegal memory access was encountered"
        raise RuntimeError(device.lost)

    called: list[list[str]] = []
    monkeypatch.setattr(step, "on_gpu", lambda device: [fake("base", lambda: lambda real: (1.0, 2.0)),
                                                        fake("ours", breaks, "triton")])
    monkeypatch.setattr(step.turns, "measure",
                        lambda *args, _measure=turns.measure, **options: _measure(*args[:2], CPU, **options))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(step.subprocess, "call", lambda line, cwd: called.append(line) or 0)
    monkeypatch.setattr(sys, "argv", ["step", "--device", "cuda", "--batch", "4", "8"])
    assert step.main() == 1
    line = called[0]
    assert line[line.index("--batch") + 1:line.index("--rounds")] == ["4", "8"]
    assert line[line.index("--without") + 1] == ("triton: ours: CUDA error: an illegal memory access was encountered "
                                                 "(RuntimeError)")
    device.lost = ""
    monkeypatch.setattr(sys, "argv", ["step", "--device", "cuda", *line[5:]])
    assert step.main() == 1
    out = capsys.readouterr().out
    assert "| ours | ours: CUDA error: an illegal memory access" in out
    assert out.splitlines()[-1] == "2 measurements; 1 contenders failed or were left out"


def test_benchmark_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["step", "--device", "cuda"])
    assert step.main() == 0
    assert capsys.readouterr().out == "no CUDA device: nothing was measured\n"
