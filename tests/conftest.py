"""Fixtures of all tests."""

from __future__ import annotations

import os
import tempfile

# no test reads or writes the user's cache of measurements
os.environ["FASTGAN_CACHE"] = tempfile.mkdtemp(prefix="fastgan-tests-")
# read when a kernel is decorated, so before anything imports one; on a GPU it is set to 0
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import presets
from fastgan.config import Config
from fastgan.ops.native import convolve

torch.set_num_threads(2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, for thousands of tiny operations, which would wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["triton", "native-library", "native-gemm"])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kernel engine, the native one with each variant of its convolutions."""
    name, _, variant = request.param.partition("-")
    convolve.method.cache_clear()
    if variant:
        monkeypatch.setattr(convolve, "default", lambda *given: variant)
    elif request.node.callspec.params.get("dtype") == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    yield name
    convolve.method.cache_clear()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is filled with NaN, which shows elements that no kernel writes."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def full(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() and out.device.type == "cpu" else out
        return full

    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, poisoning(getattr(place, name)))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """A configuration of 6 steps on 16x16 digits, with the given fields changed."""

    def make(preset: str = "digits", **values: Any) -> Config:
        small: dict[str, Any] = {"source": "digits", "batch": 16, "steps": 6, "epochs": 1, "snap": 3, "log_every": 1,
                                 "grid": 4, "tensorboard": False, "outdir": str(tmp_path / "runs"), "device": "cpu",
                                 "plan": "default"}
        if preset == "digits":
            small |= {"image_size": "16", "ngf": 4, "ndf": 4, "nz": 8}
        return presets.get(preset, **{**small, **values})

    return make
