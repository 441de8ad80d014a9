"""The trainer: the files of a run, and that stopping, resuming and errors lose nothing."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastgan import export as exported
from fastgan import pictures, report
from fastgan.config import Config, RunConfig
from fastgan.errors import FastganError
from fastgan.models import build, weights
from fastgan.models.pretrained import Pretrained
from fastgan.ops.tuning import Plan, stored
from fastgan.trainer import Trainer, checkpoint, evaluate, loop, run_facts, run_files
from fastgan.trainer.log import TAGS, RunLog
from proofs.kills import same
from tests.test_data import write_idx, write_images

VARIANTS: dict[str, dict[str, Any]] = {
    "digits": {},
    "flip-rollover": {"flip": True, "last_batch": "rollover", "batch": 500},
    "conditional": {"cond": True},
    "wgan-gp": {"loss": "wgan-gp", "d_steps": 2, "norm_d": "none"},
    "r1": {"r1": 1.0},
    "no-ema": {"ema": 0.0},
    "epsilon-hat": {"preset": "tf-dcgan-mnist", "holdout": 0},
    "gaussian": {"preset": "d2l-gan-gaussian", "source": "gaussian"},
}


def final_state(folder: Path) -> dict[str, Any]:
    return checkpoint.read_newest(Path(folder, "checkpoints"))[0]


def test_run_folder(tiny):
    folder = Trainer(tiny(tensorboard=True)).fit()
    assert folder.name == "00000-digits"
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == {
        "training_options.json", "stats.jsonl", "reals.png", "fakes_init.png", "fakes000003.png", "fakes000006.png",
        "losses.png", "checkpoints", "generator.safetensors", "config.json", ".lock"}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step000003.pt", "step000006.pt"]
    records = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for record in records for value in record.values())
    options = json.loads((folder / "training_options.json").read_text())
    assert options["config"]["batch"] == 16
    assert options["resolved"]["shape"] == [1, 16, 16]
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == {tag for key, tag in TAGS.items() if key in records[0]}
    assert [point.value for point in events.Scalars("Loss/D")] == pytest.approx([r["loss_d"] for r in records])
    assert {"Progress/D(x)", "Progress/D(G(z))", "Progress/diversity"} <= set(events.Tags()["scalars"])
    assert {tag: [point.step for point in events.Images(tag)] for tag in events.Tags()["images"]} == {
        "Samples/generated": [0, 3, 6], "Samples/real": [0]}
    assert Image.open(folder / "fakes000006.png").size == (2 * 66 + 2, 2 * 66 + 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_is_bit_identical(tiny, variant):
    values = dict(VARIANTS[variant])
    config = tiny(values.pop("preset", "digits"), **values)
    whole = Trainer(config).fit()
    part = Trainer(config.replace(steps=3)).fit()
    torch.manual_seed(99)  # the state in between must not matter
    resumed = Trainer.resume(part, config).fit()
    assert resumed == part != whole
    assert same(final_state(part), final_state(whole))

    def told(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key in ("step", "loss_d", "loss_g")} for line in lines]

    assert told(part) == told(whole)
    assert (part / "fakes000006.png").read_bytes() == (whole / "fakes000006.png").read_bytes()


def test_resumed_run_differs_when_the_random_state_is_lost(tiny, monkeypatch):
    """The test above can fail."""
    config = tiny()
    whole = Trainer(config).fit()
    part = Trainer(config.replace(steps=3)).fit()
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    Trainer.resume(part, config).fit()
    assert not same(final_state(part), final_state(whole))


def test_streamed_run_resumes_bit_identically(tiny, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.effect_noise((20, 20), 60 + i).save(tmp_path / "images" / f"{i}.png")
    config = tiny(source=f"folder:{tmp_path / 'images'}", cache_gb=1e-9, workers=1)
    whole, part = Trainer(config).fit(), Trainer(config.replace(steps=3)).fit()
    Trainer.resume(part, config).fit()
    assert same(final_state(part), final_state(whole))


def test_resume_forgets_records_after_the_checkpoint(tiny):
    folder = Trainer(tiny(steps=5, snap=3)).fit()
    (folder / "checkpoints" / "step000005.pt").unlink()
    with (folder / "stats.jsonl").open("a") as stream:
        stream.write('{"step": 6, "loss_')  # as after a kill
    Trainer.resume(folder).fit()
    steps = [json.loads(line)["step"] for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_last_checkpoints_are_kept(tiny):
    folder = Trainer(tiny(snap=1, keep=2)).fit()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step000005.pt", "step000006.pt"]


def test_snapshots_by_time(tiny):
    """At the first log entry after the minutes are over, and never with 0."""
    for minutes, steps in ((1e-9, [2, 4, 6]), (0, [6]), (10, [6])):
        folder = Trainer(tiny(snap=100, log_every=2, snap_minutes=minutes)).fit()
        assert sorted(path.name for path in folder.glob("fakes0*.png")) == [f"fakes{step:06d}.png" for step in steps]


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_signal_saves_and_resume_loses_nothing(tiny, received):
    config = tiny(snap=100)
    whole = Trainer(config).fit()
    trainer = Trainer(config)
    fetch, pending = trainer.feed.fetch, [received]

    def interrupted_once() -> Any:
        if trainer.step.steps == 3 and pending:
            signal.raise_signal(pending.pop())
        return fetch()

    trainer.feed.fetch = interrupted_once  # type: ignore[method-assign]
    folder = trainer.fit()
    assert trainer.stopped_by == received
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step000004.pt"]
    Trainer.resume(folder).fit()
    assert same(final_state(folder), final_state(whole))


def test_signal_while_a_record_is_written(tiny, monkeypatch):
    write = RunLog.write

    def interrupted(log: RunLog, record: dict[str, Any]) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGTERM)
        write(log, record)

    monkeypatch.setattr(RunLog, "write", interrupted)
    folder = Trainer(tiny(snap=100)).fit()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step000002.pt"]
    assert json.loads((folder / "stats.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_signal_before_the_first_step(tiny, monkeypatch):
    monkeypatch.setattr(loop.TrainingLoop, "run", lambda self, run=loop.TrainingLoop.run: (
        signal.raise_signal(signal.SIGTERM), run(self)))
    config = tiny(snap=100)
    folder = Trainer(config).fit()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step000000.pt"]
    monkeypatch.undo()
    Trainer.resume(folder).fit()
    assert same(final_state(folder), final_state(Trainer(config).fit()))


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM to processes")
@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_sigterm_to_a_process_group(tmp_path, kind):
    """As torchrun, schedulers and service managers send it: also to the workers, if data are streamed."""
    command = [sys.executable, "-m", "fastgan", "train", "--image-size", "16", "--ngf", "4", "--steps", "100000",
               "--log-every", "1", "--no-tensorboard", "--plan", "default", "--outdir", str(tmp_path / "runs")]
    if kind == "streamed":
        for number in range(16):
            Image.new("L", (16, 16), number).save(tmp_path / f"{number}.png")
        command += ["--data", f"folder:{tmp_path}", "--cache-gb", "1e-9", "--workers", "2", "--batch", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        stats, deadline = tmp_path / "runs" / "00000-digits" / "stats.jsonl", time.monotonic() + 120
        while not (stats.exists() and stats.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        out, told = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert told.count("SIGTERM: saving after this step") == 1 and "Traceback" not in told
    assert "to continue: fastgan resume" in out
    checkpoint.read_newest(stats.parent / "checkpoints")


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "not a checkpoint": lambda content: b"hello",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_gives_way_to_the_one_before(tiny, capsys, damage):
    folder = Trainer(tiny()).fit()
    before, newest = folder / "checkpoints" / "step000003.pt", folder / "checkpoints" / "step000006.pt"
    good = checkpoint.read(before)
    newest.write_bytes(damage(newest.read_bytes()))
    state, path, problems = checkpoint.read_newest(folder / "checkpoints")
    assert path == before and same(state, good)
    assert len(problems) == 1 and str(newest) in problems[0]
    assert Trainer.resume(folder).step.steps == 3
    assert "using step000003.pt instead" in capsys.readouterr().err


def test_all_checkpoints_damaged(tiny):
    folder = Trainer(tiny()).fit()
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(FastganError, match=r"step000006\.pt.*step000003\.pt"):
        Trainer.resume(folder)


def test_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"step": Evil()}, tmp_path / "step000001.pt")
    with pytest.raises(FastganError, match="cannot read checkpoint"):
        checkpoint.read(tmp_path / "step000001.pt")
    assert not (tmp_path / "executed").exists()


def test_full_disk_keeps_the_last_good_checkpoint(tiny, monkeypatch):
    folder = Trainer(tiny()).fit()
    good = final_state(folder)
    trainer = Trainer.resume(folder, tiny(steps=9))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FastganError, match="the disk is full"):
        trainer.fit()
    monkeypatch.undo()
    assert same(final_state(folder), good)
    assert not list(folder.rglob("*.tmp"))


BREAKS = {
    "parameter": (lambda g, d: g.main[3].weight.data[0, 0].fill_(torch.inf), "parameter generator.main.3.weight"),
    "activation": (lambda g, d: d.main[0].weight.data.fill_(1e38), "output of discriminator.main.0 (Conv2d)"),
}


@pytest.mark.parametrize(("damage", "culprit"), BREAKS.values(), ids=BREAKS)
def test_non_finite_loss_stops_and_names_the_tensor(tiny, damage, culprit):
    trainer = Trainer(tiny(snap=2, ndf=64))
    fetch = trainer.feed.fetch

    def broken_after_three() -> Any:
        if trainer.step.steps == 3:
            damage(trainer.step.generator, trainer.step.discriminator)
        return fetch()

    trainer.feed.fetch = broken_after_three  # type: ignore[method-assign]
    with pytest.raises(FastganError, match="at step 4; first non-finite tensor: ") as caught:
        trainer.fit()
    assert culprit in str(caught.value)
    saved = checkpoint.read(trainer.folder / "nonfinite000004.pt")
    assert saved["real"].shape == (16, 1, 16, 16) and saved["z"].shape == (16, 8)
    assert final_state(trainer.folder)["step"]["steps"] == 2


def test_resume_with_changed_options_shows_a_difference_per_key(tiny):
    folder = Trainer(tiny()).fit()
    with pytest.raises(FastganError, match=r"batch 16 -> 8, ngf 4 -> 8, lr 0.0002 -> 0.001"):
        Trainer.resume(folder, tiny(lr=1e-3, batch=8, ngf=8))


def test_resume_on_other_data(tiny, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.effect_noise((16, 16), 50 + i).save(tmp_path / "images" / f"{i}.png")
    config = tiny(source=f"folder:{tmp_path / 'images'}")
    folder = Trainer(config).fit()
    Image.effect_noise((16, 16), 9).save(tmp_path / "images" / "3.png")
    with pytest.raises(FastganError, match="images has changed since"):
        Trainer.resume(folder, config)


def test_checkpoint_of_another_network(tiny):
    folder, other = Trainer(tiny()).fit(), Trainer(tiny(ngf=8)).fit()
    (other / "checkpoints" / "step000006.pt").replace(folder / "checkpoints" / "step000009.pt")
    with pytest.raises(FastganError, match=r"step000009\.pt does not match the options of the run: "):
        Trainer.resume(folder)


@pytest.mark.parametrize("kind", ["folder:data", "idx:data", "npz:data.npz"])
def test_a_run_goes_on_in_another_working_directory(tiny, tmp_path, monkeypatch, kind):
    """Also with options that were relative to the first one."""
    places = [tmp_path / name for name in ("first", "second")]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[0])
    write_idx(Path("data"), "train", 32, size=16)
    write_images(Path("data"), 32, size=(16, 16))
    np.savez("data.npz", images=np.zeros((32, 16, 16), np.uint8))
    channels = 3 if kind == "folder:data" else 1
    netG, _ = build(tiny().model, (channels, 16, 16))
    torch.save(netG.state_dict(), "netG.pth")
    given = {"source": kind, "net_g": "netG.pth", "metrics_weights": "weights.pth", "data_root": "root"}
    config = tiny(steps=3, **given)
    folder = Trainer(config).fit()
    stored = run_files.read_options(folder).flat()
    source, _, name = kind.partition(":")
    assert {key: stored[key] for key in given} == {
        "source": f"{source}:{places[0] / name}", "net_g": str(places[0] / "netG.pth"), "data_root": str(
            places[0] / "root"), "metrics_weights": str(places[0] / "weights.pth")}
    monkeypatch.chdir(places[1])
    assert Trainer.resume(folder, run_files.read_options(folder).replace(steps=6)).fit() == folder
    assert checkpoint.newest_step(folder / "checkpoints") == 6

    data = places[0] / name
    data.rename(places[0] / "moved")
    with pytest.raises(FastganError, match=re.escape(f"{source}:{data}: no such f")):
        Trainer.resume(folder)
    (places[0] / "moved").rename(data)

    run_files.write_options(folder, config, {})  # as an older version stored it
    with pytest.raises(FastganError, match=re.escape(f"{source}:{places[1] / name}: no such f")):
        Trainer.resume(folder)
    monkeypatch.chdir(places[0])
    assert Trainer.resume(folder, config.replace(steps=7)).fit() == folder


def test_a_run_keeps_its_channels(tiny, tmp_path):
    """If the files allow a choice, and an earlier version has chosen differently."""
    write_images(tmp_path / "mixed", 127, size=(16, 16))
    Image.new("RGBA", (16, 16)).save(tmp_path / "mixed" / "rgba.png")
    config = tiny(steps=3, source=f"folder:{tmp_path / 'mixed'}")
    folder = Trainer(config.replace(channels=4)).fit()
    run_files.write_options(folder, config, run_files.read_resolved(folder))
    Trainer.resume(folder, config.replace(steps=4)).fit()
    assert checkpoint.newest_step(folder / "checkpoints") == 4 and Pretrained.load(folder).shape == (4, 16, 16)
    assert run_files.read_options(folder).data.channels is None


def test_paths_that_mean_the_same_everywhere_stay(tiny):
    config = tiny(data_root="~/data", source="npz:~/a.npz", metrics_weights="/w.pth", plan="auto")
    assert run_files.absolute(config) == config


class Place:
    """A path of another class."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Place])
