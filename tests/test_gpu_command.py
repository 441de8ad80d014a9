"""`python -m proofs.gpu` without a GPU: every part on a simulated device, and its results after faults."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proofs.gpu import __main__ as command
from proofs.gpu import folder, jobs, rows, tables
from proofs.gpu.child import Worker
from proofs.gpu.rows import Row, read
from proofs.gpu.stand_in import DEVICE

ROOT = Path(__file__).parents[1]
PTXSIM = (ROOT / os.environ.get("PTXSIM", "../shared/tools/ptxsim")).resolve()
SIMULATED = (PTXSIM / "ptxsim.py").is_file()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched as Linux has them")

TOOLS = {
    "nvcc": """
import pathlib, subprocess, sys
given = sys.argv[1:]
if "--list-gpu-arch" in given:
    print("compute_90")
elif "-shared" in given:
    assert "-gencode=arch=compute_100,code=sm_100" not in given
    source = pathlib.Path("stub.c")
    source.write_text('#include <Python.h>\\nstatic struct PyModuleDef stub = {PyModuleDef_HEAD_INIT, "_cuda"};\\n'
                      'PyMODINIT_FUNC PyInit__cuda(void) { return PyModule_Create(&stub); }\\n')
    import sysconfig
    subprocess.run(["/usr/bin/env", "gcc", "-shared", "-fPIC", "-I" + sysconfig.get_path("include"), "stub.c", "-o",
                    given[given.index("-o") + 1]], check=True)
elif "-o" in given:
    pathlib.Path(given[given.index("-o") + 1]).touch()
""",
    "fake-cc": "import pathlib, sys; pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).touch()",
    "ncu": """
import subprocess, sys
given = sys.argv[1:]
if "--version" in given:
    sys.exit()
assert given[:2] == ["--clock-control", "none"]
subprocess.run(given[given.index(sys.executable):], check=True)
print('==PROF== a line of its own\\n"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"')
print('"0","convolve_kernel","(8, 1, 1)","Duration","us","12.5"\\n"0","convolve_kernel","(8, 1, 1)","Other","","1"')
""",
    "compute-sanitizer": """
import subprocess, sys
if "--version" not in sys.argv:
    subprocess.run(sys.argv[sys.argv.index(sys.executable):], check=True)
    print("========= ERROR SUMMARY: 0 errors")
""",
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replacements for the commands of CUDA."""
    place = tmp_path_factory.mktemp("tools")
    for name, text in TOOLS.items():
        (place / name).write_text(f"#!{sys.executable}\n{text}")
        (place / name).chmod(0o755)
    return place


def environment(tools: Path, **more: str) -> dict[str, str]:
    """The environment of a rehearsal, in which tyro cannot be imported."""
    (tools / "tyro.py").write_text("raise ImportError('not installed here')\n")
    path = os.pathsep.join(filter(None, (more.pop("PYTHONPATH", ""), str(tools), str(ROOT))))
    return {**os.environ, "FASTGAN_STAND_IN": "proofs.gpu.stand_in", "PTXSIM": str(PTXSIM), "OMP_NUM_THREADS": "1",
            "PATH": f"{tools}:{os.environ['PATH']}", "FASTGAN_CC": str(tools / "fake-cc"), **more, "PYTHONPATH": path}


def start(out: Path, tools: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "proofs.gpu", "--seconds", "900", "--out", str(out), *arguments],
                            cwd=ROOT, stdout=(out.parent / "log").open("wb"), stderr=subprocess.STDOUT,
                            env=environment(tools, **more))


def rehearse(out: Path, tools: Path, *arguments: str, **more: str) -> list[Row]:
    process = start(out, tools, *arguments, **more)
    process.wait(600)
    return read(out / folder.CSV)


def in_tar(out: Path, work: Path) -> list[Row]:
    work.mkdir(exist_ok=True)
    folder.unpack(out / folder.TAR, work)
    return read(work / folder.CSV)


