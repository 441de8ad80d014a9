"""Spectral normalization of all weights together: Triton's kernels, interpreted, against float64, and when they run."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fastgan import presets
from fastgan.errors import FastganError, KernelError
from fastgan.models import DCGANDiscriminator
from fastgan.nn import Chain, use
from fastgan.nn.spectral import spectral_norm
from fastgan.ops import dispatch, numerics, reference
from fastgan.ops import spectral as operators
from fastgan.train.step import GANStep
from proofs.simulated import assert_replays_equal_eager
from tests.test_step_replays import inputs, make

pytest.importorskip("triton")
from fastgan.ops.triton import launch, spectral
from proofs.ptx.spectral import BACKWARD, CASES, FORWARD, draw, evaluate

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(not launch.INTERPRETED, reason="compiled kernels run in proofs.ptx, and on a GPU")]
ONCE = dict.fromkeys(FORWARD, 1)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel of spectral normalization was launched."""
    seen: Counter[str] = Counter()

    def count(kernel, *args, **options):
        seen[kernel.fn.__name__] += 1
        launch.launch(kernel, *args, **options)

    monkeypatch.setattr(spectral, "launch", count)
    return seen


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shapes", CASES, ids=lambda shapes: "x".join(map(str, shapes[1])))
def test_near_float64(shapes, dtype, training, poisoned):
    given = draw(shapes, dtype)
    unit = numerics.precision_of(dtype).unit
    before = [one.clone() for one in given.u]
    ours = evaluate(spectral, given, training, dtype)
    eager, exact = evaluate(reference, given, training, dtype), evaluate(reference, given.to(torch.float64), training,
                                                                        torch.float64)
    for key, value in exact.items():
        assert ours[key].shape == value.shape and ours[key].dtype == eager[key].dtype
        own = unit if key.startswith("weight") else max(numerics.FLOAT32, numerics.one_by_one(value.numel()))
        assert numerics.used(ours[key], eager[key], value, own) <= 1, key
        if value.dim() == 4:
            assert ours[key].stride() == given.weights[int(key.split()[1])].stride()
    assert all(torch.equal(old, ours[f"u {i}"]) != training for i, old in enumerate(before[:2]))


