"""A run folder of version 0.1.0 (tests/v0.1.0): it can be resumed and sampled, and its plan is rejected in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import cli

OLD = Path(__file__).parent / "v0.1.0"  # fastgan train --preset dcgan-64 --data digits --image-size 16 --steps 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_is_resumed(run, capsys):
    """With a new plan: that of another version of the kernels is measured again, which a message reports."""
    assert cli.main(["resume", str(run), "--steps", "5"]) == 0
    assert "plan.json is not a plan (its format is not that of this version)" in capsys.readouterr().err
    before, after = (torch.load(run / "checkpoints" / f"step00000{step}.pt", weights_only=True) for step in (3, 5))
    assert before.keys() == after.keys()


def test_its_generator_draws_the_same(run):
    (run / "drawn.png").unlink()
    assert cli.main(["sample", str(run), "--out", str(run / "drawn.png")]) == 0
    with Image.open(run / "drawn.png") as ours, Image.open(OLD / "drawn.png") as theirs:
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_its_plan_is_refused_in_a_line(run, capsys):
    assert cli.main(["train", "--preset", "digits", "--steps", "1", "--plan", str(run / "plan.json"), "--outf",
                     str(run / "new")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastgan: error: ") and "is not a plan (its format is not that of this version)" in last