@pytest.fixture(scope="module", autouse=True)
def rehearsal(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A rehearsal of every part, with an engine that crashes its process and one that hangs. It runs in the background
    during the tests that do not need it."""
    out = tmp_path_factory.mktemp("rehearsal") / "out"
    with start(out, tools, FASTGAN_FAULT="crash native,hang reference") as process:
        yield out, process
        process.kill()


@pytest.fixture(scope="module")
def rehearsed(rehearsal: tuple[Path, subprocess.Popen[bytes]]) -> tuple[Path, list[Row]]:
    out, process = rehearsal
    process.wait(900)
    return out, read(out / folder.CSV)


def test_pages_have_a_place_for_the_tables():
    page = ROOT / "docs" / "performance.md"
    before = page.read_text()
    assert tables.BEGIN in before
    tables.update((page,))
    assert page.read_text() == before


FEW = {"FASTGAN_PARTS": "prepare passes", "FASTGAN_ENGINES": "reference native"}


def test_wrong_results_and_a_lost_device(tmp_path, tools):
    found = rehearse(tmp_path / "out", tools, "--only", "correctness",
                     **{**FEW, "FASTGAN_FAULT": "wrong reference,lose native"})
    wrong = {row.result for row in found if row.engine == "reference" and row.quantity == "of the allowed error"}
    assert wrong == {"wrong"}
    lost = [row for row in found if row.engine == "native" and row.result == "failed"]
    assert len(lost) == 2 and all("illegal memory access" in row.note for row in lost)
    assert in_tar(tmp_path / "out", tmp_path / "tar") == found


OLD = sorted(Path(os.__file__).parent.glob("ensurepip/_bundled/setuptools-65*.whl"))


@pytest.mark.parametrize(("fault", "result", "note"), [
    ("no nvcc", "not run", "no nvcc here"), ("no pybind11", "not run", "no pybind11 here"),
    pytest.param("setuptools 65", "ok", "", marks=pytest.mark.skipif(not OLD, reason="Python brings no such wheel"))])
def test_machine_that_lacks_something(fault, result, note, tmp_path, tools):
    """csrc/ is not compiled, and a row has the reason; an old setuptools can compile it."""
    more = {"PYTHONPATH": str(OLD[0])} if fault == "setuptools 65" else {"FASTGAN_FAULT": fault}
    done = subprocess.run([sys.executable, "-m", "proofs.gpu.child", "nvcc", "prepare", str(tmp_path / "rows"),
                           str(tmp_path / "journal")], cwd=ROOT, capture_output=True, text=True,
                          env=environment(tools, FASTGAN_CACHE=str(tmp_path), **more))
    (row,) = read(tmp_path / "rows")
    assert (row.engine, row.result, row.note) == ("native", result, note), done.stdout + done.stderr
    assert len(list(tmp_path.glob("_cuda*"))) == (result == "ok")


def test_full_disk(tmp_path, tools):
    """The reserve frees space for the rows."""
    found = rehearse(tmp_path / "out", tools, "--only", "correctness",
                     **{**FEW, "FASTGAN_PARTS": "passes", "FASTGAN_FAULT": "full disk"})
    assert len([row for row in found if row.quantity == "of 2 repeats differ"]) > 8
    assert in_tar(tmp_path / "out", tmp_path / "tar") == found
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [folder.README, folder.CSV, folder.TAR]


def test_killed_at_a_random_moment(tmp_path, tools):
    out = tmp_path / "out"
    process = start(out, tools, "--only", "correctness", **{**FEW, "FASTGAN_PARTS": "passes"})
    deadline = time.monotonic() + 120
    while len(read(out / folder.CSV)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(random.uniform(0, 1.5))
    known = read(out / folder.CSV)
    time.sleep(3)  # the tar is updated within a second, on an idle machine
    process.kill()
    process.wait()
    kept = in_tar(out, tmp_path / "tar")
    assert len(known) >= 3 and set(known) <= set(kept) <= set(read(out / folder.CSV))


def test_time_that_is_planned_is_there():
    for only, seconds in (("correctness", 100), ("speed", 380), (None, 480)):
        parts = jobs.plan(only, 16)
        assert sum(part.expected for part in parts) + command.CLOSING <= seconds
        assert len({part.name for part in parts}) == len(parts)
        assert command.timeline(parts)[-1].endswith("in all")


def test_parts_that_no_longer_fit_are_not_run(tmp_path):
    part = jobs.Part("late", 60, 60, "never begun", [jobs.Job("facts")])
    assert command.examine([part], tmp_path / "out", tmp_path / "work", 10) == 0
    (row,) = read(tmp_path / "out" / folder.CSV)
    assert (row.name, row.result, row.note) == ("late", "not run", "no time was left")


def test_batch_goes_on_without_the_contender_that_killed_it(tmp_path):
    """Items may be nested: the outer item is run again, without the inner one."""
    (tmp_path / "journal").write_text("begin batch 64\nbegin a\nend a\nbegin b\n")
    assert jobs.running(tmp_path / "journal") == "b"
    jobs._mark(tmp_path / "journal", "bad", "b")
    assert jobs.running(tmp_path / "journal") == "batch 64"
    worker, done = Worker("steps", tmp_path / folder.CSV, tmp_path / "journal", {}), []
    assert worker.is_bad("b") and not worker.is_bad("a")
    worker.each([("batch 64", lambda: done.append("batch 64")), ("b", lambda: done.append("b"))])
    assert done == ["batch 64"] and jobs.running(tmp_path / "journal") == ""


def test_rows_are_whole_or_not_there(tmp_path):
    path = tmp_path / folder.CSV
    rows.append(path, Row("a", "one", value="1"))
    with path.open("a") as file:
        file.write("a,half of a r")
    rows.append(path, Row("a", 'two, "quoted"\nlines'))
    rows.append(path, Row("a", "three | columns"))
    rows.append(path, Row("a", "one", value="2"))
    assert [(row.name, row.value) for row in read(path)] == [
        ("one", "2"), ('two, "quoted" lines', ""), ("three | columns", "")]
    assert all(line.count("|") == 7 for line in "\n".join(folder.lines(read(path))).splitlines() if "three" in line)


def test_unpacking_stays_in_its_folder(tmp_path):
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.add(tmp_path / "evil", "../outside")
        tar.add(tmp_path / "evil", "inside/good")
    folder.unpack(tmp_path / "tar", tmp_path / "to")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "tar"] == ["evil", "good"]


def test_arguments(capsys: Any):
    assert command.main(["--dry-run"]) == 0
    assert "sanitizer" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([])


def test_every_part_has_found_something(rehearsed):
    out, found = rehearsed
    log = (out.parent / "log").read_text()
    quantities = {(row.part, row.quantity) for row in found}
    expected = {("prepare", "compiled"), ("passes", "of the allowed error"), ("passes", "bits"), ("steps", "step"),
                ("replays", "of 71 tensors differ"), ("auto", "chosen"), ("auto", "8 steps"), ("compiled", "step"),
                ("profile", "of a step"), ("counters", "Duration"), ("sanitizer", "ERROR SUMMARY: 0 errors"),
                ("compile", "compiled")}
    if SIMULATED:
        expected |= {("prepare", "kernels"), ("passes", "same bits as triton"), ("compile", "kernels"),
                     ("gemm", "rate"), ("tiles", "usual tile")}
    assert expected <= quantities, (expected - quantities, log[-3000:])
    names = [part.name for part in jobs.plan(None, 2)]
    assert [row.name for row in found if row.part == "parts"] == list(dict.fromkeys(names)), log[-3000:]
    bad = [row for row in found if row.result in rows.BAD and (row.part, row.engine) not in (
        ("passes", "native"), ("passes", "reference"), ("others", "native"), ("others", "reference"))]
    assert bad == []
    assert {"fastgan, native, CUDA graph", "PyTorch, channels_last, autocast, CUDA graph"} <= {
        row.name for row in found if row.part == "steps"}
    assert {row.engine for row in found if row.part == "gemm"} == (
        {"library", "pointers", "descriptors"} if SIMULATED else {""})


def test_what_crashes_or_hangs_costs_its_item_and_twice_its_engine(rehearsed):
    _, found = rehearsed
    for engine, result, note in (("native", "crashed", "SIGSEGV"), ("reference", "hung", "killed")):
        lost = [row for row in found if row.part == "passes" and row.engine == engine and row.result == result]
        assert len(lost) == 2 and all(note in row.note for row in lost)
        assert len({row.name for row in lost}) == 2
        done = [row for row in found if row.part == "passes" and row.engine == engine
                and row.quantity == "of 2 repeats differ" and row.result == "ok"]
        assert len(done) == 4 and not {row.name for row in done} & {row.name for row in lost}
        assert any("what was left, after 2 lost" in row.note for row in found
                   if row.engine == engine and row.result == "not run")


def test_what_is_taken_away(rehearsed, tmp_path):
    out, found = rehearsed
    files = sorted(path.name for path in out.iterdir())
    assert len(files) <= 8 and {folder.CSV, folder.README, folder.TAR, "tuning.json"} <= set(files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in files)
    assert in_tar(out, tmp_path) == found
    assert json.loads((tmp_path / "tuning.json").read_text())["problems"]
    assert "ncu.csv" in {path.name for path in tmp_path.iterdir()}
    text = (out / folder.README).read_text()
    assert text.startswith(f"# {DEVICE}, 20") and "crashed: SIGSEGV" in text
    with tarfile.open(out / folder.TAR) as tar:
        assert any(name.endswith(".log") for name in tar.getnames())


@pytest.mark.skipif(not SIMULATED, reason="no PTX simulator, no tiles")
def test_tiles_are_a_file_that_can_be_committed(rehearsed):
    found = json.loads((rehearsed[0] / "tiles.json").read_text())
    own = json.loads((ROOT / "fastgan/ops/triton/tiles/sm_90.json").read_text())
    assert found["programs"] == own["programs"] and found["rules"][-len(own["rules"]):] == own["rules"]
    assert len(found["rules"]) > len(own["rules"])


def test_import_fills_a_folder_and_the_tables(rehearsed, tmp_path):
    out, found = rehearsed
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(f"before\n{tables.BEGIN}\n{tables.END}\nafter\n")
    results = tmp_path / "docs" / "results" / "gpu"
    tables.update((page,), results)
    assert page.read_text() == f"before\n{tables.BEGIN}\n{tables.NOTHING}\n{tables.END}\nafter\n"
    place = folder.bring_in(out / folder.TAR, results)
    assert re.fullmatch(r"a-stand-in-9000-\d{4}-\d\d-\d\d", place.name) and read(place / folder.CSV) == found
    assert folder.bring_in(out / folder.TAR, results) == place and read(place / folder.CSV) == found
    assert {path.name for path in place.iterdir()} >= {folder.README, "tuning.json"}
    tables.update((page,), results)
    text = page.read_text()
    row = next(row for row in found if row.name == "fastgan, native, CUDA graph" and row.note.startswith("median"))
    assert f"| fastgan, native, CUDA graph | {float(row.value):.3g} |" in text
    assert f"(results/gpu/{place.name}/README.md)" in text and tables.NOTHING not in text
    assert text.startswith("before\n") and text.endswith(f"{tables.END}\nafter\n")
