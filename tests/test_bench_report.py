"""Tables and plots of benchmark results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import report, results
from benchmarks.results import Row
from tests.test_bench import row

CHAIN = {"PyTorch, NCHW": 1000.0, "+ channels_last": 800.0, "+ fused Adam": 1000.0, "+ fastgan's tuning": 500.0}


def timed(implementation: str, ms: float, workload: str = "step/dcgan-64", batch: int = 64) -> Row:
    return row(implementation, workload=workload, batch=batch, p20=ms / 1.1, p50=ms, p80=ms / 0.9,
               images_per_s=1e3 * batch / ms)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of every kind."""
    path = results.prepare(tmp_path)
    results.append(path, [timed(name, ms * batch / 64, batch=batch) for batch in (32, 64, 128)
                          for name, ms in (("PyTorch, NCHW", 1000.0), ("fastgan, auto", 600.0))])
    results.append(path, [row("fastgan, native", batch=64, error="wrong: D | has 3 x the allowed error")])
    results.append(path, [timed(name, ms, "ablation/dcgan-64") for name, ms in CHAIN.items()])
    return tmp_path


def test_tables(folder):
    text = "\n".join(report.tables(results.read(folder / "bench.csv")))
    assert "| fastgan, auto | fp32 | 600 | 545 - 667 | 107 | 1.67 | 1.67 |" in text
    assert "| fastgan, native | fp32 | wrong: D / has 3 x the allowed error |" in text
    assert "commit abc" in text and "2026-11-23" in text


def test_every_plot_is_there_and_none_is_empty(folder, capsys):
    assert report.main([str(folder)]) == 0
    files = set(capsys.readouterr().out.split())
    assert files == {str(folder / name) for name in (
        "README.md", "bars-step-dcgan-64-32.png", "bars-step-dcgan-64-64.png", "bars-step-dcgan-64-128.png",
        "scaling-step-dcgan-64.png", "bars-ablation-dcgan-64-64.png", "ablation-dcgan-64-64.png")}
    for path in folder.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, path
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all(), f"{path}: something is cut off"
        assert f"]({path.name})" in (folder / "README.md").read_text()


def test_nothing_to_report(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    results.prepare(tmp_path)
    assert report.main([str(tmp_path)]) == 2
    assert "has no results yet" in capsys.readouterr().err
