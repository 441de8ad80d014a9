"""Faults around a run: disks, permissions, clocks, devices, a second process."""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan import cli
from fastgan.config import DataConfig
from fastgan.data import open_dataset
from fastgan.errors import FastganError
from fastgan.models.pretrained import Pretrained
from fastgan.trainer import Trainer, checkpoint, lock, run_files
from fastgan.trainer.lock import Lock
from fastgan.trainer.log import RunLog, read_stats
from proofs import kills

PACKAGE = Path(fastgan.__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="permissions, limits and forks of POSIX")


def newest(folder: Path) -> Any:
    return checkpoint.read_newest(folder / "checkpoints")[0]


def edit_options(folder: Path, **values: Any) -> None:
    path = folder / run_files.OPTIONS
    found = json.loads(path.read_text())
    found["config"].update(values)
    path.write_text(json.dumps(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL")
def test_a_killed_run_loses_nothing_but_steps(tmp_path, monkeypatch):
    """One of the runs of `make faults`, killed at its first checkpoint, which does not depend on the speed of the
    machine, and resumed."""
    monkeypatch.setattr(kills, "_moment", lambda draw, life, outdir: (outdir, 0.0))
    told = kills.prove(tmp_path, 1, seed=2)
    assert "killed after" in told[0] and "equal" in told[0]
    assert told[-1].startswith("1 of 1 runs killed") and told[-1].endswith("nothing lost"), told


def test_runs_begin_until_enough_were_killed(tmp_path, monkeypatch):
    """A run that ends before its kill does not count."""
    stories = iter(["ended before its kill", "killed after 1 s", "ended before its kill", "killed after 2 s"])
    monkeypatch.setattr(kills, "_process", lambda arguments, moment: (0, ""))
    monkeypatch.setattr(kills.checkpoint, "read_newest", lambda folder: ({},))
    monkeypatch.setattr(kills, "_run", lambda *given: next(stories))
    assert kills.prove(tmp_path, 2, seed=0)[-1].startswith("2 of 4 runs killed")
    monkeypatch.setattr(kills, "_run", lambda *given: "ended before its kill")
    assert kills.prove(tmp_path, 2, seed=0)[-1].startswith("0 of 6 runs killed")


def test_what_a_kill_must_not_take_is_seen(tiny):
    """The test above can fail."""
    folder = Trainer(tiny()).fit()
    assert kills._check(folder, 6) == 6
    with pytest.raises(kills.Lost, match=r"newest checkpoint is of step 6, previously 7"):
        kills._check(folder, 7)
    state = newest(folder)
    state["rng"][0] ^= 1
    with pytest.raises(kills.Lost, match="is not that of an uninterrupted run"):
        kills._check_end(folder, state)
    (folder / "checkpoints" / "step000006.pt").write_bytes(b"half")
    with pytest.raises(kills.Lost, match="cannot read checkpoint"):
        kills._check(folder, 0)


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tiny, capsys):
    whole, stopped = Trainer(tiny()).fit(), Trainer(tiny())
    stopped.lock.release()
    (stopped.folder / "checkpoints").rmdir()  # empty folders may be removed
    torch.manual_seed(99)
    folder = Trainer.resume(stopped.folder).fit()
    assert "stopped before its first checkpoint and starts from" in capsys.readouterr().err
    assert kills.same(newest(folder), newest(whole))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_checkpoint_does_not_push_out_those_that_can_be_read(tiny, capsys, keep):
    folder = Trainer(tiny(snap=2)).fit()
    (folder / "checkpoints" / "step000006.pt").write_bytes(b"bad")
    Trainer.resume(folder, tiny(snap=2, steps=5, keep=keep)).fit()
    assert "using step000004.pt instead" in capsys.readouterr().err
    kept = [path.stem for path in checkpoint.newest_first(folder / "checkpoints")]
    assert kept == ["step000006", "step000005", "step000004"][: keep + 1]
    assert newest(Trainer.resume(folder, tiny(snap=2, keep=1)).fit())["step"]["steps"] == 6


def test_what_a_kill_left_half_written_is_removed(tiny):
    folder = Trainer(tiny()).fit()
    for path in (folder / ".config.json.1.tmp", folder / "checkpoints" / ".step000009.pt.1.tmp"):
        path.write_bytes(b"half")
    Trainer.resume(folder).lock.release()
    assert not list(folder.rglob("*.tmp"))
    (folder.parent / ".0a1b2c3d.tmp").mkdir()
    run_files.write_options(folder.parent / ".0a1b2c3d.tmp", tiny(), {})
    assert run_files.newest(folder.parent) == folder


def test_runs_that_start_at_once_get_a_folder_each(tiny, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: run_files.create(tmp_path / "runs", tiny()), range(24)))
    assert sorted(path.name for path in made) == [f"{number:05d}-digits" for number in range(24)]
    assert all(run_files.read_options(path) == tiny() for path in made)
    assert sorted((tmp_path / "runs").iterdir()) == sorted(made)


