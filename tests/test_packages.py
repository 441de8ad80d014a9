"""The requirements of an installation, and the functions that work without the optional packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastgan import extras

ROOT = Path(__file__).parents[1]
MODULES = ("tyro", "torchvision", "sklearn", "matplotlib", "tensorboard", "torch_fidelity", "onnx", "onnxscript",
           "onnxruntime", "huggingface_hub")
TRAINING = """
import numpy, torch, fastgan
networks = fastgan.models.DCGANGenerator(8, 4, 1, 16), fastgan.models.DCGANDiscriminator(4, 1, 16)
metrics = fastgan.GANStep(*map(fastgan.convert, networks), nz=8)(torch.randn(4, 1, 16, 16))
assert all(value.isfinite() for value in metrics.values())
numpy.savez("images.npz", images=numpy.eye(16, dtype=numpy.uint8)[:, :, None, None] * numpy.full((16, 1), 255, "uint8"))
fastgan.Trainer(fastgan.presets.get("dcgan-64", data="npz:images.npz", image_size="16", batch=8, ngf=4, ndf=4, steps=1,
                                    plan="default", device="cpu")).fit()
"""


def optional_dependencies() -> dict[str, list[str]]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {extra: [name.split(">")[0] for name in names] for extra, names in project["optional-dependencies"].items()}


def without_extras(program: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that cannot import a package of any extra."""
    head = f"import sys; sys.modules.update(dict.fromkeys({MODULES!r}))\n"
    return subprocess.run([sys.executable, "-c", head + program, *args], cwd=cwd, capture_output=True, text=True)


def test_messages_have_the_extras_of_the_project():
    found = optional_dependencies()
    assert {extra: tuple(found[extra]) for extra in extras.EXTRAS} == extras.EXTRAS
    assert found["all"] == [f"fastgan[{','.join(extras.EXTRAS)}]"]


def test_convert_step_and_runs_need_no_extra(tmp_path):
    done = without_extras(TRAINING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "losses.png: matplotlib cannot be imported" in done.stderr
    assert "TensorBoard curves: tensorboard cannot be imported" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "generator.safetensors").is_file() and not (folder / "losses.png").exists()


@pytest.mark.parametrize(("program", "told"), [
    ("from fastgan.cli import main; sys.exit(main(['presets']))", "the command line: tyro"),
    ("import fastgan; fastgan.data.open_dataset(fastgan.presets.get('digits').data)", "--data digits: sklearn"),
    ("import fastgan; fastgan.pictures.loss_curves([], 'losses.png')", "a plot: matplotlib"),
], ids=["cli", "data", "plots"])
def test_a_missing_extra_is_named(program, told, tmp_path):
    done = without_extras(program, cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode and f"{told} cannot be imported" in last and "expected fastgan's extra" in last
