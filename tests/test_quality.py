"""KID on a classifier's features, and the table of groups of runs."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import quality
from fastgan.trainer import Trainer


def test_kid():
    """The double sums of the definition; 0 in expectation for equal distributions, positive for others."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 3), torch.randn(5, 3) + 1
    kernel = lambda a, b: (float(a.double() @ b.double()) / 3 + 1) ** 3  # noqa: E731
    expected = (sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 42
                + sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
                - 2 * sum(kernel(a, b) for a in x for b in y) / 35)
    assert quality.kid(x, y) == pytest.approx(expected)
    same, other = torch.randn(2, 1000, 8), torch.randn(1000, 8) + 0.5
    assert abs(quality.kid(*same)) < 0.02 < 0.1 < quality.kid(same[0], other)


def test_table(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))  # for an untrained classifier
    monkeypatch.setattr(quality, "IMAGES", 100)
    monkeypatch.setattr("fastgan.metrics.classifier.STEPS", 5)
    runs = [str(Trainer(tiny(steps=2, seed=seed)).fit()) for seed in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["quality", f"a={runs[0]},{runs[1]}", f"b={runs[1]}"])
    quality.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| 100 fakes each | runs | confidence | diversity | KID on features |"
    assert rows[0].startswith("| a | 2 | 0.") and rows[0].count("±") == 3
    assert rows[1].startswith("| b | 1 | 0.") and "±" not in rows[1]
