"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(here: Path, *command: str, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=here, env={**os.environ, "PATH": path, **environment}, check=True,
                          capture_output=True, text=True).stdout


def test_own_loop(tmp_path):
    assert "ring.png" in run(tmp_path, sys.executable, str(EXAMPLES / "own_loop.py"), "20")
    assert (tmp_path / "ring.png").stat().st_size > 10_000


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_fashion_mnist(tmp_path):
    """On files in the format of the real ones."""
    for part, count in (("train", 200), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], ">u4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels, header = np.arange(count, dtype=np.uint8) % 10, np.array([0x801, count], ">u4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    run(tmp_path, "sh", str(EXAMPLES / "fashion_mnist.sh"), DATA=str(tmp_path), STEPS="1")
    assert (tmp_path / "ankle-boots.png").is_file()
    assert (tmp_path / "runs" / "00000-dcgan-32" / "fakes000001.png").is_file()
