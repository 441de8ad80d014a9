"""`fastgan verify`: the certificate passes for correct results, fails for each of many bugs, and names the quantity."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan import cli, models, presets
from fastgan.config import Config
from fastgan.errors import FastganError, KernelError
from fastgan.ops import dispatch, numerics, torch_ops
from fastgan.ops.native import extension
from fastgan.ops.specs import BlockTensors, ConvSpec, NormSpec
from fastgan.ops.triton import launch
from fastgan.train import graph
from fastgan.train.graph import GraphedStep
from fastgan.verify import blocks, certificate, checks, kinks, machine, step_comparison, table
from fastgan.verify.result import Result, run
from proofs.simulated import SimulatedCuda

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
Patch = Callable[[pytest.MonkeyPatch], None]


def tiny(side: int = 16) -> Config:
    return Config().replace(source="digits", image_size=str(side), ngf=4, ndf=4, nz=8)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    monkeypatch.setattr(dispatch, "_failed", set())


def compare_block(impl: str, name: str = "D2", precision: str = "fp32", side: int = 16) -> Result:
    """One block of the tiny preset: by default conv, bn, leaky relu."""
    block = next(block for block in checks.blocks_of(tiny(side)) if block.name.startswith(name))
    return run(lambda: blocks.compare(block, impl, numerics.PRECISIONS[precision], 4, CPU), impl)


def small_setup(side: int = 16, count: int = 2) -> step_comparison.Setup:
    return step_comparison.make_setup(tiny(side), 4, count, "fp32", CPU)


def compare_steps(setup: step_comparison.Setup, impl: str) -> Result:
    return run(lambda: step_comparison.compare(setup, impl), impl)


def compare_graph(setup: step_comparison.Setup) -> Result:
    allowed = step_comparison.compare(setup, "reference")
    return run(lambda: step_comparison.compare_graph(setup, "reference", allowed), "reference")


def failed(found: Result) -> set[str]:
    return {name for name, one in found.quantities.items() if one.used > 1}


def test_blocks_have_the_shapes_of_the_network():
    found = checks.blocks_of(presets.get("dcgan-64"))
    assert [block.name for block in found] == [
        "G1 100x1x1 -> 512x4x4, 4x4T/1 bn relu", "G2 512x4x4 -> 256x8x8, 4x4T/2 bn relu",
        "G3 256x8x8 -> 128x16x16, 4x4T/2 bn relu", "G4 128x16x16 -> 64x32x32, 4x4T/2 bn relu",
        "G5 64x32x32 -> 3x64x64, 4x4T/2 tanh", "D1 3x64x64 -> 64x32x32, 4x4/2 leaky",
        "D2 64x32x32 -> 128x16x16, 4x4/2 bn leaky", "D3 128x16x16 -> 256x8x8, 4x4/2 bn leaky",
        "D4 256x8x8 -> 512x4x4, 4x4/2 bn leaky", "D5 512x4x4 -> 1x1x1, 4x4/1"]
    assert [block.groups for block in found] == [1] * 5 + [2] * 5


@pytest.mark.parametrize(("impl", "name", "precision"), [
    ("triton", "G2", "fp16"), ("triton", "G3", "fp32"), ("triton", "D1", "fp16"), ("triton", "D2", "fp32"),
    ("native", "G2", "bf16"), ("native", "G3", "fp16"), ("native", "D1", "bf16"), ("native", "D2", "fp32")])
def test_kernels_pass(impl, name, precision):
    found = compare_block(impl, name, precision)
    assert found.passed and not found.error
    names = {"output", "input gradient", "weight gradient"}
    names |= {"gamma gradient", "beta gradient", "running mean", "running variance"} if name in ("G2", "D2") else set()
    assert set(found.quantities) == names


def test_a_block_with_spectral_normalization():
    """Its computed weight is one more parameter: the network's own goes on by an iteration in each call."""
    network = models.build(tiny().replace(norm_d="spectral").model, (1, 16, 16))[1]
    before = copy.deepcopy(network.state_dict())
    block = blocks.blocks_of(network, torch.zeros(2, 1, 16, 16), "D", 2)[1]
    found = run(lambda: blocks.compare(block, "native", numerics.PRECISIONS["bf16"], 4, CPU), "native")
    assert found.passed and set(found.quantities) == {"output", "input gradient", "weight gradient"}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_bias_before_batch_normalisation_is_judged_by_what_cancels():
    block = checks.blocks_of(presets.get("tf-dcgan-mnist"))[0]
    assert "bias bn" in block.name
    found = run(lambda: blocks.compare(block, "reference", numerics.PRECISIONS["fp32"], 4, CPU), "reference")
    assert found.passed and found.quantities["bias gradient"].ours < 1e-5


