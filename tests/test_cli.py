"""The command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastgan import __version__, cli, presets
from fastgan.cli import commands
from fastgan.errors import FastganError
from fastgan.ops.native import extension
from fastgan.ops.triton import launch
from fastgan.trainer import Trainer, run_files
from fastgan.verify import doctor, machine

SMALL = ["--image-size", "16", "--ngf", "4", "--ndf", "4", "--nz", "8", "--batch", "16", "--snap", "2", "--grid", "4",
         "--no-tensorboard", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr of a command with exit code 2."""
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastgan: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_an_error_is_one_line_whatever_a_file_is_called(capsys, here):
    assert r"/a\nb\x1b[31m: " in fails(capsys, "train", "--data", "folder:a\nb\x1b[31m")


def test_help_is_instant():
    program = "import sys, time; t = time.perf_counter(); from fastgan.cli import main; main(['--help']); " \
              "print(time.perf_counter() - t); print([m for m in ('torch', 'tyro', 'matplotlib') if m in sys.modules])"
    tries = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
             .stdout.splitlines() for _ in range(3)]
    assert min(float(lines[-2]) for lines in tries) < 0.5
    assert tries[0][-1] == "[]"
    assert "usage: fastgan COMMAND" in tries[0][0]


def test_help_of_every_command_is_quick(here):
    """No help imports torch, which takes seconds; each takes 0.5 s on an idle machine."""
    program = """
import sys, time
from fastgan.cli import main
from fastgan.cli.commands import COMMANDS
for command in COMMANDS:
    start = time.perf_counter()
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
    heavy = [name for name in ("torch", "numpy", "matplotlib", "PIL") if name in sys.modules]
    assert not heavy, (command, heavy)
    assert time.perf_counter() - start < 5, command
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here,
                          env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])})
    assert done.returncode == 0, done.stderr
    for command in commands.COMMANDS:
        assert f"usage: fastgan {command}" in done.stdout


def test_help_shows_the_presets_own_values(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "tf-dcgan-mnist", "--help-all"])
    assert "(default: 128)" in capsys.readouterr().out
    assert cli.main(["train", "--preset", "tf-dcgan-mnist", "--help"]) == 0
    short = capsys.readouterr().out
    assert "--batch N             images per step (default: 128)" in short and "--help-all" in short
    assert "--beta1 " not in short and max(map(len, short.splitlines())) <= 80


def test_help_of_resume_shows_what_may_change_in_that_run(capsys, here):
    assert cli.main(["train", *SMALL, "--steps", "2", "--keep", "5"]) == 0
    capsys.readouterr()
    assert cli.main(["resume", "runs/00000-digits", "--help"]) == 0
    out = capsys.readouterr().out
    assert "those of runs/00000-digits" in out and "number of checkpoints to keep (default: 5)" in out
    assert "--steps N" in out and "--lr " not in out


@pytest.mark.parametrize(("args", "words"), [
    (["train", "digits"], "unknown argument 'digits'; did you mean --preset digits?"),
    (["train", "pictures"], "did you mean --data folder:pictures?"),
    (["train", "dgits"], "expected options such as --preset digits"),
    (["train", "--data", "png"], "did you mean folder:DIR, for image files in a folder?"),
    (["train", "--data", "pictures"], "did you mean folder:pictures, for image files"),
    (["interpolate", "--out", "walk.mp4"], "--out walk.mp4: .mp4 is not supported; expected a name without")])
def test_suggestions(args, words, capsys, here):
    Path("pictures").mkdir()
    assert cli.main(args) == 2
    assert words in capsys.readouterr().err


def test_train_resume_sample_interpolate(capsys, here):
    assert cli.main(["train", *SMALL, "--steps", "4"]) == 0
    out = capsys.readouterr().out
    for line in ("pictures:    runs/00000-digits/fakes000004.png", "loss curves: runs/00000-digits/losses.png",
                 "checkpoint:  runs/00000-digits/checkpoints/step000004.pt"):
        assert line in out
        assert Path(line.split()[-1]).is_file()
    assert cli.main(["resume", "runs/00000-digits", "--steps", "6"]) == 0
    assert Path("runs/00000-digits/fakes000006.png").is_file()
    assert cli.main(["sample", "runs/00000-digits", "--seeds", "0,1,4-6", "--out", "grid.png"]) == 0
    assert Image.open("grid.png").size == (3 * 66 + 2, 2 * 66 + 2)
    assert cli.main(["interpolate", "--seeds", "0,5,7", "--frames", "4", "--out", "walk"]) == 0
    assert Image.open("walk.png").size == (4 * 66 + 2, 2 * 66 + 2)
    assert Image.open("walk.gif").n_frames == 2 * (2 * 4 - 1) - 2  # the pause in the middle is one longer frame


def test_a_seed_is_the_same_picture_in_every_grid(here):
    assert cli.main(["train", *SMALL, "--steps", "2"]) == 0
    for seeds in ("5", "0-7"):
        assert cli.main(["sample", "--seeds", seeds, "--columns", "1", "--out", f"{seeds}.png"]) == 0
    tile = Image.open("0-7.png").crop((0, 5 * 66, 68, 6 * 66 + 2))
    assert tile.tobytes() == Image.open("5.png").tobytes()


def test_conditional_samples(capsys, here):
    assert cli.main(["train", *SMALL, "--steps", "2", "--cond"]) == 0
    for label in ("3", "7"):
        assert cli.main(["sample", "--seeds", "0-3", "--label", label, "--out", f"{label}.png"]) == 0
    assert Path("3.png").read_bytes() != Path("7.png").read_bytes()
    capsys.readouterr()
    assert "--label cat: expected one of the classes 0, 1, 2" in fails(capsys, "sample", "--label", "cat")


def test_samples_of_every_class_fill_their_rows(capsys, here):
    """Ten columns: 60 of the default seeds, or all given seeds."""
    assert cli.main(["train", *SMALL, "--steps", "2", "--cond"]) == 0
    for seeds, count in ([], 60), (["--seeds", "0-12"], 13), (["--label", "3"], 64):
        capsys.readouterr()
        assert cli.main(["sample", *seeds]) == 0
        assert capsys.readouterr().out.startswith(f"{count} samples: ")


def test_points_are_plotted(capsys, here):
    assert cli.main(["train", "--preset", "d2l-gan-gaussian", "--steps", "2", "--no-tensorboard"]) == 0
    assert cli.main(["sample", "--out", "points.png"]) == 0
    assert Image.open("points.png").size == (600, 600)
    capsys.readouterr()
    assert "outputs points" in fails(capsys, "interpolate")


def test_dcgan_names_are_understood(here, capsys):
    assert cli.main(["train", "--dry-run", "--nz", "7", "--ngf", "5", "--ndf", "6", "--niter", "3", "--beta1", "0.4",
                     "--lr", "0.001", "--batchSize", "9", "--imageSize", "32", "--manualSeed", "1"]) == 0
    options = json.loads(capsys.readouterr().out.partition("}\n")[0] + "}")
    assert {key: options[key] for key in ("nz", "ngf", "ndf", "epochs", "steps", "beta1", "lr", "batch", "image_size",
                                          "seed")} == {
        "nz": 7, "ngf": 5, "ndf": 6, "epochs": 3.0, "steps": None, "beta1": 0.4, "lr": 0.001, "batch": 9,
        "image_size": "32", "seed": 1}


def test_dry_run_tells_and_writes_nothing(capsys, here):
    assert cli.main(["train", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for fact in ("1797 images, 1x32x32", "3000 (28 an epoch)",
                 "generator 369,600 parameters, discriminator 166,784", " MB at the peak of a step"):
        assert fact in out
    assert not list(here.iterdir())


def test_a_run_begins_with_its_facts(capsys, here):
    """Those of --dry-run, and its folder; a resumed run prints the step at which it continues."""
    args = ["train", *SMALL, "--plan", "default", "--steps", "4"]
    assert cli.main([*args, "--dry-run"]) == 0
    facts = capsys.readouterr().out.split("}\n")[1].splitlines()
    assert cli.main(args) == 0
    begun = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in begun[:6]] == ["data", "networks", "device", "steps", "memory (model)",
                                                          "folder"]
    assert begun[:5] == facts and begun[5].split() == ["folder:", "runs/00000-digits"]
    assert cli.main(["resume", "runs/00000-digits", "--steps", "5"]) == 0
    assert "5 (112 an epoch), of which 4 are done" in capsys.readouterr().out


@pytest.mark.parametrize(("schedule", "args", "told"), [
    ("constant", [], "has completed 4 steps, and its length is 4; "
     "to continue: fastgan resume runs/00000-digits --steps 8"),
    ("constant", ["--steps", "3", "--metrics", "score"], "has completed 4 steps, and its length is 3; to continue"),
    ("cosine", [], "has completed 4 steps, and its length is 4; its learning rate has fallen to 0; expected a new run"),
], ids=["at its end", "fewer steps", "no learning rate left"])
def test_a_finished_run_has_nothing_to_do(capsys, here, schedule, args, told):
    """No step is run and no file is written."""
    def files():
        return {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != ".lock"}

    assert cli.main(["train", *SMALL, "--plan", "default", "--steps", "4", "--lr-schedule", schedule]) == 0
    before = files()
    capsys.readouterr()
    assert cli.main(["resume", "runs/00000-digits", *args]) == 0
    out, err = capsys.readouterr()
    assert f"nothing to do: the run {told}" in " ".join(err.split())
    assert "memory" not in out and "pictures:    runs/00000-digits/fakes000004.png" in out
    assert files() == before


def test_presets_are_listed_and_explained(capsys):
    assert cli.main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(presets.PRESETS)
    assert cli.main(["presets", "tf-dcgan-mnist"]) == 0
    out = capsys.readouterr().out
    assert "strides are 2" in out and "loss = softmax" in out


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["fastgan", __version__] and "verdict          ready to train on the" in out[-1]
    subjects = {line[:17].strip() for line in out}
    assert {"driver", "reference", "native engine", "triton engine", "CUDA graphs", "kernel cache", "data"} < subjects


def test_doctor_says_why_an_engine_cannot_be_used(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = dict(doctor.report())
    assert found["triton engine"] == "not usable: needs a CUDA device" and found["CUDA graphs"] == "no CUDA device"
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert dict(doctor.report())["triton engine"] == "in Triton's interpreter, for tests"


def test_doctor_says_which_packages_are_for_what(monkeypatch):
    versions = machine.version
    monkeypatch.setattr(machine, "version", lambda name: None if name == "onnx" else versions(name))
    found = dict(doctor.report())
    assert found["onnx"] == "not installed; needed for export --format onnx: pip install onnx"
    assert found["verdict"].startswith("ready to train")


def test_doctor_says_what_is_compiled(monkeypatch):
    assert dict(doctor.report())["native engine"] == f"ready (--impl native), compiled for {extension.ISA}"
    monkeypatch.setitem(extension._modules, "cpu", (None, "the native engine was not built (why): install a compiler"))
    found = dict(doctor.report())["native engine"]
    assert found == "not usable: the native engine was not built (why): install a compiler"


def test_doctor_looks_where_caches_would_be(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = dict(doctor.report())
    assert found["kernel cache"] == f"{tmp_path}/file/cache ({tmp_path}/file is not a folder)"
    assert found["verdict"].endswith(f", but kernel cache {tmp_path}/file is not a folder")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "not" / "yet"))
    assert dict(doctor.report())["kernel cache"] == f"{tmp_path}/not/yet (writable)"
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(("answer", "finding"), [
    ("echo 570.86.15", "570.86.15"), ("echo failed >&2; exit 9", "unknown (no output of nvidia-smi)"),
    ("true", "unknown (no output of nvidia-smi)")], ids=["works", "fails", "says nothing"])
@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX script")
def test_doctor_asks_the_driver(monkeypatch, tmp_path, answer, finding):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert dict(doctor.report())["driver"] == finding


def test_doctor_starts_where_packages_are_missing():
    """It reports missing packages, and does not import the trainer."""
    missing = ("tqdm", "torchvision", "matplotlib", "tensorboard", "sklearn", "safetensors", "triton")
    program = (f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
               "from fastgan.cli import main; sys.exit(main(['doctor']))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and " ".join(done.stdout.split()).count(
        "triton engine not usable: Triton cannot be imported"), done.stderr


@pytest.mark.parametrize(("args", "message"), [
    (["trian"], "unknown command 'trian'; did you mean train?"),
    (["train", "--preset", "dcgan64"], "unknown preset 'dcgan64'; did you mean dcgan-64"),
    (["train", "--batc", "3"], "Perhaps you meant: --batch"),
    (["train", "--loss", "gan"], "invalid choice 'gan' for argument '--loss'. Expected one of"),
    (["train", "--batch", "many"], "invalid literal for int() with base 10: 'many'"),
    (["train", "--beta1", "1.5"], "--beta1 1.5: expected a number of at least 0 and below 1"),
    (["train", "--image-size", "64x"], "--image-size 64x: expected a side"),
    (["train", "--data", "folder:nowhere"], "nowhere"),
    (["train", "--image-size", "40"], "image size 40x40: expected sides divisible by 16"),
    (["train", "--outdir", "/proc/nowhere"], "--outdir /proc/nowhere: cannot create a run folder"),
    (["resume"], "no run in runs"),
    (["resume", "nowhere"], "nowhere is not a run folder"),
    (["sample", "nowhere"], "no trained generator in nowhere"),
    (["presets", "mxnet"], "unknown preset 'mxnet'"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_errors_are_one_line(capsys, here, args, message):
    assert message in fails(capsys, *args)


def test_errors_of_sampling(capsys, here, tiny):
    folder = str(Trainer(tiny()).fit())
    capsys.readouterr()
    assert "--seeds 5-3: expected numbers and ranges" in fails(capsys, "sample", folder, "--seeds", "5-3")
    assert "--seeds one:" in fails(capsys, "sample", folder, "--seeds", "one")
    assert "at most 10000" in fails(capsys, "sample", folder, "--seeds", "0-1000000000000")
    assert "--seeds 9999999999999999999: expected numbers" in fails(capsys, "sample", folder, "--seeds", "9" * 19)
    assert "--columns 0: expected 1 or more" in fails(capsys, "sample", folder, "--columns", "0")
    assert "no such folder: gone" in fails(capsys, "sample", folder, "--out", "gone/grid.png")
    assert "expected at least 2 of each" in fails(capsys, "interpolate", folder, "--seeds", "3")
    weights = Path(folder) / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot read the generator" in fails(capsys, "sample", folder)


def test_resume_with_a_changed_option_shows_the_difference(capsys, here):
    assert cli.main(["train", *SMALL, "--steps", "2"]) == 0
    capsys.readouterr()
    assert "batch 16 -> 8, lr 0.0002 -> 0.1" in fails(capsys, "resume", "runs/00000-digits", "--lr", "0.1",
                                                      "--batch", "8")


def test_debug_shows_the_traceback():
    with pytest.raises(FastganError):
        cli.main(["train", "--image-size", "40", "--debug"])


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX pipe")
def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "fastgan", "train", "--help"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_imports_and_trains_without_triton(here):
    program = ("import sys; sys.modules['triton'] = None\n"
               "from fastgan.cli import main; sys.exit(main(sys.argv[1:]))")
    subprocess.run([sys.executable, "-c", program, "train", *SMALL, "--steps", "1"], check=True, capture_output=True)
    assert Path("runs/00000-digits/checkpoints/step000001.pt").is_file()


@pytest.mark.parametrize(("memory", "expected"), [
    (2**12, "smaller networks"), (2**22, "--batch "), (2**40, "more free memory"),
], ids=["networks", "batch", "others"])
def test_out_of_memory_says_what_would_fit(capsys, here, monkeypatch, memory, expected):
    def exhausted(self: Trainer) -> None:
        monkeypatch.setattr("fastgan.memory.limit", lambda: memory)
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(Trainer, "fit", exhausted)
    assert cli.main(["train", *SMALL, "--batch", "512"]) == 2
    told = capsys.readouterr().err
    assert "error: out of memory on cpu at --batch 512: a step needs about " in told
    assert f"expected {expected}" in told


@pytest.mark.parametrize(("args", "place", "expected"), [
    (["train", "--dry-run"], "fastgan.data.open_dataset", "out of memory on cpu at --batch 16"),
    (["evaluate"], "fastgan.metrics.Metrics.learn", "--images 2000: out of memory while computing the metrics"),
], ids=["dry-run", "evaluate"])
def test_out_of_memory_elsewhere(capsys, here, monkeypatch, args, place, expected):
    if args[0] == "evaluate":
        assert cli.main(["train", *SMALL, "--steps", "1"]) == 0
    capsys.readouterr()

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(place, exhausted)
    assert cli.main([*args, *(SMALL if args[0] == "train" else [])]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_names_that_are_no_text(here):
    """In a run's options, and as an output path."""
    assert cli.main(["train", *SMALL, "--steps", "1", "--plan", "default"]) == 0
    run = Path("runs/00000-digits")
    options = json.loads((run / "training_options.json").read_text())
    options["resolved"].update(data="o\udcff", classes=["o\udcff"])
    (run / "training_options.json").write_text(json.dumps(options))
    assert cli.main(["report", str(run)]) == 0 and cli.main(["export", str(run)]) == 0
    assert "| data | o\\udcff |" in (run / "export" / "safetensors" / "README.md").read_text()
    with pytest.raises(FastganError, match="not valid UTF-8"):
        run_files.create(Path("o\udcff"), presets.get("digits"))
    shutil.copytree(run, "r\udcff")
    with pytest.raises(FastganError, match="r\udcff: not valid UTF-8"):
        Trainer.resume(Path("r\udcff"))
    program = [sys.executable, "-m", "fastgan", "sample", str(run), "--out", "o\udcff.png"]
    found = subprocess.run(program, capture_output=True, check=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert found.stdout.endswith(b"o\\udcff.png\n")
