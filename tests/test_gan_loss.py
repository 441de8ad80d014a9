"""The loss on logits: its definition, and the kernels of both engines, Triton's in its interpreter, against float64."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan import ops
from fastgan.errors import FastganError
from fastgan.ops import dispatch, torch_ops
from fastgan.ops.native import passes as native
from fastgan.ops.specs import GAN_LOSSES
from fastgan.ops.triton import gan_loss, launch
from fastgan.ops.triton.tiles import Tile
from tests.near import EPS, UNITS, used
from tests.test_kernel_fallback import Broken

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

TARGETS = [(1.0,), (0.0,), (1.0, 0.0), (0.9, 0.0), (0.0, 0.3, 1.0)]
SIZES = [1, 7, 129, 5000]  # of a part
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = ("triton", "native")
each_impl = pytest.mark.parametrize("impl", ["reference", *KERNELS])


def pairs(*impls: str) -> pytest.MarkDecorator:
    """Each engine with each dtype that it computes correctly; Triton's interpreter does not for bfloat16."""
    return pytest.mark.parametrize(("impl", "dtype"), [
        pytest.param(impl, dtype, id=f"{impl}-{name}") for impl in impls for name, dtype in DTYPES.items()
        if (impl, name) != ("triton", "bf16")])


each_kind = pytest.mark.parametrize("kind", GAN_LOSSES)
each_targets = pytest.mark.parametrize("targets", TARGETS, ids=lambda targets: "+".join(map(str, targets)))