def test_the_newest_run_is_that_of_the_highest_number(tiny, tmp_path):
    for name in ("99999-digits", "100000-digits", "00007-digits"):
        (tmp_path / name).mkdir()
        run_files.write_options(tmp_path / name, tiny(), {})
    assert run_files.newest(tmp_path).name == "100000-digits"
    assert run_files.create(tmp_path, tiny()).name == "100001-digits"


def test_a_folder_is_one_process_at_a_time(tiny):
    trainer = Trainer(tiny(steps=3))
    with pytest.raises(FastganError, match=rf"digits is in use by process {os.getpid()} on .*; expected a run folder"):
        Trainer.resume(trainer.folder)
    folder = trainer.fit()
    first = Trainer.resume(folder, tiny())
    with pytest.raises(FastganError, match="is in use by"):
        Trainer.resume(folder, tiny())
    assert newest(first.fit())["step"]["steps"] == 6
    with pytest.raises(FastganError, match="batch 16 -> 8"):
        Trainer.resume(folder, tiny(batch=8))
    Trainer.resume(folder).lock.release()  # after an error, the lock is free


@posix
def test_a_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held, started, done = Lock(tmp_path), context.Event(), context.Event()
    child = context.Process(target=lambda: (started.set(), done.wait(60)))
    child.start()
    assert started.wait(60)
    held.release()
    again = Lock(tmp_path)  # an error if the child still had it
    done.set()
    child.join()
    again.release()


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch, capsys):
    def none(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    first, second = Lock(tmp_path), Lock(tmp_path)
    told = f"cannot be locked ({os.strerror(number)}): make sure that no other process"
    assert capsys.readouterr().err.count(told) == 2
    assert lock.is_locked(tmp_path) is None
    first.release()
    second.release()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A limit on file sizes simulates a full disk: the write that exceeds it fails in the middle."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("size", [1000, 6000, 20000], ids=["options", "pictures", "checkpoint"])
def test_files_that_cannot_grow(tiny, size):
    whole, folder = Trainer(tiny(steps=6)).fit(), Trainer(tiny(steps=3)).fit()
    trainer = Trainer.resume(folder, tiny(steps=6))
    with files_up_to(size), pytest.raises(FastganError, match=r"^cannot (read or )?write .*: File too large$"):
        trainer.fit()
    assert not list(folder.rglob("*.tmp"))
    assert kills.same(newest(Trainer.resume(folder, tiny(steps=6)).fit()), newest(whole))


@posix
def test_a_large_tensor_that_does_not_fit(tmp_path):
    """Torch's writer would raise "unexpected pos"."""
    with files_up_to(20_000), pytest.raises(FastganError, match=r"^cannot write .*: File too large$"):
        checkpoint.write(tmp_path / "step000001.pt", {"weight": torch.zeros(100_000)})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "runs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path / "runs")]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and only on Linux")
    yield tmp_path / "runs"
    subprocess.run(["umount", "-l", str(tmp_path / "runs")], check=True)


def test_a_disk_that_is_really_full(tiny, small_disk):
    config = tiny(snap=1, steps=60, keep=60)
    with pytest.raises(FastganError, match=r"cannot write .*: the disk is full; free some space and resume"):
        Trainer(config).fit()
    folder = small_disk / "00000-digits"
    left = newest(folder)["step"]["steps"]
    assert left > 0
    for path in folder.glob("fakes*.png"):
        path.unlink()
    for path in checkpoint.newest_first(folder / "checkpoints")[1:]:
        path.unlink()
    assert newest(Trainer.resume(folder, config.replace(keep=1, steps=left + 1)).fit())["step"]["steps"] == left + 1


