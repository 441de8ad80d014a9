"""The cost model counts what it says it counts: operators, launches, bytes, and what they take on a device."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastgan import presets
from fastgan.cli import main
from fastgan.errors import FastganError
from fastgan.ops.numerics import products
from fastgan.verify import cost
from fastgan.verify.cost import counted, devices, operators, roofline, table
from fastgan.verify.cost.fusion import fused
from fastgan.verify.cost.kernel import Access, Kernel
from fastgan.verify.cost.model import count, limit
from fastgan.verify.cost.tape import Tape, recording
from fastgan.verify.launches import record, training_step

H100 = devices.DEVICES["h100"]


def kernels(function, **parameters):
    """Of `function(*parameters)` on fake tensors of these shapes."""
    with counted.imagined():
        given = {name: torch.empty(shape, requires_grad=True) for name, shape in parameters.items()}
        with recording(Tape(given), None) as tape:
            function(*given.values())
    return tape.kernels


def names(found):
    return [kernel.name for kernel in found]


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_convolution(transposed):
    n, ci, co, k, h = 6, 5, 7, 3, 11
    shape = (ci, co, k, k) if transposed else (co, ci, k, k)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with counted.imagined():
        x, weight = torch.empty(n, ci, h, h, requires_grad=True), torch.empty(shape, requires_grad=True)
        with products("fp32"), recording(Tape({"D main.0.weight": weight}), None) as tape:
            y = convolve(x, weight, stride=2, padding=1)
            torch.autograd.grad(y, [x, weight], y.detach())
    pixels = h * h if transposed else y.shape[2] * y.shape[3]
    sizes = 4 * torch.tensor([x.numel(), weight.numel(), y.numel()])
    assert names(tape.kernels) == ["convolution", "convolution dgrad", "convolution wgrad"]
    for kernel in tape.kernels:
        assert kernel.flops == 2 * n * pixels * ci * co * k * k and kernel.arithmetic == "fp32"
        assert kernel.bytes == kernel.bare == sizes.sum()
        assert kernel.owner == "D main.0"


def test_one_more_operation_is_one_more_launch():
    def network(x, weight):
        return F.leaky_relu(F.conv2d(x, weight), 0.2)

    one = kernels(network, x=(2, 3, 8, 8), weight=(4, 3, 3, 3))
    two = kernels(lambda x, weight: network(x, weight).abs(), x=(2, 3, 8, 8), weight=(4, 3, 3, 3))
    assert names(two) == [*names(one), "abs"] == ["convolution", "leaky_relu", "abs"]


@pytest.mark.parametrize("function, found, moved", [
    (lambda x: x[1:].T.reshape(-1).view(3, -1)[0].detach(), ["clone"], 2 * 4 * 12),
    (lambda x: x + 1, ["add"], 4 * (15 + 15)),
    (lambda x: x.detach().mul_(2), ["mul_"], 4 * (15 + 15)),
    (lambda x: x.detach().zero_(), ["zero_"], 4 * 15),
    (lambda x: x.detach().copy_(torch.empty(())), ["copy_"], 4 * (1 + 15)),
    (lambda x: x[1:] - x[:-1], ["sub"], 4 * (15 + 12)),  # both views together are no more than their storage
    (lambda x: x.sum(0), ["sum"], 4 * (15 + 3)),
    (lambda x: x.bfloat16(), ["_to_copy"], (4 + 2) * 15),
    (lambda x: torch.empty(0, 3).bfloat16(), [], 0),
    (lambda x: x.index_select(0, torch.zeros(2, dtype=torch.long)), ["zeros", "index_select"], 16 + 16 + 2 * 4 * 6),
], ids=["views", "add", "in-place", "fill", "copy", "views-of-one", "sum", "cast", "nothing", "gather"])
def test_bytes_of_an_operation(function, found, moved):
    recorded = kernels(function, x=(5, 3))
    assert names(recorded) == found and sum(kernel.bytes for kernel in recorded) == moved


def test_batch_normalisation():
    norm, x = nn.BatchNorm2d(3), 4 * 2 * 3 * 8 * 8
    with counted.imagined():
        given = torch.empty(2, 3, 8, 8, requires_grad=True)
        with recording(Tape(dict(norm.named_parameters())), None) as tape:
            y = norm(given)
            torch.autograd.grad(y, given, torch.empty_like(y))
    sizes = [sum(access.bytes for access in kernel.reads if access.bytes == x) // x for kernel in tape.kernels]
    assert names(tape.kernels)[1:] == ["batch norm: statistics", "batch norm: running statistics",
                                       "batch norm: normalise", "batch norm backward: sums",
                                       "batch norm backward: input"]
    assert sizes[1:] == [1, 0, 1, 2, 2]


def test_many_tensors_at_once():
    """The limits of PyTorch's multi_tensor_apply."""
    assert operators.multi_tensor_launches([10] * 110, 1) == 1
    assert operators.multi_tensor_launches([10] * 111, 1) == 2
    assert operators.multi_tensor_launches([65536 * 320], 4) == 1
    assert operators.multi_tensor_launches([65536 * 320 + 1], 4) == 2
    assert operators.multi_tensor_launches([1] * 37, 4) == 2
    found = kernels(lambda *tensors: torch._foreach_add_([tensor.detach() for tensor in tensors], 1), a=(3,), b=(5,))
    assert names(found) == ["_foreach_add_"] and found[0].bytes == 2 * 4 * 8


