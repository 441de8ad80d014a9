"""If kernels cannot run, one warning gives the name and the reason, and the reference is used."""

from __future__ import annotations

import signal
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan.nn as fnn
from fastgan import ops
from fastgan.errors import FastganError, KernelError
from fastgan.ops import dispatch, engines
from fastgan.ops.native import convolve as native_convolve
from fastgan.ops.native import extension
from fastgan.ops.triton import gemm_pointer, launch, normalize, reduce, wgrad_pointer

pytestmark = pytest.mark.usefixtures("one_thread", "forgetful")


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch):
    """As in a new process: no warnings and no failures are recorded."""
    monkeypatch.setattr(dispatch, "_failed", set())
    engines._warn.cache_clear()
    yield
    engines._warn.cache_clear()


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (4, 3, 7, 6), "weight": (5, 3, 4, 4), "bias": (5,), "gamma": (5,), "beta": (5,)}
    return {name: torch.randn(shape).to(dtype).requires_grad_() for name, shape in shapes.items()}


def train(impl: str, **more: Any) -> list[Tensor]:
    """Output, running statistics and gradients of one block."""
    given = tensors()
    buffers = {"running_mean": torch.zeros(5), "running_var": torch.ones(5)}
    y = ops.conv_bn_act(**given, **buffers, impl=impl, **more)
    return [y.detach(), *buffers.values(), *torch.autograd.grad(y.square().sum(), list(given.values()))]


def assert_warns_once(function: Any, *patterns: str) -> Any:
    """Exactly one warning for each pattern, then silence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
        again = function()
    messages = [str(w.message) for w in caught if "fastgan" in str(w.message)]
    assert len(messages) == len(patterns), messages
    for message, pattern in zip(messages, patterns, strict=True):
        assert all(word in message for word in pattern.split("|")), message
    torch.testing.assert_close(result, again, rtol=0, atol=0)
    return result


def test_missing_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    result = assert_warns_once(lambda: train("triton"), "Triton cannot be imported|falls back to the reference engine")
    torch.testing.assert_close(result, train("reference"), rtol=0, atol=0)


def test_native_engine_that_was_not_built(monkeypatch):
    reason = extension._load("a C++17 compiler", "fastgan._not_there")
    monkeypatch.setitem(extension._modules, "cpu", reason)
    result = assert_warns_once(lambda: train("native"), "was not built (No module named 'fastgan._not_there'): install "
                               "a C++17 compiler, then reinstall fastgan|falls back to the reference engine")
    torch.testing.assert_close(result, train("reference"), rtol=0, atol=0)
    with pytest.raises(KernelError, match="was not built"):
        extension.of(torch.device("cpu"))


def test_only_our_own_warnings_are_errors_in_tests():
    """They are recognized by their first word: PyTorch's warnings within our calls fail no test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("cudnn found no plan", UserWarning, "library.py", 1, module="fastgan.ops.library")
    assert len(caught) == 1
    with pytest.raises(UserWarning, match="no kernels"):
        warnings.warn("fastgan: no kernels", stacklevel=1)


def no_image(*arguments: Any) -> None:
    raise RuntimeError("measure kernel, grid of 1x1x1: no kernel image is available for execution on the device")


def test_compiled_kernel_that_cannot_be_started(monkeypatch):
    """With the error of csrc/cuda/launch.h, on a device for which it was not compiled."""
    monkeypatch.setattr(extension.of(torch.device("cpu")), "batch_stats", no_image)
    result = assert_warns_once(lambda: train("native"), "measure kernel, grid of 1x1x1: no kernel image|"
                               "fastgan::bn_act_forward falls back to the reference engine")
    torch.testing.assert_close(result, train("reference"))


def lose_the_device(monkeypatch: pytest.MonkeyPatch, capturing: bool = False) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(dispatch, "cuda", SimpleNamespace(
        is_initialized=lambda: True, is_current_stream_capturing=lambda: capturing, synchronize=lost))