def around_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding with the image's edge instead of zeros."""
    right = torch_ops.convolve

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec) -> Tensor:
        if conv.transposed or not any(conv.padding):
            return right(x, weight, bias, conv)
        pads = [pad for pad in reversed(conv.padding) for _ in range(2)]
        return right(F.pad(x, pads, "replicate"), weight, bias, conv._replace(padding=(0, 0)))
    monkeypatch.setattr(torch_ops, "convolve", convolve)


def passes_changed(name: str, change: Callable[..., Any]) -> Patch:
    """Triton's pass of that name as change(pass, *arguments)."""
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        bound = dispatch.bound

        def changed(engine: str, wanted: str) -> Callable[..., Any]:
            right = bound(engine, wanted)
            return partial(change, right) if (engine, wanted) == ("triton", name) else right
        monkeypatch.setattr(dispatch, "bound", changed)
    return patch


def wrong_momentum(right: Callable[..., Any], *arguments: Any) -> Any:
    *before, norm, activation = arguments
    return right(*before, norm._replace(momentum=0.99 * norm.momentum), activation)


def biased_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The running variance is biased, without n / (n - 1)."""
    right = torch_ops.batch_norm

    def batch_norm(x: Tensor, tensors: BlockTensors, norm: NormSpec) -> Tensor:
        running = tensors.running_var
        variance = running.clone()
        y = right(x, tensors, norm)
        count = x.numel() // x.shape[1] // norm.groups
        running.data.copy_(variance + (running - variance) * (count - 1) / count)
        return y
    monkeypatch.setattr(torch_ops, "batch_norm", batch_norm)


def one_percent(right: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return 1.01 * right(*arguments)


def dropped(right: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> tuple[Tensor, Tensor]:
    sums, of_all = right(*arguments)
    sums[0] = of_all[:1] = 0  # beta's gradient
    return sums, of_all


def one_value(value: float) -> Callable[..., Tensor]:
    def changed(right: Callable[..., Tensor], *arguments: Any) -> Tensor:
        result = right(*arguments)
        result[0, 0, 0, 0] = value
        return result
    return changed


FAULTS: dict[str, tuple[str, str, Patch, set[str]]] = {
    "padding is the edge": ("reference", "D3", around_image, {"output"}),
    "momentum off by 1 %": ("triton", "D2", passes_changed("bn_act_forward", wrong_momentum),
                            {"running mean", "running variance"}),
    "running variance is biased": ("reference", "D2", biased_variance, {"running variance"}),
    "weight gradient off by 1 %": ("triton", "D2", passes_changed("wgrad", one_percent), {"weight gradient"}),
    "beta gradient dropped": ("triton", "D2", passes_changed("bn_backward_sums", dropped),
                              {"beta gradient", "input gradient", "weight gradient"}),
    "one pixel of a gradient is zero": ("triton", "D1", passes_changed("dgrad", one_value(0.0)), {"input gradient"}),
    "a weight gradient is nan": ("triton", "D1", passes_changed("wgrad", one_value(math.nan)), {"weight gradient"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(monkeypatch, fault):
    impl, name, patch, expected = FAULTS[fault]
    side = 32 if patch is around_image else 16
    assert impl != "reference" or compare_block(impl, name, side=side).passed
    patch(monkeypatch)
    found = compare_block(impl, name, side=side)
    assert not found.passed and expected <= failed(found), found
    if patch is not around_image:  # it affects all later results
        assert failed(found) == expected


def test_kernels_that_were_replaced_by_the_reference_do_not_pass(monkeypatch):
    def broken(*args: Any) -> Any:
        raise KernelError("convolve_kernel: out of resources")
    passes_changed("conv_forward", broken)(monkeypatch)
    found = compare_block("triton")
    assert not failed(found) and not found.passed and "out of resources" in found.error
    assert "conv_forward failed before" in compare_block("triton").error


def test_what_an_engine_raises_is_a_finding(monkeypatch):
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("an illegal memory access\nand more")
    monkeypatch.setattr(torch_ops, "convolve", broken)
    found = compare_block("reference")
    assert not found.passed and found.error == "RuntimeError: an illegal memory access"


def test_slopes_in_doubt():
    """Of inputs with rms 1 that are within two units of the kink."""
    unit = numerics.PRECISIONS["fp16"].unit
    z = torch.tensor([-1.0, -2.5 * unit, -1.5 * unit, 1.5 * unit, 2.5 * unit, 1.0], dtype=torch.float64)
    z = torch.cat([z, torch.ones(1000)]).requires_grad_()
    slopes = [torch.autograd.grad(network(z).sum(), z)[0][:6].tolist()
              for network in kinks.doubted(nn.Sequential(nn.ReLU()), numerics.PRECISIONS["fp16"])]
    assert slopes == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_steps_of_kernels_pass(impl):
    found = compare_steps(small_setup(count=1), impl)
    assert found.passed, found
    assert set(found.quantities) == {f"{network} {what}" for network in ("generator", "discriminator")
                                     for what in ("parameters", "running means", "running variances")}


@pytest.mark.parametrize(("patch", "expected"), [
    (biased_variance, {"generator running variances", "discriminator running variances"}),
    (around_image, {"discriminator parameters", "generator parameters"}),
], ids=["running variance is biased", "padding is the edge"])
def test_steps_with_a_fault_do_not_pass(monkeypatch, patch, expected):
    setup = small_setup(32)
    assert compare_steps(setup, "reference").passed
    patch(monkeypatch)
    found = compare_steps(setup, "reference")
    assert not found.error and expected <= failed(found)


class WithFrozenNoise(GraphedStep):
    def __init__(self, step: Any) -> None:
        z = step.noise(4)
        step.draw = lambda like: z
        super().__init__(step)


class WithOneNumberMore(GraphedStep):
    def __call__(self, *inputs: Tensor) -> Any:
        torch.rand(1)
        return super().__call__(*inputs)


@pytest.mark.parametrize(("kind", "expected"), [
    (GraphedStep, set()), (WithFrozenNoise, {"generator parameters", "random state"}),
    (WithOneNumberMore, {"random state"}),
], ids=["right", "frozen noise", "one random number more"])
def test_graphed_steps_are_compared_with_steps_one_by_one(monkeypatch, kind, expected):
    monkeypatch.setattr(graph, "cuda", SimulatedCuda())
    monkeypatch.setattr(step_comparison, "GraphedStep", kind)
    setup = small_setup()
    found = compare_graph(setup)
    assert not found.error and expected <= failed(found) and found.passed == (not expected)


def test_steps_that_were_not_captured_are_not_said_to_be_right(monkeypatch):
    cuda = SimulatedCuda()
    cuda.refusal = "no memory for a graph"
    monkeypatch.setattr(graph, "cuda", cuda)
    setup = small_setup()
    found = compare_graph(setup)
    assert not found.passed and "not captured: no memory for a graph" in found.error


def test_precisions_of_each_device(monkeypatch):
    monkeypatch.setattr(extension, "why_not", lambda device: "")
    assert [(one.impl, one.precisions) for one in checks.usable("auto", CPU)] == [
        ("reference", ("fp32",)), ("native", ("fp32", "bf16", "fp16")), ("triton", ("fp32", "fp16"))]
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert [one.precisions for one in checks.usable("auto", torch.device("cuda"))] == [
        ("fp32", "tf32", "bf16", "fp16")] * 3
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    assert [(one.impl, one.precisions) for one in checks.usable("auto", torch.device("cuda"))] == [
        ("reference", ("fp32", "fp16")), ("native", ("fp32", "fp16"))]
    assert "sm_75" in machine.why_not("triton", torch.device("cuda"))


def test_steps_are_compared_in_every_precision_that_trains_and_as_a_graph_where_there_is_one(monkeypatch):
    monkeypatch.setattr(step_comparison, "why_no_graph", lambda device: "")
    engine = checks.Engine("reference", ("fp32", "tf32", "bf16", "fp16"), "")
    all_checks, missing = checks.plan(tiny(), [engine], 4, 3, torch.device("cuda"))
    assert not missing and len([check for check in all_checks if check.part == "operations"]) == 6 * 4
    assert [(check.what, check.precision) for check in all_checks if check.part == "steps"] == [
        ("3 steps", "fp32"), ("3 steps as a CUDA graph", "fp32"), ("3 steps", "tf32"),
        ("3 steps as a CUDA graph", "tf32"), ("3 steps", "bf16"), ("3 steps as a CUDA graph", "bf16")]


def test_wide_networks_are_narrowed_for_the_interpreter():
    engines = {one.impl: one for impl in ("reference", "triton") for one in checks.usable(impl, CPU)}
    config = presets.get("dcgan-64")
    assert checks.narrowed(config, engines["reference"]) is config
    narrow = checks.narrowed(config, engines["triton"])
    assert (narrow.model.ngf, narrow.model.ndf) == (8, 8)
    assert checks.narrowed(tiny(), engines["triton"]) == tiny()
    widths = {check.engine: check.width for check in checks.plan(config, [*engines.values()], 4, 1, CPU)[0]}
    assert widths == {"reference": None, "triton": 8}


def test_command_writes_a_certificate(capsys, tmp_path):
    path = tmp_path / "certificate.json"
    assert cli.main(["verify", "--preset", "tiny", "--impl", "reference", "--steps", "1", "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert "D2 4x8x8 -> 8x4x4, 4x4/2 bn leaky" in out and "FAIL" not in out and "\npass: 7 checks" in out
    assert "1 step as a CUDA graph: not checked: no CUDA device" in out
    found = json.loads(path.read_text())
    assert found["passed"] and len(found["operations"]) == 6 and len(found["steps"]) == 1
    assert found["engines"]["triton"] == "not requested"
    assert {"device", "driver", "fastgan", "python", "torch", "triton", "CUDA", "cuDNN", "commit"} == set(
        found["machine"])
    assert all(one["used"] <= 1 for row in found["operations"] for one in row["quantities"].values())


def test_command_ends_with_1_and_names_the_quantity(monkeypatch, capsys, tmp_path):
    biased_variance(monkeypatch)
    path = tmp_path / "certificate.json"
    assert cli.main(["verify", "--preset", "tiny", "--impl", "reference", "--steps", "1", "--out", str(path)]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("G1 "))
    assert "running variance " in line and line.endswith("FAIL")
    assert "\nFAIL: 4 of 7 checks, first reference float32 G1 8x1x1 -> 8x4x4, 4x4T/1 bn relu: running variance" in out
    assert not json.loads(path.read_text())["passed"]


def test_rows_that_pass_by_the_allowance_for_kinks_are_marked():
    """If they exceed the limit without it, by either measure; rows that fail or do not need it have no mark."""
    exact = torch.linspace(-1, 1, 100, dtype=torch.float64)
    eager, moved = exact + 1e-6, [exact + 0.1, exact - 0.1]
    near, far, wrong = (numerics.judge(exact + error, eager, exact, 1e-7, 0.0, moved) for error in (1e-6, 0.05, 0.5))
    assert [(one.used <= 1, one.by_kinks) for one in (near, far, wrong)] == [(True, False), (True, True), (False, True)]
    assert not numerics.judge(exact + 1e-6, eager, exact, 1e-7).by_kinks
    row = {"what": "G1", "engine": "native", "precision": "float32", "width": None, "error": "", "worst": "output"}
    rows = [{**row, "passed": one.used <= 1, "quantities": {"output": {**one._asdict(), "used": one.used}}}
            for one in (near, far, wrong)]
    shown = list(table.lines({"preset": "digits", "batch": 4, "machine": {"device": "cpu"}, "engines": {"native": ""},
                              "operations": rows, "steps": [], "not_checked": []}))
    ends = [line.split("output")[1].split()[3:] for line in shown if line.startswith("G1")]
    assert ends == [["pass"], ["pass", "*"], ["FAIL"]]
    assert any(line.startswith("\n* within the limit") for line in shown)


def test_a_number_that_is_none_is_written_in_words():
    one = numerics.Nearness("rms", math.nan, 0.0, 0.0)
    assert json.loads(table.as_json({"ours": one.ours, "used": [one.used]})) == {"ours": "nan", "used": ["inf"]}


def test_networks_without_convolutions_say_so():
    found = certificate("d2l-gan-gaussian", steps=1, device="cpu")
    assert found["passed"] and not found["operations"] and [row["engine"] for row in found["steps"]] == ["reference"]
    assert any("no convolution" in line for line in found["not_checked"])


def test_certificates_leave_the_random_state_alone():
    before = torch.get_rng_state()
    certificate("d2l-gan-gaussian", steps=1, device="cpu", impl="reference")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("args", "message"), [
    (["--batch", "3"], "--batch 3: expected an even number of at least 4"),
    (["--steps", "0"], "--steps 0: expected 1 or more"),
    (["--preset", "dcgan64"], "unknown preset 'dcgan64'"),
    (["--impl", "cudnn"], "invalid choice 'cudnn'"),
    (["--device", "abacus"], "--device abacus: expected auto or one of"),
    (["--out", "gone/certificate.json"], "no such folder: gone"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_errors_are_one_line(capsys, args, message):
    assert cli.main(["verify", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_engine_that_cannot_run_is_an_error_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(extension, "why_not", lambda device: "it was not built")
    with pytest.raises(FastganError, match="--impl native on cpu: it was not built; expected auto or reference"):
        certificate("tiny", impl="native", device="cpu")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(FastganError, match="--impl triton on cpu: needs a CUDA device"):
        certificate("tiny", impl="triton", device="cpu")
    found = certificate("d2l-gan-gaussian", steps=1, device="cpu")
    assert found["passed"] and found["engines"]["triton"] == "needs a CUDA device"


def test_command_interprets_kernels_on_a_machine_without_a_gpu(tmp_path):
    given = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    program = [sys.executable, "-m", "fastgan", "verify", "--preset", "d2l-gan-gaussian", "--steps", "1"]
    done = subprocess.run([*program, "--device", "cpu"], capture_output=True, text=True, cwd=tmp_path, env=given | {
        "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "triton: in Triton's interpreter" in done.stdout
    assert (tmp_path / "certificate.json").is_file()
