"""The best checkpoint of a run by its metrics, and two runs side by side."""

from __future__ import annotations

import pytest
import torch

from fastgan import cli
from fastgan.metrics.merit import best, better, merit
from fastgan.metrics.metrics import Metrics
from fastgan.models.pretrained import Pretrained
from fastgan.report import run as report
from fastgan.trainer import Trainer, checkpoint

SCORE = {"score_confidence": 0.5, "score_diversity": 0.8, "score_classes": 10.0, "score_novelty": 1.0}


@pytest.mark.parametrize(("values", "expected"), [
    ({"fid": 20.0, "kid": 0.1, **SCORE}, ("fid", -20.0)), ({"kid": 0.1, "is": 2.0}, ("kid", -0.1)),
    ({"is": 2.0, **SCORE}, ("is", 2.0)), (SCORE, ("score_confidence", 0.4)), ({"loss_d": 1.0}, None)], ids=str)
def test_what_decides(values, expected):
    assert merit(values) == (None if expected is None else (expected[0], pytest.approx(expected[1])))


def test_best_record():
    records = [{"step": 1, "fid": 30.0}, {"step": 2, "loss_d": 1.0}, {"step": 3, "fid": 20.0}, {"step": 4, "fid": 20.0}]
    assert best(records) is records[2] and best(records[1:2]) is None
    assert best([*records, {"step": 5, **SCORE}]) == {"step": 5, **SCORE}, "other metrics since a resume: they decide"


def test_better_value():
    first, second = {"fid": 3.0, **SCORE}, {"fid": 2.0, **SCORE, "score_confidence": 0.4, "score_novelty": 0.5}
    assert [better(name, first, second) for name in ("fid", "score_confidence", "score_classes", "score_novelty",
                                                     "kid")] == [1, 0, -1, -1, -1]


def test_run_keeps_its_best_checkpoint(tiny, monkeypatch):
    """--keep does not remove it, it draws the same images as when it was measured, and the report names it."""
    scores, drawn = iter([0.3, 0.9, 0.4]), []

    def measure(self: Metrics, source: Pretrained) -> dict[str, float]:
        drawn.append(source.draw(source.noise.from_seeds([0])))
        return {"fid": 1 - next(scores)}

    monkeypatch.setattr(Metrics, "learn", lambda self: None)
    monkeypatch.setattr(Metrics, "doubts", lambda self: [])
    monkeypatch.setattr(Metrics, "of", measure)
    folder = Trainer(tiny(steps=6, snap=2, keep=1, metrics="score")).fit()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.pt", "step000006.pt"]
    assert checkpoint.read(folder / "checkpoints" / "best.pt")["step"]["steps"] == 4
    kept = Pretrained.load(folder / "best")
    assert torch.equal(kept.draw(kept.noise.from_seeds([0])), drawn[1])
    assert "Best snapshot, with fid 0.1: step 4, stored in checkpoints/best.pt" in report.write(folder).read_text()


def test_two_runs_side_by_side(tiny, monkeypatch, capsys):
    values = iter([{**SCORE}, {**SCORE, "score_confidence": 0.6}])
    monkeypatch.setattr(Metrics, "learn", lambda self: None)
    monkeypatch.setattr(Metrics, "doubts", lambda self: [])
    monkeypatch.setattr(Metrics, "of", lambda self, source: next(values))
    monkeypatch.setattr(Metrics, "of_reals", lambda self: {"score_confidence": 0.9})
    first, second = Trainer(tiny(steps=2)).fit(), Trainer(tiny(steps=2, seed=1)).fit()
    other = Trainer(tiny(steps=2, image_size="32")).fit()
    capsys.readouterr()
    assert cli.main(["evaluate", str(first), "--against", str(second), "--metrics", "score", "--images", "100"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == [first.name, second.name, "reals"]
    assert next(line for line in out if line.startswith("score_confidence")).split()[1:4] == ["0.5", "0.6*", "0.9"]
    assert next(line for line in out if line.startswith("score_classes")).split()[1:3] == ["10", "10"]
    assert out[-2:] == [f"metrics: {folder / 'metrics.json'}" for folder in (first, second)]
    values = iter([SCORE, SCORE])
    assert cli.main(["evaluate", str(first), "--against", str(other), "--metrics", "score", "--images", "100"]) == 2
    assert "expected two runs on the same images" in capsys.readouterr().err
