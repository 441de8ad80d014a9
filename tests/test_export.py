"""Exports, used by processes without fastgan: the same images, with the code of the model card."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fastgan import cli, presets
from fastgan import export as exported
from fastgan.errors import FastganError
from fastgan.export import card
from fastgan.export.formats import FORMATS, TOLERANCE
from fastgan.export.sequential import to_sequential
from fastgan.models import build
from fastgan.models.pretrained import Pretrained
from fastgan.trainer import Trainer, checkpoint
from tests.dcgan_example import named, networks
from tests.preset_cases import CASES

NARROW = {"ngf": 4, "ndf": 4}
SOURCES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    **{name: (name, NARROW, []) for name in CASES},
    "conditional": ("digits", {**NARROW, "nz": 7}, ["cat", "dog", "owl"]),
    "batch statistics": ("digits", {**NARROW, "sample_bn": "batch"}, []),
}
RUN = """
import os, re, sys
import numpy
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: whoever imports one of these gets an ImportError

def run(code, **given):
    exec(code, given := {"numpy": numpy, **given})
    return given["images"]

for folder in sys.argv[2:]:
    os.chdir(folder)
    code = re.search("```python\\n(.*?)```", open("README.md").read(), re.S)[1]
    as_it_is = run(code)
    wrapped = "{}" if "import numpy" in code else "torch.from_numpy({})"
    for name in ("z", "labels"):
        numbers = wrapped.format(f"numpy.load('../{name}.npy')[:count]")
        code = re.sub(f"^{name} = .*$", f"{name} = {numbers}", code, flags=re.M)
    numpy.savez("drawn.npz", shape=as_it_is.shape, images=run(code, count=5), alone=run(code, count=1))
"""


def trained(name: str) -> Pretrained:
    """A generator whose values are not the initial ones and whose images have contrast."""
    preset, changes, classes = SOURCES[name]
    config = presets.get(preset, **changes)
    torch.manual_seed(0)
    generator, _ = build(config.model, CASES[preset].shape, len(classes))
    for parameter in generator.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    source = Pretrained(generator, config.model, CASES[preset].shape, classes, config.data.unit_range)
    for _ in range(10):  # running statistics
        labels = source.labels_in_turn(16)
        generator(source.noise(16), *([] if labels is None else [labels]))
    return source


@pytest.fixture(scope="module", params=FORMATS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every source exported in one format, and used by a process without fastgan and unnecessary packages."""
    form, root = request.param, tmp_path_factory.mktemp(request.param)
    for name in SOURCES:
        source = trained(name)
        assert set(exported.export(source, form, root / name / "export")) > {"README.md", "config.json"}
        np.save(root / name / "z.npy", source.noise.from_seeds(range(5)).numpy())
        np.save(root / name / "labels.npy", np.array([2, 0, 1, 1, 0]))
    missing = {"safetensors": "fastgan", "torch.export": "fastgan,safetensors", "onnx": "fastgan,torch"}[form]
    subprocess.run([sys.executable, "-c", RUN, missing, *(str(root / name / "export") for name in SOURCES)], check=True)
    return root


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_images_without_fastgan(drawn, name):
    source, form = trained(name), next(form for form in FORMATS if drawn.name.startswith(form))
    z, labels = (torch.from_numpy(np.load(drawn / name / f"{given}.npy")) for given in ("z", "labels"))
    ours = source.draw(z, labels if source.classes else None)
    found = np.load(drawn / name / "export" / "drawn.npz")
    within = TOLERANCE[form] * max(1, ours.abs().max())
    assert ours.std() > 0.05
    assert np.abs(found["images"] - ours.numpy()).max() <= within
    # with batch statistics, an image depends on its batch
    assert (np.abs(found["alone"] - ours[:1].numpy()).max() <= within) == (source.model.sample_bn == "running")
    assert found["shape"].tolist() == [16, *source.shape]