def test_paths_are_words_or_objects(tiny, tmp_path, kind):
    """In each public function that takes a path."""
    np.savez(tmp_path / "data.npz", images=np.zeros((128, 16, 16), np.uint8), labels=np.arange(128) % 2)
    netG, netD = build(tiny().model, (1, 16, 16))
    torch.save(netG.state_dict(), tmp_path / "netG.pth")
    torch.save(netD.state_dict(), tmp_path / "netD.pth")
    stored.export(kind(tmp_path / "plan.json"), Plan(), stored.machine(torch.device("cpu")))
    assert stored.read(kind(tmp_path / "plan.json"), torch.device("cpu"))[0].choices == {}
    given = {"outdir": "runs", "net_g": "netG.pth", "net_d": "netD.pth", "plan": "plan.json", "data_root": "root"}
    config = tiny(source=f"npz:{tmp_path / 'data.npz'}", steps=3, **{key: kind(tmp_path / name)
                                                                    for key, name in given.items()})
    assert config == Config.from_flat(config.flat()) and RunConfig(outdir=kind(tmp_path)).outdir == str(tmp_path)
    folder = Trainer(config).fit()
    assert run_files.newest(kind(tmp_path / "runs")) == folder
    assert run_files.read_options(kind(folder)) == run_files.absolute(config)
    assert Trainer.resume(kind(folder), config.replace(steps=4)).fit() == folder
    found = evaluate.evaluate(kind(folder), "score", images=100)
    assert evaluate.measured(kind(folder)) == [json.loads(json.dumps(found))]
    assert checkpoint.read(kind(folder / "checkpoints" / "step000004.pt")).keys() == final_state(kind(folder)).keys()

    source = Pretrained.load(kind(folder))
    (tmp_path / "saved").mkdir()
    source.save(kind(tmp_path / "saved"))
    exported.export(source, "safetensors", kind(tmp_path / "out"), facts=run_facts.facts(kind(folder)))
    assert exported.is_export(kind(tmp_path / "out")) and not exported.is_export(kind(folder))
    z = source.noise.from_seeds([0])
    for again in (Pretrained.load(kind(tmp_path / "saved")), exported.load(kind(tmp_path / "out"))):
        torch.testing.assert_close(again.draw(z), source.draw(z), rtol=1e-4, atol=1e-5)
    discriminator = run_facts.discriminator(kind(folder))
    weights.put(discriminator, netD, kind(tmp_path / "netD.pth"))
    assert weights.read(kind(tmp_path / "netG.pth")).keys() == netG.state_dict().keys()

    assert report.is_run(kind(folder)) and report.write(kind(folder)) == folder / "report.html"
    assert report.write(kind(folder), kind(tmp_path / "page.html")) == tmp_path / "page.html"
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    pictures.save(pictures.grid(images), kind(tmp_path / "a.png"))
    pictures.animation(images, kind(tmp_path / "a.gif"))
    pictures.scatter(kind(tmp_path / "b.png"), cloud=torch.zeros(2, 2))
    pictures.loss_curves([{"step": 1, "loss_d": 1.0}], kind(tmp_path / "c.png"))
    assert all((tmp_path / name).is_file() for name in ("a.png", "a.gif", "b.png", "c.png"))


