"""Damaged files: a reader reads them or raises a one-line error; it never crashes, hangs, or fills the memory.

Damaged files are valid files whose bytes are changed, cut or duplicated, or the content below checksums. The examples
are the same in each run; FASTGAN_FUZZ=1000 draws as many new ones for each reader.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan import export as exported
from fastgan import presets
from fastgan.config import DataConfig
from fastgan.data import open_dataset
from fastgan.errors import FastganError
from fastgan.models import DCGANGenerator
from fastgan.models.pretrained import Pretrained
from fastgan.ops.tuning import Choice, Plan, Problem, Trial, stored, table
from fastgan.trainer import Trainer, checkpoint, run_files
from fastgan.trainer.log import read_stats

NEW = int(os.environ.get("FASTGAN_FUZZ", "0"))
ROOM = 2**30  # maximum bytes that a reader of these small files may allocate
SECONDS = 120  # maximum CPU time
CPU = torch.device("cpu")
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF]
VALUES: list[Any] = [None, True, 0, -1, 1.5, 2**31, 2**63, 10**400, float("nan"), float("inf"), "", "x", "é\n", [], [0],
                     {}, {"x": 1}, [[[]]]]


def fuzzed(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=NEW or examples, derandomize=not NEW, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """At most `ROOM` additional bytes of memory, and `SECONDS` of CPU time."""
    if sys.platform != "linux":
        yield
        return
    import resource

    def hang(number: int, frame: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} s of the processor's time")

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, hang)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS + NEW)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def named(read: Callable[[], Any]) -> str:
    """The one-line error of a reader for a damaged file, or "" if it can be read. Fails if memory runs out."""
    try:
        read()
    except FastganError as error:
        told = str(error)
        assert told and "\n" not in told and "memory" not in told.replace("memory_", ""), told
        return told
    return ""


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few changed bytes, and perhaps cut, duplicated, or with an insertion."""
    data = bytearray(content)
    at = st.integers(0, max(0, len(data) - 1))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(at | st.integers(0, min(40, len(data) - 1)))  # headers are at the start
        data[place] = draw(st.sampled_from(EXTREMES) | st.integers(0, 255))
    match draw(st.sampled_from(["", "", "cut", "double", "insert", "word"])):
        case "cut":
            del data[draw(at):]
        case "double":
            start = draw(at)
            data[start:start] = data[start: start + draw(st.integers(1, 64))]
        case "insert":
            start = draw(at)
            data[start:start] = draw(st.binary(max_size=16))
        case "word":
            start = draw(at)
            data[start: start + 4] = struct.pack("<I", draw(st.sampled_from([0, 2**16, 2**31 - 1, 2**31, 2**32 - 1])))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which something is removed or replaced."""
    if draw(st.integers(0, 5)) == 0 or not isinstance(value, (dict, list)) or not value:
        return draw(st.sampled_from(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = draw(st.sampled_from(keys)), value.copy()
    if draw(st.integers(0, 3)) == 0:
        del copy[key]
    else:
        copy[key] = draw(altered(value[key]))
    return copy


def json_damage(value: Any) -> st.SearchStrategy[bytes]:
    """JSON text with an altered structure, damaged bytes, or very deep nesting."""
    text = json.dumps(value).encode()
    return altered(value).map(lambda one: json.dumps(one).encode()) | damage(text) | st.just(b"[" * 100_000)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx(place, pack):
    folder, suffix = place / f"idx-{pack.__name__}", ".gz" if pack is gzip.compress else ""
    folder.mkdir()
    images, labels = (folder / f"train-{name}-ubyte{suffix}" for name in ("images-idx3", "labels-idx1"))

    @fuzzed(75)
    @given(damage(idx(noise(5, 6, 6))), damage(idx(noise(5) % 10)), st.booleans(), st.data())
    def check(image_content, label_content, inside, data):
        for path, content in ((images, image_content), (labels, label_content)):
            path.write_bytes(pack(content) if inside else data.draw(damage(pack(idx(noise(5, 6, 6))))))
        named(lambda: open_dataset(DataConfig(source=f"idx:{folder}", image_size="8")))

    check()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in members.items():
            made.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return stream.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
                         ids=["stored", "deflate", "bzip2", "lzma"])
def test_npz(place, compression):
    path, good = place / f"set{compression}.npz", (npy(noise(5, 6, 6)), npy(np.arange(5)))

    def packed(images: bytes, labels: bytes) -> bytes:
        return archive({"images.npy": images, "labels.npy": labels}, compression)

    @fuzzed(60)
    @given(st.builds(packed, damage(good[0]), damage(good[1])) | damage(packed(*good)))
    def check(content):
        path.write_bytes(content)
        named(lambda: open_dataset(DataConfig(source=f"npz:{path}", image_size="8")))

    check()


@pytest.mark.filterwarnings("ignore:.*skipped .* image files")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_image_folder(place, kind):
    folder, stream = place / kind, io.BytesIO()
    folder.mkdir()
    Image.fromarray(noise(20, 20, 3)).save(stream, kind)
    Image.fromarray(noise(20, 20, 3)).save(folder / "good.png")

    @fuzzed(50)
    @given(damage(stream.getvalue()))
    def check(content):
        (folder / "image.png").write_bytes(content)
        data = open_dataset(DataConfig(source=f"folder:{folder}", image_size="16"))
        assert len(data) + len(data.skipped) == 2
        assert all("\n" not in reason for _, reason in data.skipped)

    check()


def test_plans(place, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(place / "cache"))
    facts, path = stored.machine(CPU), place / "plan.json"
    problem = Problem("conv_forward", "cpu", 1, "float32", False, (2, 3, 8, 8), True, (4, 3, 4, 4), "float32",
                      stride=(2, 2), padding=(1, 1))
    plan = Plan({problem: Choice("reference", {"reference": Trial(1.0, 0.5), "native/gemm": Trial(failure="wrong")})},
                step={"reference": 1.0, "plan": 0.5})
    stored.export(path, plan, facts)
    assert stored.remember(facts, plan) == ""
    kept, cached = json.loads(path.read_text()), json.loads(stored.place(facts).read_text())

    @fuzzed(100)
    @given(json_damage(kept), json_damage(cached))
    def check(pinned, remembered):
        path.write_bytes(pinned)
        named(lambda: list(table.lines(stored.read(path, CPU)[0])))
        stored.place(facts).write_bytes(remembered)
        known, trouble = stored.recall(facts)
        list(table.lines(Plan(known.choices)))
        assert "\n" not in trouble

    check()


def tiny(outdir: Path) -> Any:
    return presets.get("digits", source="gaussian", architecture="gaussian", nz=2, batch=16, steps=2, snap=1, grid=4,
                       tensorboard=False, outdir=str(outdir), device="cpu", plan="default")


@pytest.fixture(scope="module")
def run(place) -> Path:
    return Trainer(tiny(place / "runs")).fit()


def test_options(run):
    path = run / run_files.OPTIONS
    good = path.read_bytes()

    @fuzzed(150)
    @given(json_damage(json.loads(good)))
    def check(content):
        path.write_bytes(content)
        named(lambda: (run_files.read_options(run), run_files.read_resolved(run)))

    check()
    path.write_bytes(good)


def test_log(place):
    path, lines = place / "stats.jsonl", b'{"step": 1, "loss_d": 0.5}\n{"step": 2, "loss_d": NaN}\n'

    @fuzzed(100)
    @given(damage(lines) | json_damage({"step": 1, "loss_d": 0.5}))
    def check(content):
        path.write_bytes(content)
        assert all(isinstance(record["step"], int) for record in read_stats(path))

    check()


def test_checkpoint_bytes(run, place):
    path, good = place / "step000001.pt", (run / "checkpoints" / "step000002.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    below = damage(members[pickled]).map(lambda content: archive({**members, pickled: content}))

    @fuzzed(125)
    @given(damage(good) | below)
    def check(content):
        path.write_bytes(content)
        named(lambda: checkpoint.read(path))

    check()


def test_checkpoint_state(run):
    """Valid checkpoints with other content."""
    path, kept = run / "checkpoints" / "step000003.pt", checkpoint.read(run / "checkpoints" / "step000002.pt")

    @fuzzed(60)
    @given(altered(kept))
    def check(state):
        checkpoint.write(path, state)
        named(lambda: Trainer.resume(run))

    check()
    path.unlink()


@pytest.mark.parametrize("form", ["saved", "exported"])
def test_generator(place, form):
    """In a run folder, and as written by `fastgan export`."""
    folder, copy = place / form, place / f"{form}-damaged"
    model = presets.get("digits", nz=8, ngf=4).model
    source = Pretrained(DCGANGenerator(8, 4, 1, 16).eval(), model, (1, 16, 16), [], False)
    if form == "saved":
        folder.mkdir()
        source.save(folder)
    else:
        exported.export(source, "safetensors", folder)
    load = Pretrained.load if form == "saved" else exported.load
    shutil.copytree(folder, copy)
    (stored_weights,) = folder.glob("*.safetensors")
    config, weights = json.loads((folder / "config.json").read_text()), stored_weights.read_bytes()
    tensors = safetensors.torch.load(weights)
    other = st.sampled_from(sorted(tensors)).flatmap(lambda name: st.sampled_from(
        [torch.zeros(3), tensors[name].double(), tensors[name].to(torch.int8), tensors[name][None]]).map(
            lambda tensor: safetensors.torch.save({**tensors, name: tensor})))

    @fuzzed(100)
    @given(json_damage(config), damage(weights) | other, st.booleans(), st.booleans())
    def check(described, weighed, first, second):
        (copy / "config.json").write_bytes(described if first else json.dumps(config).encode())
        (copy / stored_weights.name).write_bytes(weighed if second else weights)

        def draw() -> None:
            source = load(copy)
            source.draw(source.noise.from_seeds([0, 1]), source.labels_in_turn(2))
        named(draw)

    check()