def test_onnx_is_of_opset_18_with_batches_of_any_size(tmp_path):
    exported.export(trained("conditional"), "onnx", tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    sizes = {node.name: [d.dim_param or d.dim_value for d in node.type.tensor_type.shape.dim]
             for node in (*model.graph.input, *model.graph.output)}
    assert sizes == {"z": ["batch", 7], "labels": ["batch"], "images": ["batch", 1, 32, 32]}


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the size of PyTorch's example; the current folder is temporary."""
    monkeypatch.chdir(tmp_path)
    return Trainer(tiny(image_size="64", channels=3, steps=2, snap=2, ema=0.9)).fit().relative_to(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    assert cli.main(["export", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastgan: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_export_of_a_run(run, capsys, tmp_path):
    assert cli.main(["export"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [f"{run}/export/safetensors/{name}" for name in ("config.json", "model.safetensors", "README.md")]
    config = json.loads((run / "export" / "safetensors" / "config.json").read_text())
    assert config["shape"] == [3, 64, 64] and config["noise"] == {"kind": "normal", "mean": 0.0, "length": 8}
    card = (run / "export" / "safetensors" / "README.md").read_text()
    for line in ("# digits: a generator of 3x64x64 images", "| steps | 2 of 2, 16 images each |", "| lr | 0.0002 |",
                 "| weights | moving average, decay 0.9 |", "| source | digits |"):
        assert line in card
    assert str(tmp_path) not in card  # nor anything else about the machine
    assert cli.main(["export", str(run), "--format", "safetensors"]) == 0  # replaces the earlier file


def test_the_card_names_a_folder_of_images_without_its_path(tmp_path):
    source = trained("digits")
    config = presets.get("digits", source="folder:/home/jane/secret/cats", data_root="/home/jane",
                         net_g="/home/jane/netG.pth", metrics_weights="/home/jane/weights.pth")
    facts = {"config": config.flat(), "steps": 7,
             "resolved": {"data": "cats: 9 images", "steps": 9, "parameters": {}, "versions": {}}}
    exported.export(source, "safetensors", tmp_path, facts=facts)
    card = (tmp_path / "README.md").read_text()
    assert "| source | folder:cats |" in card and "jane" not in card


def test_the_card_shows_names_as_they_are(tmp_path):
    source = trained("digits")
    source.classes = ["<b>x</b>", "*a* | `b`", "no\udcfftext"]
    facts = {"config": presets.get("digits", source="folder:/x/<i>").flat(), "steps": 7,
             "resolved": {"data": "[c](d): 9 images"}}
    facts["measured"] = [{"images": 100, "data": "a|b", "step": 9,
                          "fakes": {"fid": 12.3456, "is": 2}, "reals": {"is": 3}}]
    text = card.write(source, "torch.export", facts, []).splitlines()
    assert text[-6:] == [r"100 fakes against a\|b, after step 9:", "", "| metric | fakes | reals |", "|---|---|---|",
                         "| fid | 12.35 |  |", "| is | 2 | 3 |"]
    assert "tags: [gan, dcgan, fastgan, conditional]" in text and "pipeline_tag" not in text
    assert "The generator is conditional: the label is the class of the image." in text
    assert r"Labels: 0 is \<b\>x\</b\>, 1 is \*a\* \| \`b\`, 2 is no" + "\udcfftext." in text
    assert r"| source | folder:\<i\> |" in text and r"| data | \[c\](d): 9 images |" in text


def test_a_run_that_was_stopped_before_its_first_step(run, capsys):
    """Its options do not have the detected values yet."""
    options = json.loads((run / "training_options.json").read_text())
    (run / "training_options.json").write_text(json.dumps({"config": options["config"]}))
    assert cli.main(["export", str(run)]) == 0
    card = (run / "export" / "safetensors" / "README.md").read_text()
    assert "| data | unknown |" in card and "| steps | 2 of unknown, 16 images each |" in card


def test_the_examples_networks_take_what_is_written(run, capsys):
    assert cli.main(["export", "--format", "pytorch-example", "--out", "given"]) == 0
    netG, netD = networks(nz=8, ngf=4, ndf=4)
    for network, name in ((netG, "netG"), (netD, "netD")):
        nn.ModuleDict({"main": network}).load_state_dict(torch.load(f"given/{name}.pth", weights_only=True))
    trainer, source = Trainer.resume(run), Pretrained.load(run)
    images = source.draw(z := source.noise.from_seeds([0, 1, 2]))
    assert torch.allclose(netG.eval()(z[:, :, None, None]), images, atol=1e-6)
    logits = trainer.step.discriminator.eval()(images)
    assert torch.allclose(netD.eval()(images).flatten(), torch.sigmoid(logits), atol=1e-6)
    assert "--netG netG.pth --nz 8 --ngf 4 --netD netD.pth --ndf 4" in Path("given/README.md").read_text()
    Path("given/config.json").unlink()
    assert "--out given contains a netG.pth that fastgan did not export" in fails(
        capsys, str(run), "--format", "pytorch-example", "--out", "given")
    checkpoint.write(run / "checkpoints" / "step000009.pt", {"model": 1})
    assert "step000009.pt contains no discriminator; expected a checkpoint of fastgan" in fails(
        capsys, str(run), "--format", "pytorch-example")


def test_the_examples_generator_becomes_a_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(named(networks()[0]), "netG.pth")
    assert cli.main(["export", "netG.pth", "--format", "safetensors"]) == 0
    assert "Unknown, because the weights" in Path("export/safetensors/README.md").read_text()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(("changes", "shape", "classes", "reason"), [
    ({}, (3, 32, 32), [], "images of 32x32"), ({}, (3, 64, 64), ["a", "b"], "--cond"),
    ({"norm_d": "all"}, (3, 64, 64), [], "--norm-d all"), ({"bn_eps": 1e-3}, (3, 64, 64), [], "--bn-eps 0.001"),
    ({"noise": "uniform"}, (3, 64, 64), [], "--noise uniform"),
    ({"noise_mean": 0.5}, (3, 64, 64), [], "--noise-mean 0.5"),
    ({"architecture": "oreilly"}, (1, 28, 28), [], "--architecture oreilly")], ids=lambda value: str(value))
def test_what_the_example_cannot_build_is_refused(tmp_path, changes, shape, classes, reason):
    config = presets.get("digits", **NARROW, **changes)
    generator, _ = build(config.model, shape, len(classes))
    with pytest.raises(FastganError, match=f"the run was trained with {reason}; expected, as in that example"):
        exported.export(Pretrained(generator, config.model, shape, classes, False), exported.PYTORCH_EXAMPLE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_told_in_a_line(run, capsys, monkeypatch):
    error = fails(capsys, "--format", "tflite")
    assert "invalid choice 'tflite' for argument '--format'. Expected one of" in error
    assert all(repr(form) in error for form in exported.FORMAT_NAMES)
    assert "no trained generator in nowhere" in fails(capsys, "nowhere")
    assert (f"--out {run} contains a config.json that fastgan did not export"
            in fails(capsys, str(run), "--out", str(run)))
    assert "--out /proc/nowhere: cannot create this folder" in fails(capsys, "--out", "/proc/nowhere")
    Path("file").touch()
    assert "--out file: cannot create this folder" in fails(capsys, "--out", "file")
    for package, *args in (("onnxruntime", "--format", "onnx"), ("huggingface_hub", "--push", "somebody/digits")):
        monkeypatch.setitem(sys.modules, package, None)
        error = fails(capsys, *args)
        assert f"{package} cannot be imported (" in error and "expected fastgan's extra" in error
    assert not (run / "export").exists()


def test_an_unknown_format_in_python(tmp_path):
    with pytest.raises(FastganError, match="unknown format 'onx'; did you mean onnx"):
        exported.export(trained("digits"), "onx", tmp_path)


def test_a_network_of_ones_own_is_refused(tmp_path):
    source = trained("digits")
    source.generator = nn.Linear(2, 2)
    with pytest.raises(FastganError, match="cannot export a Linear: expected one of DCGANGenerator"):
        exported.export(source, "safetensors", tmp_path)


def test_nothing_is_written_when_the_images_differ(tmp_path, monkeypatch):
    source = trained("digits")
    monkeypatch.setattr(source, "draw", lambda z, labels: torch.zeros(16, 1, 32, 32))
    with pytest.raises(FastganError, match=r"its images differ from fastgan's by .*, more than 2e-05; nothing"):
        exported.export(source, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_generator_itself_is_left_as_it_was():
    source = trained("batch statistics")
    before = {name: tensor.clone() for name, tensor in source.generator.state_dict().items()}
    made = to_sequential(source)
    for parameter in made.parameters():
        parameter.data.zero_()
    assert source.generator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.generator.state_dict().items())


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub that an upload needs; records requests."""

    received: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {"url": "https://huggingface.co/somebody/digits"}
        if "/preupload/" in self.path:
            answer = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                for file in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            answer |= {"commitUrl": f"{answer['url']}/commit/1", "commitOid": "1", "pullRequestUrl": None}
            lines = [json.loads(line) for line in body.splitlines()]
            self.received.update({line["value"]["path"]: base64.b64decode(line["value"]["content"])
                                  for line in lines if line["key"] == "file"})
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "somebody/digits", "siblings": [], "sha": "0"})

    def _answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_push_uploads_what_was_exported(run, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = run / "export" / "safetensors"
    try:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("not for everybody")
        assert cli.main(["export", str(run), "--push", "somebody/digits"]) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert "pushed: https://huggingface.co/somebody/digits/commit/1" in capsys.readouterr().out
    assert Hub.received == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "notes.txt"}
    assert cli.main(["export", str(run), "--push", "somebody/digits"]) == 2  # the server is down
    error = capsys.readouterr().err
    assert "--push somebody/digits: " in error and f"the files are in {out}" in error


@pytest.mark.parametrize("name", ["digits", "oreilly-gan-mnist", "tf-dcgan-mnist", "d2l-gan-gaussian", "conditional"])
def test_an_export_comes_back(tmp_path, name):
    source = trained(name)
    exported.export(source, "safetensors", tmp_path)
    back = exported.load(tmp_path)
    assert (back.shape, back.classes, back.unit_range) == (source.shape, source.classes, source.unit_range)
    z, labels = source.noise.from_seeds(range(5)), source.labels_in_turn(5)
    assert torch.equal(back.noise.from_seeds(range(5)), z)
    images = source.draw(z, labels)
    assert float((back.draw(z, labels) - images).abs().max()) <= 1e-5 * float(images.abs().max())


def test_an_export_is_sampled(run, capsys):
    assert cli.main(["export", str(run)]) == 0
    for name, where in (("one", run), ("other", run / "export" / "safetensors")):
        assert cli.main(["sample", str(where), "--seeds", "0-3", "--out", f"{name}.png"]) == 0
    assert Path("one.png").read_bytes() == Path("other.png").read_bytes()


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("format", "onnx", "its --format is onnx; expected safetensors"), ("range", [0, 2], r"\(0, 2\)"),
    ("layers", [["Sequential", {}]], "layer 'Sequential' with : expected one of ConvTranspose2d"),
    ("layers", [["Linear", {"in_features": 100, "out_features": 2**40}]], "Linear returns"),
    ("layers", [["Linear", {"in_features": 100, "device": "cuda"}]], "layer 'Linear' with in_features, device"),
    ("layers", [], r"its layers return \(100,\); expected \(1, 32, 32\)"), ("layers", 3, "not iterable"),
    ("noise", {}, "'length'"), ("classes", [1], "classes: expected a list of names"),
    ("shape", [1, 32], r"expected \(1, 32\)"), ("shape", [1, 32, -32], "expected sides from 1")])
def test_what_is_no_export_is_refused(tmp_path, key, value, reason):
    exported.export(trained("digits"), "safetensors", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {key: value}))
    with pytest.raises(FastganError, match=f"cannot read the export in .*{reason}") as failed:
        exported.load(tmp_path)
    assert "\n" not in str(failed.value)