def streamed(folder: Path, **values: Any) -> dict[str, Any]:
    """Options for 8 images in `folder`, decoded by two threads."""
    folder.mkdir()
    for number in range(8):
        Image.new("L", (16, 16), number).save(folder / f"{number}.png")
    return {"source": f"folder:{folder}", "cache_gb": 1e-9, "workers": 2, "batch": 4, "snap": 100, **values}


@pytest.mark.filterwarnings("ignore:.*the next readable image is used instead")
def test_images_that_are_removed_while_it_trains(tiny, tmp_path):
    trainer = Trainer(tiny(**streamed(tmp_path / "images", steps=100_000)))
    fetch = trainer.feed.fetch

    def remove() -> Any:
        for path in (tmp_path / "images").iterdir():
            path.unlink()
        return fetch()

    trainer.feed.fetch = remove  # type: ignore[method-assign]
    with pytest.raises(FastganError, match=r"^none of 8 images can be used; the first: .*; expected at least one "
                                           r"usable image$"):
        trainer.fit()


def test_a_line_of_which_the_disk_takes_half(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write({"step": 1})

    class Full:
        def write(self, line: bytes) -> int:
            return len(line) // 2

        def close(self) -> None:
            pass

    log._lines.close()
    log._lines = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        log.write({"step": 2})


def test_records_behind_a_broken_line_are_kept(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st{"step": 2}\n\x00\x00\n5\n{"step": "2"}\n{"step": 3}\n'
                     b'{"step": 4, "alerts": {"mode collapse": "words"}}\n{"step": 5, "alerts": {"won": 3}}\n')
    assert [record["step"] for record in read_stats(path)] == [1, 3, 4]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A function that switches to an unprivileged user in a new folder, until the end of the test."""
    monkeypatch.chdir(tmp_path)
    was = os.geteuid()
    if was == 0:
        os.chown(tmp_path, 65534, 65534)
    yield lambda: os.seteuid(65534 if was == 0 else was)
    os.seteuid(was)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


@posix
def test_no_permission(tiny, tmp_path, nobody, capsys):
    run = Trainer(tiny()).fit().relative_to(tmp_path)
    for name in ("images/one", "some/seen", "some/hidden"):
        Path(name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(f"{name}/0.png")
    np.savez("set.npz", images=np.zeros((2, 8, 8), np.uint8))
    for path, mode in ((Path("images"), 0), (Path("some/hidden"), 0), (Path("set.npz"), 0), (run, 0o555),
                       (Path("runs"), 0o555)):
        path.chmod(mode)
    nobody()
    capsys.readouterr()

    def refused(*args: str) -> str:
        assert cli.main(args) == 2
        told = capsys.readouterr().err
        assert told.startswith("fastgan: error: ") and told.count("\n") == 1
        return told

    assert f"cannot write to {run}: Permission denied" in refused("resume", str(run), "--steps", "9")
    assert "--outdir runs: cannot create a run folder there: Permission denied" in refused("train", "--device", "cpu")
    assert "cannot write runs/x.png: Permission denied" in refused("sample", str(run), "--out", "runs/x.png")
    for source in ("folder:images", "folder:images/one", "folder:some", "idx:images/one", "npz:set.npz"):
        assert "Permission denied" in refused("train", "--data", source, "--image-size", "16")


def test_a_file_that_nobody_thought_of(monkeypatch, capsys):
    def fails(args: list[str]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setitem(sys.modules["fastgan.cli.commands"].COMMANDS, "doctor", fails)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "fastgan: error: somewhere: Permission denied\n"
    with pytest.raises(PermissionError):
        cli.main(["doctor", "--debug"])


def test_a_clock_that_does_not_tick(tiny, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    assert read_stats(Trainer(tiny(steps=1)).fit() / "stats.jsonl")[0]["sec_per_step"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_is_gone(tiny, capsys):
    folder = Trainer(tiny(steps=3, precision="fp32")).fit()
    edit_options(folder, device="cuda", precision="tf32", graph="on")
    with pytest.raises(FastganError, match="--device cuda: expected auto or one of --device cpu"):
        Trainer.resume(folder)
    config = run_files.read_options(folder).replace(device="cpu")
    with pytest.raises(FastganError, match=r"precision tf32 on cpu: .*; or fp32"):
        Trainer.resume(folder, config)
    with pytest.raises(FastganError, match=r"--graph on: CUDA graphs need a CUDA device.*expected auto or off"):
        Trainer.resume(folder, config.replace(precision="fp32"))
    written = json.loads((folder / run_files.OPTIONS).read_text())
    written["resolved"].update(device="cuda", precision="tf32")
    (folder / run_files.OPTIONS).write_text(json.dumps(written))
    capsys.readouterr()
    Trainer.resume(folder, config.replace(precision="fp32", graph="auto", steps=6)).fit()
    assert "resumed with changes: device cuda -> cpu, precision tf32 -> fp32; results" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [("fp16", "bf16"), ("bf16", "fp16")])
def test_another_precision(tiny, before, after):
    folder = Trainer(tiny(steps=3, precision=before)).fit()
    Trainer.resume(folder, tiny(precision=after)).fit()
    assert newest(folder)["step"]["steps"] == 6


@pytest.mark.parametrize(("values", "message"), [
    ({"batch": "8"}, "--batch '8': expected a whole number"),
    ({"batch": True}, "--batch True: expected a whole number"),
    ({"loss": "huber"}, "--loss 'huber': expected bce or minimax or "), ({"lr": None}, "--lr None: expected a number"),
    ({"grid": 2**31}, "--grid 2147483648: expected a whole number from 1 to 2^31 - 1"),
], ids=["text", "true", "choice", "none", "large"])
def test_values_of_another_kind(tiny, values, message):
    with pytest.raises(FastganError, match=re.escape(message)):
        tiny(**values).validate()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_files_that_are_something_else(tmp_path, monkeypatch):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "script.eps")
    (tmp_path / "script.eps").rename(tmp_path / "script.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = dict(open_dataset(DataConfig(source=f"folder:{tmp_path}", image_size="16")).skipped)
    assert "cannot identify image file" in found[str(tmp_path / "script.png")]
    assert "40x40 pixels, more than 1000: a decompression bomb?" in found[str(tmp_path / "large.png")]


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    path = tmp_path / "step000001.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    with pytest.raises(FastganError, match="its entries declare 100000000 bytes, more than the file has"):
        checkpoint.read(path)


def test_a_generator_that_would_fill_the_memory(tiny):
    folder = Trainer(tiny()).fit()
    described = json.loads((folder / "config.json").read_text())
    described["model"]["ngf"] = 10**8
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(FastganError, match=r"cannot read the generator in .* main\.0\.weight is 8x8x4x4"):
        Pretrained.load(folder)


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each call, the full name of the function and the keywords with constant values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = {word.arg or "**": getattr(word.value, "value", ...) for word in node.keywords}
            yield ast.unparse(node.func), words


def unpickles(source: str) -> list[str]:
    """Calls in a program that could load a pickle."""
    tree = ast.parse(source)
    found = [f"{name} without weights_only=True" for name, words in calls(tree)
             if name.endswith("torch.load") and not name.startswith("safetensors.")
             and words.get("weights_only") is not True]
    found += [f"{name} with allow_pickle" for name, words in calls(tree) if words.get("allow_pickle")]
    for node in ast.walk(tree):
        # the name of the module may be used for its error
        names = ([alias.name for alias in node.names if (alias.name, alias.asname) != ("pickle", None)]
                 if isinstance(node, ast.Import)
                 else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        found += [f"import {name}" for name in names
                  if name.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle")]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name == "load" for a in node.names):
            found.append("from torch import load")
    return found


@pytest.mark.parametrize("room", ["fastgan", "proofs", "benchmarks", "examples"])
def test_no_pickle_is_loaded(room):
    files = sorted((PACKAGE.parent / room).rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := unpickles(path.read_text()))} == {}


@pytest.mark.parametrize("source", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "import pickle as p",
    "pickle.loads(x)", "import dill",
    "from pickle import loads", "from torch import load"])
def test_a_pickle_would_be_seen(source):
    assert unpickles(source)


def strings() -> list[str]:
    """Every string in the package's sources, with \\0 for inserted values."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0"
                                     for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_the_docs_are_those_of_the_code():
    """Each is quoted as a block of one line, with ... for inserted values."""
    page = (PACKAGE.parent / "docs" / "faults.md").read_text()
    quoted = re.findall(r"^    fastgan: (?:error: )?(.*)$", page, re.MULTILINE)
    known = strings()
    assert len(quoted) > 15
    for message in quoted:
        pattern = re.compile(".*".join(map(re.escape, message.split("..."))), re.DOTALL)
        assert any(pattern.search(text) for text in known), message