def test_what_is_on_the_host_is_no_launch():
    with counted.imagined():
        step, x = torch.zeros(()), torch.zeros(3)
        with recording(Tape({}, [x], [step]), None) as tape:
            step += 1
            x += step.item()
    assert names(tape.kernels) == ["add_"]


def kernel(name, kind, reads, writes, size):
    return Kernel(name, "", "", kind, tuple(Access(*one) for one in reads), tuple(Access(*one) for one in writes), size)


def test_fusion():
    """A convolution, batch normalisation and activation as two kernels; what nobody reads later is not written."""
    conv = kernel("convolution", "product", [(0, 40)], [(1, 40)], 10)
    statistics = kernel("statistics", "reduction", [(1, 40)], [(2, 8)], 10)
    running = kernel("running", "pointwise", [(2, 8), (9, 8)], [(9, 8)], 2)
    normalise = kernel("normalise", "pointwise", [(1, 40), (2, 8)], [(3, 40)], 10)
    activate = kernel("activate", "pointwise", [(3, 40)], [(4, 40)], 10)
    found = fused([conv, statistics, running, normalise, activate, conv._replace(reads=(Access(4, 40),))], {9})
    assert len(found) == 4
    one, two = found[1:3]
    assert (sum(a.bytes for a in one.reads), sum(a.bytes for a in one.writes)) == (48, 16)
    assert (sum(a.bytes for a in two.reads), sum(a.bytes for a in two.writes)) == (48, 40)
    unrelated = kernel("other", "pointwise", [(7, 40)], [(8, 40)], 10)
    assert len(fused([normalise, unrelated, activate], set())) == 2


@pytest.mark.parametrize("reads, flops, arithmetic, seconds, by", [
    (33.52e6, 0, "", 1e-5, "memory"), (1, 989.4e7, "bf16", 1e-5, "tensor cores"), (1, 66.9e7, "fp32", 1e-5, "cores"),
    (1, 1, "bf16", 1e-6, "launch")])
def test_bound(reads, flops, arithmetic, seconds, by):
    one = Kernel("", "", "", "product", (Access(0, reads),), (), 1, flops, arithmetic)
    found = roofline.bound(one, H100, True)
    assert found.by == by and found.seconds == pytest.approx(seconds, rel=1e-3)
    assert roofline.bound(one._replace(reads=(), flops=0), H100, False).seconds == 2.5e-6


@pytest.fixture(scope="module")
def at_128():
    return count("dcgan-64", 128, "h100")