def test_lost_device_is_no_kernels_fault(monkeypatch):
    """The error of an earlier kernel is raised by every later launch, whichever kernel it launches."""
    monkeypatch.setattr(extension.of(torch.device("cpu")), "batch_stats", no_image)
    lose_the_device(monkeypatch)
    with pytest.raises(RuntimeError, match="an illegal memory access was encountered"):
        train("native")
    assert dispatch.failed("native") == []


def test_nobody_waits_for_the_device_in_a_capture(monkeypatch):
    monkeypatch.setattr(extension.of(torch.device("cpu")), "batch_stats", no_image)
    lose_the_device(monkeypatch, capturing=True)
    with pytest.warns(UserWarning, match="falls back to the reference engine"):
        train("native")


@pytest.mark.skipif(sys.platform == "win32", reason="names of compiled modules are others")
def test_native_engine_of_another_interpreter(monkeypatch, tmp_path):
    """The dynamic linker rejects a module for another interpreter or processor, or an incomplete one."""
    (tmp_path / "foreign.so").write_bytes(b"not compiled for anything")
    monkeypatch.syspath_prepend(tmp_path)
    module, reason = extension._load("a C++17 compiler", "foreign")
    assert module is None and reason.startswith("the native engine cannot be loaded: ") and "foreign.so" in reason


def test_native_engine_has_nothing_for_other_devices():
    assert extension.why_not(torch.device("meta")) == "the native engine does not support meta"
    with pytest.raises(KernelError, match="does not support meta"):
        extension.of(torch.device("meta"))


def test_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    assert engines.why_not("triton", torch.device("cuda")) == "Tesla T4 is sm_75, Triton's kernels need sm_80"
    assert not engines.why_not("triton", torch.device("cpu"))
    monkeypatch.setattr(engines, "why_not", lambda impl, device: "Tesla T4 is sm_75")
    result = assert_warns_once(lambda: train("triton"), "Tesla T4 is sm_75|falls back to the reference engine")
    torch.testing.assert_close(result, train("reference"), rtol=0, atol=0)


class Broken:
    """A kernel that cannot be launched."""

    def __init__(self, name: str) -> None:
        self.fn = SimpleNamespace(__name__=name)

    def __getitem__(self, grid: Any) -> Any:
        def start(**arguments: Any) -> None:
            raise RuntimeError("out of resource: shared memory\nand a traceback")
        return start


@pytest.mark.parametrize(("module", "kernel", "operators"), [
    (gemm_pointer, "convolve_kernel", ["conv_forward", "dgrad"]), (wgrad_pointer, "wgrad_kernel", ["wgrad"]),
    (normalize, "bn_act_forward_kernel", ["bn_act_forward"]),
    (normalize, "bn_backward_sums_kernel", ["bn_backward_sums"]),
    (normalize, "bn_backward_apply_kernel", ["bn_backward_apply"]),
], ids=lambda value: value if isinstance(value, str) else None)
def test_kernel_that_does_not_start(module, kernel, operators, monkeypatch):
    """Running statistics are still updated exactly once."""
    monkeypatch.setattr(module, kernel, Broken(kernel))
    result = assert_warns_once(lambda: train("triton"), *(
        f"{kernel}: out of resource: shared memory; fastgan::{operator} falls back to" for operator in operators))
    torch.testing.assert_close(result, train("reference"), rtol=1e-4, atol=1e-4)


def test_running_statistics_after_a_failure_count_once(monkeypatch):
    monkeypatch.setattr(normalize, "bn_act_forward_kernel", Broken("bn_act_forward_kernel"))
    networks = []
    for impl in ("triton", "reference"):
        torch.manual_seed(0)
        network = fnn.Chain(nn.Conv2d(3, 5, 4), nn.BatchNorm2d(5, momentum=None), nn.ReLU(), impl=impl)
        network.stat_groups = 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network(tensors()["x"])
        networks.append(network)
    torch.testing.assert_close(dict(networks[0].named_buffers()), dict(networks[1].named_buffers()))