def train_with_another_default(tiny, **values: Any) -> Path:
    torch.set_default_dtype(torch.float64)
    try:
        return Trainer(tiny(**values)).fit()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("values", [{"cond": True, "flip": True, "metrics": "score", "metrics_images": 100},
                                    {"preset": "d2l-gan-gaussian", "source": "gaussian"}], ids=["digits", "gaussian"])
def test_a_run_is_in_float32_whatever_the_default_dtype_is(tiny, values):
    states = [final_state(make(tiny, **values)) for make in (
        lambda tiny, **values: Trainer(tiny(**values)).fit(), train_with_another_default)]
    for state in states:
        assert {t.dtype for t in state["step"]["generator"].values() if t.is_floating_point()} == {torch.float32}
    assert same(*states)


def test_no_run_to_resume(tmp_path):
    with pytest.raises(FastganError, match="is not a run folder"):
        Trainer.resume(tmp_path)


@pytest.mark.parametrize(("values", "message"), [
    ({"batch": 2000}, "--batch 2000"),
    ({"batch": 1}, "--batch 1 with batch normalization"),
    ({"batch": 1797 // 4, "last_batch": "keep"}, "the last batch of 1797 would be 1 image"),
    ({"epochs": math.inf}, "--epochs inf"),
    ({"lr": math.nan}, "--lr nan"),
    ({"seed": 2**63}, "--seed 9223372036854775808"),
    ({"image_size": "28"}, "image size 28x28"),
    ({"device": "gpu"}, "--device gpu: expected auto or one of"),
    ({"lr": -1.0}, "--lr -1.0: expected a number above 0"),
    ({"loss": "softmax"}, "expected softmax with tf, whose discriminator has two outputs"),
    ({"preset": "tf-dcgan-mnist", "holdout": 0, "cond": True}, "--cond with --architecture tf"),
    ({"preset": "oreilly-gan-mnist", "holdout": 0, "nz": 64}, "--nz 64"),
    ({"preset": "oreilly-gan-mnist", "holdout": 0, "image_size": "32"}, "data of shape 1x32x32"),
    ({"source": "gaussian", "cond": True}, "--cond: gaussian has no labels"),
    ({"source": "gaussian"}, "--architecture gaussian"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_options_that_cannot_be(tiny, tmp_path, values, message):
    with pytest.raises(FastganError) as caught:
        Trainer(tiny(values.pop("preset", "digits"), **values))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_learns_the_gaussian(tmp_path, tiny):
    """Dive into Deep Learning 17.1 with its number of epochs: the covariance becomes that of the data, A'A."""
    folder = Trainer(tiny("d2l-gan-gaussian", source="gaussian", batch=8, steps=None, epochs=20, snap=2500,
                          log_every=100)).fit()
    source = Pretrained.load(folder)
    points = source.draw(source.noise.from_seeds(range(4000)))
    expected = torch.tensor([[1.01, 1.95], [1.95, 4.25]])
    assert (torch.cov(points.T) - expected).norm() / expected.norm() < 0.25
    assert (points.mean(0) - torch.tensor([1.0, 2.0])).norm() < 0.6


def test_side_by_side_pictures(tiny):
    folder = Trainer(tiny(pictures="side-by-side")).fit()
    assert Image.open(folder / "fakes000003.png").size == (2 * (2 * 66 + 2) + 16, 2 * 66 + 2 + 32)


def test_full_disk_while_logging(tiny, monkeypatch):
    trainer = Trainer(tiny())

    def full(self: Any, record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastgan.trainer.log.RunLog.write", full)
    with pytest.raises(FastganError, match=rf"^cannot read or write {trainer.folder}: the disk is full"):
        trainer.fit()


def test_a_file_that_cannot_be_read_is_named(tiny, monkeypatch):
    def unreadable(self: Any, record: Any) -> None:
        raise PermissionError(13, "Permission denied", "weights.pt")

    monkeypatch.setattr("fastgan.trainer.log.RunLog.write", unreadable)
    with pytest.raises(FastganError, match=r"^cannot read or write weights\.pt: Permission denied$"):
        Trainer(tiny()).fit()
