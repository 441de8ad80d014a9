"""The examples run unchanged."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import presets as shown

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(here: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the folder `here`, with the Python of the tests and this fastgan first on its paths."""
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, env=surroundings(**environment))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def surroundings(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **more}


def python(here: Path, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    return run(here, sys.executable, str(EXAMPLES / name), *args)


def needs(*packages: str) -> None:
    """Skip without these packages, but fail in CI, which runs everything."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        told = f"needs {', '.join(missing)}: pip install '.[examples]'"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(told)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_package_is_skipped_but_not_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    needs("json")
    with pytest.raises(outcome, match="needs no_such_package: pip install"):
        needs("json", "no_such_package")


def test_own_loop(tmp_path):
    assert "ring.png" in python(tmp_path, "own_loop.py", "20").stdout
    assert (tmp_path / "ring.png").stat().st_size > 10_000


def test_own_step(tmp_path):
    assert "diversity" in python(tmp_path, "own_step.py", "6").stdout
    assert (tmp_path / "own_step.png").stat().st_size > 1000


def test_own_networks(tmp_path):
    """6 steps; after 5 of the critic, G is updated."""
    assert "critic's distance:" in python(tmp_path, "own_networks.py", "6").stdout
    assert (tmp_path / "own_networks.png").stat().st_size > 1000


def test_weights_and_biases(tmp_path):
    """Offline: a run file is written, and nothing is sent."""
    needs("wandb")
    done = run(tmp_path, sys.executable, str(EXAMPLES / "weights_and_biases.py"), "2", WANDB_MODE="offline",
               PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    assert "run: " in done.stdout
    assert list(tmp_path.glob("runs/*/wandb/offline-run-*/run-*.wandb"))


def test_one_line_makes_the_textbooks_step(tmp_path):
    """Two steps from the same weights on the same images have the same losses."""
    plain, converted = (python(tmp_path, f"dcgan_{name}.py", "2").stdout for name in ("textbook", "one_line"))
    assert plain.startswith("step 2: loss D ")
    told = [[float(word.strip(",\n")) for word in text.split() if "." in word] for text in (plain, converted)]
    assert told[0] == pytest.approx(told[1], abs=0.002)


def test_one_line_is_one_line():
    """Except for its import and the docstrings of the files."""
    texts = [(EXAMPLES / f"dcgan_{name}.py").read_text().split('"""', 2)[2].splitlines()
             for name in ("textbook", "one_line")]
    changed = [line for line in difflib.ndiff(*texts) if line[0] in "+-" and line[1:].strip()]
    assert [line[0] for line in changed] == ["+", "+"]
    assert changed[0] == "+ import fastgan" and "fastgan.convert(netG" in changed[1]


def test_two_lines(tmp_path):
    done = python(tmp_path, "dcgan_two_lines.py", "2")
    assert done.stdout.startswith("step 2: loss D ")
    assert "without CUDA graphs" in done.stderr and "needs a CUDA device" in done.stderr


def test_hugging_face_datasets(tmp_path):
    needs("datasets")
    python(tmp_path, "hugging_face_datasets.py", "1")
    folder = tmp_path / "runs" / "00000-digits"
    assert (folder / "fakes000001.png").is_file()
    assert json.loads((folder / "training_options.json").read_text())["resolved"]["classes"] == list("0123456789")


def test_lightning(tmp_path):
    needs("lightning")
    assert "'loss_d'" in python(tmp_path, "lightning_dcgan.py", "2").stdout


def test_notebook(tmp_path):
    """A Jupyter kernel runs it."""
    needs("nbclient", "ipykernel")
    run(tmp_path, sys.executable, "-c",
        "import sys, nbclient, nbformat\nbook = nbformat.read(sys.argv[1], 4)\nnbformat.validate(book)\n"
        "nbclient.NotebookClient(book, timeout=300).execute()", str(EXAMPLES / "digits.ipynb"), STEPS="2")
    for picture in ("samples.png", "walk.png", "runs/00000-digits/fakes000002.png"):
        assert (tmp_path / picture).is_file()


def write_idx(folder: Path) -> None:
    """Files in the format of Fashion-MNIST, with noise and cyclic labels."""
    for part, count in (("train", 200), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels, header = np.arange(count, dtype=np.uint8) % 10, np.array([0x801, count], ">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def test_notebook_is_stored_with_its_pictures():
    """`jupyter execute --inplace` stores them; progress and times depend on the machine and are removed by hand."""
    book = json.loads((EXAMPLES / "digits.ipynb").read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result"}
    assert ["image/png" in output["data"] for output in outputs] == [False, True, True, True, True]


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_fashion_mnist(tmp_path):
    write_idx(tmp_path)
    run(tmp_path, "sh", str(EXAMPLES / "fashion_mnist.sh"), DATA=str(tmp_path), STEPS="1")
    assert (tmp_path / "ankle-boots.png").is_file()
    assert (tmp_path / "runs" / "00000-dcgan-32" / "fakes000001.png").is_file()


def test_picture_of_presets(tmp_path, monkeypatch):
    """A step of each preset in the picture, with narrow networks."""
    write_idx(tmp_path)
    small = {"ngf": 4, "ndf": 4, "batch": 16, "holdout": 0, "plan": "default", "tensorboard": False}
    monkeypatch.setattr(shown, "SHOWN", [one._replace(options=one.options | small, steps=1) for one in shown.SHOWN])
    monkeypatch.setattr(sys, "argv", ["presets", "--idx", str(tmp_path), "--outdir", str(tmp_path / "runs"), "--out",
                                      str(tmp_path / "presets.png")])
    shown.main()
    assert (tmp_path / "presets.png").stat().st_size > 10_000
    assert len(list((tmp_path / "runs").glob("*/fakes000001.png"))) == len(shown.SHOWN) == 3