def test_fastgans_launches_are_those_of_the_recorder(at_128):
    recorded = Counter(launch.name for launch in record(training_step(presets.get("dcgan-64"), 128, "bf16"), 90))
    found = Counter(f"{name.removeprefix('triton ')}_kernel" for name in names(at_128.counts["fastgan"].kernels)
                    if name.startswith("triton"))
    assert found.pop("logistic_kernel") == 3 and recorded.pop("logistic_kernel") == 2  # D's halves in one call there
    assert found == recorded


def test_the_work_of_both_steps(at_128):
    """The same products but for the gradients of D's weights in G's update, which the textbook computes for nobody."""
    eager, ours = (at_128.counts[name].kernels for name in ("eager", "fastgan"))
    spared = [kernel.flops for kernel in eager if kernel.owner.startswith("D") and "wgrad" in kernel.name]
    assert sum(kernel.flops for kernel in eager) - sum(kernel.flops for kernel in ours) == sum(spared) // 3
    assert {kernel.arithmetic for kernel in eager} == {"", "bf16"}
    assert {kernel.arithmetic for kernel in ours} == {"", "bf16", "fp32"}


def test_limit_is_the_tables(at_128):
    assert limit("dcgan-64", 128, "bf16", "h100") == at_128.totals()["fastgan"].seconds
    assert limit(presets.get("dcgan-64"), 128, "bf16", "a100") > limit("dcgan-64", 128, "bf16", "h100")


@pytest.mark.filterwarnings("error:Accessing the data pointer of FakeTensor")  # whoever did would read and write there
@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_every_preset(preset):
    found = cost.count(preset, 4, "a100")
    assert {name: one.launches == one.kernels for name, one in found.totals().items()} == {
        "eager": True, "compiled": True, "fastgan": False}
    assert "A model, not a measurement" in "\n".join(table.lines(found))


@pytest.mark.parametrize("arguments, words", [
    (["--gpu", "h1000"], "--gpu h1000: expected one of t4, v100, a100, l4, 4090, h100, h200, b200, cpu"),
    (["--preset", "dcgan-63"], "unknown preset 'dcgan-63'; did you mean"),
    (["--gpu", "v100", "--precision", "bf16"], "--precision bf16 on Tesla V100 SXM2 32 GB: expected auto, fp16, fp32"),
    (["--batch", "0"], "--batch 0: expected 1 or more"),
], ids=["gpu", "preset", "precision", "batch"])
def test_bad_input(arguments, words, capsys):
    assert main(["cost", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_penalties_are_refused():
    with pytest.raises(FastganError, match="no gradient penalty"):
        count(presets.get("digits", loss="wgan-gp"), 4, "h100")


def test_command(capsys):
    assert main(["cost", "--preset", "digits", "--batch", "8", "--gpu", "t4"]) == 0
    out = capsys.readouterr().out
    assert "digits, batch 8, fp16, on Tesla T4" in out and "as if it were sm_80" in out
    assert "triton convolve" in out and "of eager" in out


def test_measured_steps_stand_beside_the_model(capsys):
    """On this CPU no engine is faster than the limit."""
    assert main(["cost", "--preset", "digits", "--batch", "16", "--gpu", "cpu"]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.split("MEASURED here")[1].splitlines() if line.startswith(("eager", "fastgan,"))]
    assert len(rows) in (2, 3) and all(0 < float(row.split()[-1]) < 100 for row in rows)


def test_help_needs_no_torch():
    code = "import sys; from fastgan.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and "fastgan cost" in found.stdout


def test_targets(at_128):
    """Bounds are where the step is (docs/cost.md), so that it does not cost more unnoticed."""
    eager, ours = (at_128.totals()[name] for name in ("eager", "fastgan"))
    assert ours.launches == 1 and eager.launches > 250
    assert ours.kernels <= 139
    assert ours.bytes <= 0.75 * eager.bytes
    large = count("dcgan-64", 1024, "h100").totals()["fastgan"]
    assert large.seconds <= 1.7 * large.gemms
