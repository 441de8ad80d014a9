"""The precision of a step, and that it restores PyTorch's settings."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastgan.errors import FastganError
from fastgan.ops.numerics import products
from fastgan.train.precision import choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def settings() -> list[object]:
    cudnn = torch.backends.cudnn
    return [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()]


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(["ieee", "tf32"], ["fp32", "tf32", "bf16"])))
def test_settings_can_be_read_within_and_come_back(outer, inner):
    """Also the older settings, whose reads raise an error in PyTorch if they contradict the newer ones."""
    first = settings()
    with products("tf32" if outer == "tf32" else "fp32"):
        before = settings()
        with products(inner):
            within = settings()
            with products("tf32" if outer == "tf32" else "fp32"):
                assert settings()[2] == (outer == "tf32")
            assert settings() == within
        assert settings() == before
    assert settings() == first
    tf32 = inner == "tf32"
    assert within[2:] == [tf32, tf32, "high" if tf32 else "highest"] and (within[0] == "tf32") == tf32


def test_settings_that_contradict_each_other_come_back():
    """After a user has set only one of the newer settings."""
    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with products("tf32"):
            assert torch.backends.cudnn.allow_tf32
        assert (conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision) == ("ieee", "tf32")
    finally:
        torch.backends.cudnn.allow_tf32 = True
        conv.fp32_precision = before


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_setting_of_all_backends_is_overridden(precision):
    """Every kind of operation inherits a user's `torch.backends.fp32_precision`."""
    conv, before = torch.backends.cudnn.conv, torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        with products(precision):
            assert conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == (
                "tf32" if precision == "tf32" else "ieee")
            assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before


@pytest.mark.parametrize(("name", "capability", "expected"), [
    ("auto", (9, 0), "bf16"), ("auto", (8, 0), "bf16"), ("auto", (7, 5), "fp32"), ("tf32", (8, 6), "tf32"),
    ("fp16", (7, 5), "fp16"), ("fp32", (9, 0), "fp32")])
def test_choice_on_a_gpu(monkeypatch, name, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose(name, CUDA) == expected


def test_choice_on_the_cpu(monkeypatch):
    assert [choose(name, CPU) for name in ("auto", "fp32", "bf16", "fp16")] == ["fp32", "fp32", "bf16", "fp16"]
    with pytest.raises(FastganError, match="precision tf32 on cpu: expected an NVIDIA GPU"):
        choose("tf32", CPU)
    with pytest.raises(FastganError, match="precision half: expected auto, fp32, tf32, bf16, fp16"):
        choose("half", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(FastganError, match="sm_80 or newer"):
        choose("tf32", CUDA)