def test_out_of_memory_is_no_reason_to_go_on(monkeypatch):
    class Full(Broken):
        def __getitem__(self, grid: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gemm_pointer, "convolve_kernel", Full("convolve_kernel"))
    with pytest.raises(torch.OutOfMemoryError):
        train("triton")


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_error_of_a_signal_handler_is_no_kernels_fault(monkeypatch, impl):
    """PyTorch raises one, within any running code, when a process of a DataLoader dies."""
    def handler(number: int, frame: Any) -> None:
        raise RuntimeError("a worker has died")

    class Interrupted(Broken):
        def __call__(self, *arguments: Any, **keywords: Any) -> None:
            signal.raise_signal(signal.SIGINT)

        def __getitem__(self, grid: Any) -> Any:
            return self

    module = gemm_pointer if impl == "triton" else extension.of(torch.device("cpu"))
    kernel = "convolve_kernel" if impl == "triton" else "batch_stats"
    monkeypatch.setattr(module, kernel, Interrupted(kernel))
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(RuntimeError, match=r"^a worker has died$"):
            train(impl)
    finally:
        signal.signal(signal.SIGINT, before)
    assert dispatch.failed(impl) == []


def test_launch_names_the_kernel():
    with pytest.raises(KernelError, match=r"some_kernel: out of resource: shared memory$"):
        launch.launch(Broken("some_kernel"), (1,), reduce._FEW, x=torch.zeros(1))


def test_no_interpreter_no_gpu(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(FastganError, match=r"impl 'triton' on cpu: expected a CUDA device, or Triton's interpreter"):
        train("triton")


@pytest.mark.parametrize(("dtype", "message"), [
    (torch.float64, "x of dtype torch.float64: impl 'triton' computes in torch.float32"),
    (torch.bfloat16, "x of dtype torch.bfloat16: Triton's interpreter computes it wrongly, expected torch.float32"),
], ids=["fp64", "bf16"])
def test_refused_dtypes(dtype, message):
    given = tensors(dtype)
    with pytest.raises(FastganError, match=message):
        ops.conv_bn_act(**given, impl="triton")
    with pytest.raises(FastganError, match=message):
        fnn.Chain(nn.Conv2d(3, 2, 3), impl="triton").to(dtype)(given["x"])


def test_refused_dtype_of_the_native_engine():
    with pytest.raises(FastganError, match=r"x of dtype torch.float64: impl 'native' computes in torch.float32"):
        ops.conv_bn_act(**tensors(torch.float64), impl="native")


@pytest.mark.parametrize(("layers", "size", "message"), [
    ([nn.Conv2d(4, 5, 3)], 8, "Ci = 3 as in x"),
    ([nn.ConvTranspose2d(3, 5, 3), nn.BatchNorm2d(4)], 8, "batch normalization of 4 channels after .* with 5 output"),
    ([nn.Conv2d(3, 5, 3)], 2, "too small for a kernel of 3x3"),
    ([nn.Conv2d(3, 5, 8)], 7, None),
    ([nn.Conv2d(3, 5, 8, bias=False), nn.BatchNorm2d(5)], 8, None),
    ([nn.Conv2d(3, 5, 3).half()], 8, "weight of dtype torch.float16: expected x's"),
], ids=["channels", "norm-channels", "size", "size-of-a-layer-as-it-is", "one-value-of-a-layer-as-it-is", "dtype"])
@pytest.mark.parametrize("impl", ["triton", "native"])
def test_layers_that_do_not_fit(impl, layers, size, message, monkeypatch):
    """Rejected before a kernel runs on them."""
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a kernel was launched")

    for module in (gemm_pointer, normalize, reduce, wgrad_pointer):
        monkeypatch.setattr(module, "launch", refuse)
    monkeypatch.setattr(native_convolve, "forward", refuse)
    with pytest.raises((FastganError, RuntimeError, ValueError), match=message):
        fnn.Chain(*layers, impl=impl)(torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("impl", ["triton", "native"])
def test_one_value_per_channel_is_refused(impl):
    network = fnn.Chain(nn.Conv2d(3, 5, 4, bias=False), nn.BatchNorm2d(5), impl=impl)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        network(torch.zeros(1, 3, 4, 4))
    with fnn.stat_groups(network, 2), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        network(torch.zeros(2, 3, 4, 4))
    assert network[1].num_batches_tracked == 0
    network.eval()(torch.zeros(1, 3, 4, 4))