def test_gradients_in_another_memory_format(poisoned):
    given = draw(CASES[0], torch.float32)
    turned = given._replace(grads=[g.contiguous(memory_format=form) for g, form in zip(
        given.grads, (torch.contiguous_format, torch.channels_last, torch.contiguous_format), strict=True)])
    found, expected = (evaluate(spectral, one, True, torch.float32) for one in (turned, given))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_reference_is_float32_under_autocast():
    given = draw(CASES[0], torch.bfloat16)
    expected = evaluate(reference, given, True, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(reference, given, True, torch.bfloat16)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_zeros_are_what_pytorch_makes_of_them():
    """0 / 0 in the weight, and vectors of zeros."""
    given = draw(CASES[0], torch.float32)
    given.weights[1].zero_()
    ours, eager = (evaluate(engine, given, True, torch.float32) for engine in (spectral, reference))
    for key in ("weight 1", "u 1", "v 1", "sigma 1", "weight 0"):
        torch.testing.assert_close(ours[key], eager[key], equal_nan=True)
    assert ours["weight 1"].isnan().all() and not ours["u 1"].any()


def networks(size: int = 32, norm: str = "spectral") -> tuple[nn.Module, nn.Module, nn.Module]:
    """A discriminator on Triton's kernels, on PyTorch's operators, and that in float64."""
    torch.manual_seed(0)
    network = DCGANDiscriminator(4, 3, size, norm=norm).to(memory_format=torch.channels_last)
    eager = use(copy.deepcopy(network), "reference")
    return use(network, "triton"), eager, copy.deepcopy(eager).double()


def assert_near(found: list[list[Tensor]], precision: str = "fp32") -> None:
    """Of what the three networks have made."""
    for ours, eager, exact in zip(*found, strict=True):
        assert numerics.used(ours, eager, exact, numerics.PRECISIONS[precision].unit) <= 1


def results(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of two calls, differentiated together: logits, gradients, and the vectors afterwards."""
    x = x.to(next(network.parameters()).dtype)
    first, second = network(x), network(-x)
    grads = torch.autograd.grad(first.square().sum() - second.sum(), list(network.parameters()))
    return [first.detach(), second.detach(), *grads, *network.buffers()]


def test_two_calls_before_one_backward(launches):
    x = torch.randn(3, 3, 32, 32)
    assert_near([results(network, x) for network in networks()])
    assert launches == Counter(FORWARD * 2 + BACKWARD * 2)


def test_two_calls_in_16_bits():
    """Under autocast, where weights are rounded as they are divided, and so are their gradients."""
    x, (ours, eager, exact) = torch.randn(3, 3, 32, 32), networks()
    with torch.autocast("cpu", torch.float16):
        found = [results(network, x) for network in (ours, eager)]
    assert_near([*found, results(exact, x)], "fp16")


def test_evaluation_changes_nothing(launches):
    ours, eager, exact = (network.eval() for network in networks())
    before = copy.deepcopy(ours.state_dict())
    x = torch.randn(3, 3, 32, 32)
    assert_near([[ours(x).detach()], [eager(x).detach()], [exact(x.double()).detach()]])
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert launches == {"spectral_rows_kernel": 1, "spectral_scale_kernel": 1}


def test_frozen_weights_have_no_gradient(launches):
    found = []
    for network in networks():
        first, *others = network.parameters()
        first.requires_grad_(False)
        x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(first.dtype)
        network(x).square().sum().backward()
        assert first.grad is None
        found.append([p.grad for p in others])
    assert_near(found)


def test_second_derivatives():
    """By PyTorch's operators, of the weights themselves, too."""
    found = []
    for network in networks():
        parameters = list(network.parameters())
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(parameters[0].dtype)
        x.requires_grad_()
        grads = torch.autograd.grad(network(x).square().sum(), [x, *parameters], create_graph=True)
        squares = sum(g.square().sum() for g in grads)
        found.append([g.detach() for g in torch.autograd.grad(squares, parameters)])
    assert_near(found)


def test_gradient_of_the_gradient():
    """Of the autograd function by itself, in float64: its backward pass with create_graph."""
    given = draw(CASES[0], torch.float64).to(torch.float64)

    def normalized(*weights: Tensor) -> tuple[Tensor, ...]:
        return operators.spectral_norm(weights, given.u, given.v, False, torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_ops", reference)
        weights = [weight.requires_grad_() for weight in given.weights]
        assert torch.autograd.gradcheck(normalized, weights, fast_mode=True)
        assert torch.autograd.gradgradcheck(normalized, weights, fast_mode=True)


def cached(network: nn.Module, x: Tensor) -> Tensor:
    with parametrize.cached():
        return network(x) + network(-x)


def partly_in_evaluation(network: nn.Module, x: Tensor) -> Tensor:
    network.main[0].parametrizations.weight[0].eval()
    return network(x)


def with_a_hook(network: nn.Module, x: Tensor) -> Tensor:
    network.main[0].parametrizations.weight[0].register_forward_hook(lambda module, given, weight: 2 * weight)
    return network(x)


def twice_parametrized(network: nn.Module, x: Tensor) -> Tensor:
    parametrize.register_parametrization(network.main[2], "weight", nn.Tanh())
    return network(x)


@pytest.mark.parametrize(("call", "together"), [
    (cached, {}), (partly_in_evaluation, {}), (with_a_hook, ONCE), (twice_parametrized, ONCE)],
    ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_computed_together(call, together, launches):
    """Is computed by its parametrization, in the fused block."""
    found = []
    for network in networks():
        x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(next(network.parameters()).dtype)
        found.append([call(network, x).detach(), *network.buffers()])
    assert_near(found)
    assert launches == together


def test_operands_of_different_dtypes_are_an_error():
    """As in eager layers, without autocast."""
    ours, *_ = networks()
    with pytest.raises(FastganError, match=r"weight of dtype torch.float32: expected x's, torch.float16"):
        ours(torch.randn(2, 3, 32, 32).half())


def test_a_layer_that_comes_twice_has_two_iterations(launches):
    torch.manual_seed(0)
    layer = spectral_norm(nn.Conv2d(4, 4, 3, 1, 1))
    chains = [Chain(*[copy.deepcopy(layer)] * 2, impl="triton"), nn.Sequential(*[copy.deepcopy(layer)] * 2)]
    x = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(chains[0](x), chains[1](x))
    torch.testing.assert_close(dict(chains[0].named_buffers()), dict(chains[1].named_buffers()))
    assert not launches


@pytest.mark.parametrize(("options", "calls"), [
    ({}, 2), ({"n_power_iterations": 2}, 0), ({"dim": 1}, 0), ({"eps": 1e-3}, 0)], ids=str)
def test_pytorchs_parametrizations_are_in_fused_blocks(options, calls, launches):
    """Spectral normalization with its default options is computed together; with others, and weight normalization, by
    PyTorch's operators. Gradients go through them."""
    torch.manual_seed(0)
    eager = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 5, 3, 2, 1), **options), nn.LeakyReLU(0.2),
                          parametrizations.weight_norm(nn.Conv2d(5, 4, 2)), nn.Tanh())
    chain, wide = Chain(*copy.deepcopy(eager), impl="triton"), copy.deepcopy(eager).double()
    assert_near([results(network, torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(1)))
                 for network in (chain, eager, wide)])
    assert launches["spectral_scale_kernel"] == launches["spectral_dot_kernel"] == calls