def draw(targets: tuple[float, ...], size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits of a D that is certain about some images."""
    torch.manual_seed(size)
    return (4 * torch.randn(len(targets) * size)).to(dtype)


def terms(logits: Tensor, target: float, kind: str = "logistic") -> Tensor:
    """-t log sigma(l) - (1 - t) log(1 - sigma(l)) in float64, accurate also for tiny results; or of another kind."""
    l = logits.double()  # noqa: E741
    if kind != "logistic":
        real, fake = (-l, l) if kind == "wgan" else ((1 - l).clamp(min=0), (1 + l).clamp(min=0))
        return target * real + (1 - target) * fake
    w = torch.where(l > 0, 1 - target, target)
    return torch.where(w == 0, 0, w * l.abs()) + torch.log1p(torch.exp(-l.abs()))


def slopes(logits: Tensor, target: float, kind: str = "logistic") -> Tensor:
    l = logits.double()  # noqa: E741
    if kind != "logistic":
        edge = 1 if kind == "hinge" else math.inf
        return (1 - target) * (l > -edge).double() - target * (l < edge).double()
    return (1 - target) * torch.sigmoid(l) - target * torch.sigmoid(-l)


def exact(logits: Tensor, targets: tuple[float, ...], gloss: Tensor, kind: str = "logistic") -> dict[str, Tensor]:
    parts = logits.detach().double().chunk(len(targets))
    pairs = list(zip(parts, targets, strict=True))
    return {"loss": torch.stack([terms(part, target, kind).mean() for part, target in pairs]),
            "score": torch.stack([(part if kind == "wgan" else part.sigmoid()).mean() for part in parts]),
            "gradient": torch.cat([slopes(part, target, kind) * g / len(part)
                                   for (part, target), g in zip(pairs, gloss.double(), strict=True)])}


def results(impl: str, logits: Tensor, targets: tuple[float, ...], gloss: Tensor,
            kind: str = "logistic") -> dict[str, Tensor]:
    logits = logits.detach().requires_grad_()
    loss, score = ops.gan_loss(logits, targets, kind, impl=impl)
    assert loss.requires_grad and not score.requires_grad
    assert loss.dtype == score.dtype == torch_ops.statistics_dtype(logits.dtype)
    (gradient,) = torch.autograd.grad(loss, logits, gloss.to(loss.dtype))
    assert gradient.dtype == logits.dtype
    return {"loss": loss.detach(), "score": score, "gradient": gradient}


def incoming(targets: tuple[float, ...]) -> Tensor:
    return torch.tensor([1.0, -0.75, 3.0])[: len(targets)]


def assert_near(ours: dict[str, Tensor], eager: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """The rule of `near.py`, with the unit of float32, in which 16-bit logits are also computed."""
    for name, value in right.items():
        assert ours[name].shape == value.shape, name
        share = used(ours[name], eager[name], value, UNITS * EPS[torch.float32] * float(value.abs().max()))
        assert share <= 1, f"{name}: {share:.3g} of the allowed error"


@pytest.mark.parametrize("size", SIZES)
@each_targets
def test_definition_is_binary_cross_entropy(targets, size):
    logits, gloss = draw(targets, size).requires_grad_(), incoming(targets).double()
    loss, score = ops.gan_loss(logits, targets)
    parts = logits.chunk(len(targets))
    expected = torch.stack([F.binary_cross_entropy_with_logits(part, torch.full_like(part, target))
                            for part, target in zip(parts, targets, strict=True)])
    # PyTorch's softplus is the identity from 20 on
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(score, torch.stack([part.sigmoid().mean() for part in parts]))
    torch.testing.assert_close(torch.autograd.grad(loss, logits, gloss), torch.autograd.grad(expected, logits, gloss),
                               rtol=1e-8, atol=1e-9)


def test_definition_is_that_of_hinge_and_wgan():
    """The formulas of their papers, and PyTorch's gradients of them, bit for bit."""
    real, fake = (part.clone().requires_grad_() for part in draw((1, 0), 129, torch.float32).chunk(2))
    logits = torch.cat([real, fake]).detach().requires_grad_()
    for kind, expected in (("hinge", (F.relu(1 - real).mean(), F.relu(1 + fake).mean())),
                           ("wgan", (-real.mean(), fake.mean()))):
        loss, score = ops.gan_loss(logits, (1, 0), kind, impl="reference")
        assert torch.equal(loss, torch.stack(expected))
        scores = [part if kind == "wgan" else part.sigmoid() for part in (real, fake)]
        assert torch.equal(score, torch.stack([part.mean() for part in scores]))
        assert torch.equal(torch.autograd.grad(loss.sum(), logits)[0],
                           torch.cat(torch.autograd.grad(sum(expected), (real, fake))))


@each_kind
@each_targets
def test_derivatives_of_the_definition(targets, kind):
    logits, gloss = draw(targets, 3).requires_grad_(), incoming(targets).double().requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return ops.gan_loss(logits, targets, kind, impl="reference")[0]

    assert torch.autograd.gradcheck(loss, logits) and torch.autograd.gradgradcheck(loss, logits)
    explicit = torch_ops.gan_loss_backward(gloss, logits, targets, kind)
    torch.testing.assert_close(explicit, torch.autograd.grad(loss(logits), logits, gloss)[0], rtol=1e-8, atol=1e-9)

    def backward(gloss: Tensor, logits: Tensor) -> Tensor:
        return torch_ops.gan_loss_backward(gloss, logits, targets, kind)

    assert torch.autograd.gradcheck(backward, (gloss, logits)) and torch.autograd.gradgradcheck(backward,
                                                                                                (gloss, logits))


def test_definition_is_what_the_losses_of_dcgans_are():
    """-log sigma(r) - log(1 - sigma(f)) as softplus of both, bit for bit."""
    real, fake = draw((1, 0), 129, torch.float32).chunk(2)
    loss, _ = ops.gan_loss(torch.cat([real, fake]), (1, 0), impl="reference")
    assert torch.equal(loss, torch.stack([F.softplus(-real).mean(), F.softplus(fake).mean()]))


@pytest.mark.parametrize("size", SIZES)
@each_targets
@each_kind
@pairs(*KERNELS)
def test_kernel(impl, dtype, kind, targets, size):
    logits, gloss = draw(targets, size, dtype), incoming(targets)
    assert_near(results(impl, logits, targets, gloss, kind), results("reference", logits, targets, gloss, kind),
                exact(logits, targets, gloss, kind))


@each_kind
@pytest.mark.parametrize("size", [1, 16, 128])
def test_kernel_in_blocks(size, kind, monkeypatch):
    monkeypatch.setattr(gan_loss, "_TILE", Tile(size, 1, 1))
    targets, gloss = (0.9, 0.0), incoming((0.9, 0.0))
    logits = draw(targets, 129, torch.float32)
    assert_near(results("triton", logits, targets, gloss, kind), results("reference", logits, targets, gloss, kind),
                exact(logits, targets, gloss, kind))


def relative(ours: Tensor, right: Tensor) -> float:
    """The largest error, in float32 units of each element."""
    return float(((ours - right).abs() / right.abs()).max() / EPS[torch.float32])


@pytest.mark.parametrize("function", [gan_loss.gan_loss, native.gan_loss], ids=KERNELS)
@pytest.mark.parametrize("target", [1.0, 0.0, 0.9])
def test_kernel_keeps_the_digits_of_tiny_losses(target, function):
    """One logit per part, -100 to 100; beyond 87, exp(-|l|) is subnormal in float32."""
    if function is native.gan_loss:
        target = float(torch.tensor(target, dtype=torch.float32))  # as the compiled kernel gets it
    points = torch.linspace(-87, 87, 201)
    loss, score, gradient = (torch.cat(each) for each in zip(
        *(function(few, [target] * len(few), "logistic") for few in points.split(8)), strict=True))
    assert relative(loss, terms(points, target)) < 2 * UNITS
    assert relative(score, torch.sigmoid(points.double())) < 2 * UNITS
    right = slopes(points, target)
    near_zero = right.abs() < 0.02  # sigma(l) - 0.9 cancels there in any arithmetic
    kept = ~near_zero if target == 0.9 else torch.ones_like(near_zero)
    assert relative(gradient[kept], right[kept]) < 2 * UNITS
    far = torch.cat([torch.linspace(-100, -87, 7), torch.linspace(87, 100, 7)])
    for ours, right in zip(function(far, [target] * len(far), "logistic"), (
            terms(far, target), torch.sigmoid(far.double()), slopes(far, target)), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=2 * UNITS * EPS[torch.float32], atol=2e-38)


@pairs("reference", *KERNELS)
def test_large_logits(dtype, impl):
    logits = torch.tensor([1e4, -1e4, math.inf, -math.inf], dtype=dtype)
    large = float(logits[0])
    for target, losses, signs in ((1.0, [0, large, 0, math.inf], [0, -1, 0, -1]),
                                  (0.0, [large, 0, math.inf, 0], [1, 0, 1, 0]),
                                  (0.75, [0.25 * large, 0.75 * large, math.inf, math.inf],
                                   [0.25, -0.75, 0.25, -0.75])):
        found = results(impl, logits, (target,) * 4, torch.ones(4))
        assert found["loss"].tolist() == losses
        assert found["gradient"].tolist() == signs
        assert found["score"].tolist() == [1, 0, 1, 0]


@pairs("reference", *KERNELS)
def test_edges_and_large_logits_of_hinge_and_wgan(dtype, impl):
    """At the edge of the hinge the slope is 0, as that of PyTorch's relu."""
    logits = torch.tensor([1.0, -1.0, math.inf, -math.inf], dtype=dtype)
    inf = math.inf
    for kind, target, losses, slopes in (
            ("hinge", 1.0, [0, 2, 0, inf], [0, -1, 0, -1]), ("hinge", 0.0, [2, 0, inf, 0], [1, 0, 1, 0]),
            ("wgan", 1.0, [-1, 1, -inf, inf], [-1] * 4), ("wgan", 0.0, [1, -1, inf, -inf], [1] * 4)):
        found = results(impl, logits, (target,) * 4, torch.ones(4), kind)
        assert found["loss"].tolist() == losses
        assert found["gradient"].tolist() == slopes


@each_impl
@each_kind
@pytest.mark.parametrize("target", [0.0, 0.9, 1.0])
def test_nan_stays_in_its_part(target, kind, impl):
    logits = draw((target,) * 3, 5, torch.float32)
    logits[7] = math.nan
    found = results(impl, logits, (target,) * 3, torch.ones(3), kind)
    assert found["loss"].isnan().tolist() == found["score"].isnan().tolist() == [False, True, False]
    assert found["gradient"].isnan().nonzero().flatten().tolist() == ([7] if kind == "logistic" else [])


@each_impl
def test_gradient_of_one_part(impl):
    targets, logits = (1.0, 0.0), draw((1.0, 0.0), 7, torch.float32).requires_grad_()
    loss, score = ops.gan_loss(logits, targets, impl=impl)
    (gradient,) = torch.autograd.grad(loss[1] * 2, logits)
    torch.testing.assert_close(gradient, exact(logits, targets, torch.tensor([0.0, 2.0]))["gradient"].float())
    assert not gradient[:7].any() and gradient[7:].all()
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(score.sum(), logits)


@pytest.mark.parametrize("impl", KERNELS)
def test_gradients_of_float16_are_rounded_after_they_are_scaled(impl):
    """(1 - sigma) / M is too small for float16 before it is multiplied by a gradient scaler's 65536."""
    logits = torch.full((1000,), 9.0, dtype=torch.float16)
    found = results(impl, logits, (1.0,), torch.tensor([65536.0]))
    right = exact(logits, (1.0,), torch.tensor([65536.0]))["gradient"]
    torch.testing.assert_close(found["gradient"].double(), right, rtol=2 * EPS[torch.float16], atol=0)


@each_targets
@each_kind
@pytest.mark.parametrize("kernels", KERNELS)
def test_second_derivatives(kernels, kind, targets):
    """Gradients of a penalty on the slope of the loss, through a preceding network, as in R1 and WGAN-GP."""
    def penalty(impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, gloss = draw(targets, 5).to(dtype).requires_grad_(), incoming(targets).to(dtype).requires_grad_()
        loss, _ = ops.gan_loss(x.tanh() * 3, targets, kind, impl=impl)
        (slope,) = torch.autograd.grad((loss * gloss).sum(), x, create_graph=True)
        return slope, *torch.autograd.grad(slope.square().sum() + loss.sum(), [x, gloss])

    for ours, right in zip(penalty(kernels, torch.float32), penalty("reference", torch.float64), strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-6)


@each_impl
def test_views(impl):
    """A column of two classes, and a part of a batch that is not aligned to 16 bytes."""
    both = draw((1.0, 0.0), 14, torch.float32)
    for view in (both.view(-1, 2)[:, 1], both[3:17]):
        ours = results(impl, view, (1.0, 0.0), incoming((1.0, 0.0)))
        torch.testing.assert_close(ours, results(impl, view.clone(), (1.0, 0.0), incoming((1.0, 0.0))), rtol=0, atol=0)


def test_one_launch_forward_and_none_backward():
    seen = []
    with launch.through(lambda kernel, grid, *_: seen.append((kernel.fn.__name__, grid))):
        loss, _ = ops.gan_loss(torch.zeros(256, requires_grad=True), (1, 0), impl="triton")
        assert seen == [("gan_loss_kernel", (2,))]
        loss.sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_engines_other_than_kernels_launch_none(impl):
    with launch.through(lambda *_: pytest.fail("a kernel was launched")):
        ops.gan_loss(torch.zeros(4), (1, 0), impl=impl)


def test_autocast_changes_nothing():
    """Not even in the interpreter, which rejects bfloat16."""
    logits = draw((1.0, 0.0), 7, torch.float32)
    expected = results("triton", logits, (1.0, 0.0), torch.ones(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = results("triton", logits, (1.0, 0.0), torch.ones(2))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("logits", "targets", "error", "message"), [
    (torch.zeros(0), (1, 0), FastganError, r"logits of shape \(0,\): expected \(2 \* n,\) with n > 0"),
    (torch.zeros(5), (1, 0), FastganError, r"logits of shape \(5,\): expected \(2 \* n,\) with n > 0"),
    (torch.zeros(4, 1), (1, 0), FastganError, r"logits of shape \(4, 1\): expected \(N,\)"),
    (torch.zeros(4, dtype=torch.int64), (1, 0), FastganError, "logits of dtype torch.int64: expected one of torch.flo"),
    ([0.0], (1,), TypeError, r"logits is \[0.0\] \(list\), expected a Tensor \(N,\)"),
    (torch.zeros(4), (), FastganError, r"targets \(\): expected at least one"),
    (torch.zeros(4), 1.0, TypeError, r"targets is 1.0 \(float\), expected a sequence of numbers"),
    (torch.zeros(4), torch.ones(2), TypeError, "targets is a Tensor, expected a sequence of numbers"),
    (torch.zeros(4), (1, True), TypeError, r"targets\[1\] is True \(bool\), expected a number"),
    (torch.zeros(4), (1, -0.1), FastganError, r"targets\[1\] -0.1: expected a probability, 0 to 1"),
    (torch.zeros(4), (1.1,), FastganError, r"targets\[0\] 1.1: expected a probability, 0 to 1"),
    (torch.zeros(4), (math.nan,), FastganError, r"targets\[0\] nan: expected a finite number"),
], ids=["empty", "indivisible", "matrix", "int64", "list", "no-targets", "number", "tensor", "bool", "negative",
        "large", "nan"])
@each_impl
def test_refused(logits, targets, error, message, impl):
    with pytest.raises(error, match=message):
        ops.gan_loss(logits, targets, impl=impl)


def test_refused_by_the_engine(monkeypatch):
    with pytest.raises(FastganError, match="kind 'hing': expected 'logistic', 'hinge', 'wgan'"):
        ops.gan_loss(torch.zeros(2), (1,), "hing")
    with pytest.raises(FastganError, match="impl 'cuda': expected 'auto', 'reference'"):
        ops.gan_loss(torch.zeros(2), (1,), impl="cuda")
    with pytest.raises(FastganError, match=r"logits of dtype torch.float64: impl 'triton' computes in torch.float32"):
        ops.gan_loss(torch.zeros(2, dtype=torch.float64), (1,), impl="triton")
    with pytest.raises(FastganError, match=r"logits of dtype torch.bfloat16: Triton's interpreter computes it wrongly"):
        ops.gan_loss(torch.zeros(2, dtype=torch.bfloat16), (1,), impl="triton")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(FastganError, match=r"impl 'triton' on cpu: expected a CUDA device"):
        ops.gan_loss(torch.zeros(2), (1,), impl="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_that_does_not_start(dtype, monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", set())
    monkeypatch.setattr(gan_loss, "gan_loss_kernel", Broken("gan_loss_kernel"))
    logits, targets = draw((0.9, 0.0), 7, dtype), (0.9, 0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [results("triton", logits, targets, incoming(targets)) for _ in range(2)]
    (message,) = (str(w.message) for w in caught if "fastgan" in str(w.message))
    assert "gan_loss_kernel: out of resource: shared memory; fastgan::gan_loss falls back to the ref" in message
    torch.testing.assert_close(found[0], results("reference", logits, targets, incoming(targets)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_bfloat16_of_the_definition():
    logits = draw((1.0, 0.0), 129, torch.bfloat16)
    found, right = (function(logits, (1.0, 0.0), torch.ones(2)) for function in (
        lambda *given: results("reference", *given), exact))
    torch.testing.assert_close(found["loss"].double(), right["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["gradient"].double(), right["gradient"], rtol=2**-8, atol=0)


@pairs(*KERNELS)
@pytest.mark.parametrize("targets", [[1.0], [0.9, 0.0]])
def test_operator(targets, impl, dtype):
    logits = torch.randn(6).to(dtype)
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    for given in (logits, torch.randn(6, 2).to(dtype)[:, 1]):
        torch.library.opcheck(torch.ops.fastgan.gan_loss.default, (impl, given, targets, "hinge"), test_utils=utils)


@each_impl
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_a_full_graph(dynamic, impl, monkeypatch):
    monkeypatch.undo()  # the compiler knows PyTorch's own allocations

    def train(logits: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        loss, score = ops.gan_loss(logits * 2, targets, impl=impl)
        return loss.sum(), score

    torch.compiler.reset()  # previous engines have used up the limit of recompilations
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for targets in ((1.0, 0.0), (0.9, 0.0)):
        found = []
        for function in (train, compiled):
            logits = draw(targets, 7, torch.float32).requires_grad_()
            loss, score = function(logits, targets)
            loss.backward()
            found.append((loss.detach(), score, logits.grad))
        torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
