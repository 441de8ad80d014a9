"""Triton's kernel that gathers a batch, interpreted, against the batches of the loader."""

from __future__ import annotations

import pytest
import torch

from fastgan.data.resident import Resident
from fastgan.errors import KernelError
from fastgan.ops import updates
from fastgan.train.kernels import StepKernels
from tests.test_feed import CPU, POLICIES, SEED, Case, assert_same, kinds, step

pytest.importorskip("triton")
from fastgan.ops.triton import inputs
from fastgan.ops.triton.launch import INTERPRETED, launch

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels run in proofs.ptx, and on a GPU")


@pytest.mark.parametrize("last_batch", POLICIES)
@kinds("resident", "resident-unlabelled-unit", "resident-points")
def test_the_kernel_gathers_the_same(kind, last_batch, tmp_path, monkeypatch):
    """Images, labels, positions and random state, in programs that are smaller than an image; points are not images."""
    case = Case(kind, tmp_path, last_batch)
    monkeypatch.setattr(inputs, "_TILE", inputs._TILE._replace(rows=64))
    calls = []
    monkeypatch.setattr(inputs, "launch", lambda *args, **given: calls.append(args[0]) or launch(*args, **given))
    torch.manual_seed(0)
    expected, random_state = case.expected(9), torch.get_rng_state()
    torch.manual_seed(0)
    feed = Resident(case.dataset, case.config, SEED, CPU, gather=StepKernels("triton", CPU).gather)
    assert_same([step(feed) for _ in range(9)], expected)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert calls == ([inputs.gather_kernel] * 9 if case.dataset.shape == (3, 8, 8) else [])


def test_without_the_kernel_pytorch_gathers(tmp_path, monkeypatch):
    case = Case("resident", tmp_path, "drop", flip=False)

    def fail(*_: object) -> None:
        raise KernelError("gather_kernel: no")

    monkeypatch.setattr(updates, "gather", fail)
    feed = Resident(case.dataset, case.config, SEED, CPU, gather=StepKernels("triton", CPU).gather)
    expected = case.expected(3)
    with pytest.warns(UserWarning, match="gather_kernel: no; the step continues with PyTorch operators"):
        assert_same([step(feed) for _ in range(3)], expected)