@pytest.mark.parametrize("kernel", [*FORWARD, *BACKWARD])
def test_a_kernel_that_fails_leaves_it_to_the_reference(kernel, monkeypatch):
    """An iteration that was begun is not made twice."""
    def fail(one, *args, **options):
        if one.fn.__name__ == kernel:
            raise KernelError(f"{kernel}: no")
        launch.launch(one, *args, **options)

    monkeypatch.setattr(spectral, "launch", fail)
    monkeypatch.setattr(dispatch, "_failed", set())
    x, found = torch.randn(3, 3, 32, 32), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [results(network, x) for network in networks()]
    assert_near(found)
    name = "spectral_norm_backward" if kernel in BACKWARD else "spectral_norm"
    messages = [str(w.message) for w in caught if "fastgan" in str(w.message)]
    assert messages == [f"fastgan: {kernel}: no; fastgan::{name} falls back to the reference engine"]


def test_operators():
    given = draw(CASES[0], torch.float16)
    results = torch.ops.fastgan.spectral_norm(given.weights, given.u, given.v, True, torch.float16)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(torch.ops.fastgan.spectral_norm.default,
                          (given.weights, given.u, given.v, True, torch.float16), test_utils=tests)
    torch.library.opcheck(torch.ops.fastgan.spectral_norm_backward.default,
                          ([g.half() for g in given.grads], given.weights, *results[1:]), test_utils=tests)


@pytest.mark.parametrize("fields", [{}, {"r1": 1.0}, {"loss": "wgan-gp"}], ids=str)
def test_steps_of_training(fields):
    """What two steps have moved, against float64 and eager PyTorch."""
    config = presets.get("dcgan-64", **{"ngf": 4, "ndf": 4, "nz": 8, "norm_d": "spectral", "loss": "hinge", "lr": 2e-3,
                                        "adam_eps": 1e-3, **fields})
    found = []
    for discriminator in networks(16):
        torch.manual_seed(0)
        dtype = next(discriminator.parameters()).dtype
        generator = make("dcgan-64", ngf=4, nz=8)().generator.to(dtype, memory_format=torch.channels_last)
        use(generator, discriminator.main.impl)
        before = copy.deepcopy([*discriminator.state_dict().values()])
        step = GANStep(generator, discriminator, config.model, config.train, precision="fp32")
        noise = torch.Generator().manual_seed(2)
        step.draw = lambda like, noise=noise: torch.randn(len(like), 8, generator=noise).to(like.dtype)
        for seed in range(2):
            torch.manual_seed(seed)
            step((torch.rand(4, 3, 16, 16) * 2 - 1).to(dtype))
        found.append([after - old for after, old in zip(discriminator.state_dict().values(), before, strict=True)])
    for ours, eager, exact in zip(*found, strict=True):
        assert numerics.judge_runs(ours, [eager], exact, 2**-16).used <= 1


def test_replays(launches):
    """As a CUDA graph would repeat the steps: the same bits, in memory that stays where it is."""
    def step() -> GANStep:
        made = make("dcgan-64", norm_d="spectral", loss="hinge", precision="fp16")()
        use(made.discriminator, "triton")
        return made

    assert_replays_equal_eager(step, inputs("dcgan-64"), count=2)
    assert launches["spectral_rows_kernel"] == 3 * 5  # two steps, the recorded one, and two replays
