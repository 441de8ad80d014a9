"""The kernel engines, Triton's in its interpreter, against float64: every operand, gradient and statistic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan import nn as fnn
from fastgan import ops
from fastgan.ops.library import OPERATORS
from fastgan.ops.specs import ConvSpec
from tests.near import KINK, judge
from tests.test_ops import CASES, each_kind, layouts, name

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

ACTIVATIONS = ["leaky_relu", "relu", "tanh", "none"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
each_narrow = pytest.mark.parametrize("dtype", list(DTYPES.values())[1:], ids=list(DTYPES)[1:])

# (N, Ci, H, W), Co, kernel, stride, padding, output_padding, bias, statistic groups
MORE = [
    ((3, 70, 3, 5), 66, (2, 2), 1, 1, 0, True, 3),  # both wider than a tile
    ((2, 3, 33, 35), 5, (3, 4), 1, 1, 0, False, 2),  # more rows than a tile has
    ((3, 100, 1, 1), 25, (4, 4), 1, 0, 0, False, 1),  # transposed: the taps are columns
    ((6, 5, 1, 1), 7, (2, 3), (3, 2), 0, 0, True, 2),  # also with any stride
    ((14, 5, 1, 1), 7, (3, 3), 1, 1, 0, True, 2),  # but not with padding
    ((6, 5, 1, 1), 7, (2, 2), 2, 0, 1, False, 1),  # nor with output_padding
    ((21, 3, 1, 1), 5, (1, 1), 1, 0, 0, False, 3),
    ((2, 2, 8, 9), 3, (2, 2), 4, 0, 0, False, 1),  # pixels that no tap sees
    ((2, 2, 5, 6), 3, (2, 1), (3, 4), 0, (2, 3), False, 1),  # phases that no tap sees
    ((5, 1, 13, 15), 1, (4, 4), 2, 1, 0, False, 5),
    ((2, 2, 9, 8), 3, (7, 7), 1, 3, 0, True, 1),
    ((2, 3, 6, 5), 2, (3, 3), 1, 2, 0, False, 2),  # padding beyond half the kernel
    ((3, 1, 8, 8), 3, (6, 2), 3, 2, 0, True, 3),
    ((5, 33, 4, 4), 1, (4, 4), 1, 0, 0, True, 1),  # a logit
]
ALL = [(case, transposed) for case in CASES + MORE for transposed in (False, True)
       if transposed or all(side + 2 * pad >= k for side, pad, k in zip(
           case[0][2:], case[4] if isinstance(case[4], tuple) else (case[4],) * 2, case[2], strict=True))]


def fits(case: tuple[Any, ...], transposed: bool) -> dict[str, Any]:
    """The options of a case; only transposed convolutions have `output_padding`."""
    _, _, _, stride, padding, extra, _, groups = case
    given = {"stride": stride, "padding": padding, "stat_groups": groups}
    return {**given, "output_padding": extra} if transposed else given


def draw(case: tuple[Any, ...], transposed: bool, *, norm: bool, seed: int = 0) -> dict[str, Tensor]:
    """x, weight and tensors of the output, float64, in magnitudes that use the range of float16 well."""
    (_, ci, _, _), co, kernel, _, _, _, bias, _ = case
    torch.manual_seed(seed)
    tensors = {"x": torch.randn(case[0]), "weight": torch.randn(*((ci, co) if transposed else (co, ci)), *kernel) * 0.3}
    if bias:
        tensors["bias"] = torch.randn(co)
    if norm:
        tensors |= {"gamma": torch.randn(co) + 0.5, "beta": torch.randn(co) + 0.5, "running_mean": torch.randn(co),
                    "running_var": torch.rand(co) + 0.5}
    return {key: tensor.double() for key, tensor in tensors.items()}


def away_from_kinks(function: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """0 if z is so close to the kink that rounding determines its derivative, in eager layers too; else 1."""
    copies = {key: t.to(dtype).double() for key, t in tensors.items()}
    with torch.no_grad():
        z = function(impl="reference", activation="none", **copies)[0]
    return (z.abs() > KINK * z.abs().max()).to(dtype)


def block_of(case: tuple[Any, ...], transposed: bool, activation: str, **more: Any) -> Any:
    function, given = ops.conv_transpose_bn_act if transposed else ops.conv_bn_act, fits(case, transposed)

    def block(impl: str, activation: str = activation, **tensors: Tensor) -> list[Tensor]:
        return [function(**tensors, **given, activation=activation, impl=impl, **more)]

    return block


def judge_block(impl: str, case: tuple[Any, ...], transposed: bool, activation: str, dtype: torch.dtype, *,
                norm: bool = True, layout: Any = None, **more: Any) -> dict[str, Tensor]:
    tensors = draw(case, transposed, norm=norm)
    function = block_of(case, transposed, activation, **more)
    with torch.no_grad():
        y = function("reference", **{key: t.clone() for key, t in tensors.items()})[0]
    kinked = activation in ("relu", "leaky_relu")
    return judge(function, impl, tensors, dtype, terms=y.numel() // y.shape[1], layout=layout,
                 mask=away_from_kinks(function, tensors, dtype) if kinked else None)


def identified(pairs: list[tuple[Any, bool]]) -> list[Any]:
    """Parameters, with the activations in turn."""
    return [pytest.param(case, transposed, ACTIVATIONS[(i + i // 4) % 4],
                         id=f"{name(case)}-{'transpose' if transposed else 'conv'}-{ACTIVATIONS[(i + i // 4) % 4]}")
            for i, (case, transposed) in enumerate(pairs)]


@pytest.mark.parametrize(("case", "transposed", "activation"), identified(ALL))
def test_block_in_training(impl, case, transposed, activation):
    judge_block(impl, case, transposed, activation, torch.float32, momentum=0.3)


@pytest.mark.parametrize(("case", "transposed", "activation"), identified(ALL[1::3]))
@each_narrow
def test_block_in_training_in_16_bits(impl, case, transposed, activation, dtype):
    judge_block(impl, case, transposed, activation, dtype)


@pytest.mark.parametrize("mode", ["evaluation", "no-norm"])
@pytest.mark.parametrize(("case", "transposed", "activation"), identified(ALL[2::5]))
def test_block_without_batch_statistics(impl, case, transposed, activation, mode):
    judge_block(impl, case, transposed, activation, torch.float32, norm=mode == "evaluation", training=False)


@each_kind
@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1, 1)))
def test_layouts(impl, layout, transposed):
    """Layouts of x and of the incoming gradient."""
    judge_block(impl, CASES[0], transposed, "tanh", torch.float32, layout=lambda x: layouts(x)[layout])


@each_kind
def test_gradient_that_is_one_number_expanded(impl, transposed):
    tensors = {key: t.float().requires_grad_() for key, t in draw(CASES[0], transposed, norm=False).items()}
    function = block_of(CASES[0], transposed, "none")
    ours, theirs = (torch.autograd.grad(function(impl, **tensors)[0].sum(), list(tensors.values()))
                    for impl in (impl, "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@each_dtype
@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4])
def test_statistics_are_those_of_the_stored_output(impl, ratio, dtype):
    """From the rounded output, also if E[y^2] - E[y]^2 would have no correct digit."""
    case = ((4, 3, 17, 19), 5, (4, 4), 2, 1, 0, True, 2)
    tensors = draw(case, False, norm=False)
    tensors["bias"] = torch.full((5,), ratio, dtype=torch.float64)
    x, weight, bias = (tensors[key].to(dtype) for key in ("x", "weight", "bias"))
    y, (mean, var) = OPERATORS[impl].conv_forward(x, weight, bias, ConvSpec((2, 2), (1, 1)), 2)
    exact = torch.var_mean(y.double().unflatten(0, (2, -1)), (1, 3, 4), correction=0)
    # the interpreter adds hundreds of nearly equal numbers row by row
    torch.testing.assert_close(mean.double(), exact[1], rtol=2**-20, atol=1e-6)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-5, atol=0)


@each_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_stay_where_eager_has_them(impl, activation, value, transposed):
    case = ((2, 3, 9, 8), 4, (3, 4), 2, 1, 0, False, 1)
    tensors = {key: t.float() for key, t in draw(case, transposed, norm=True).items()}
    tensors["x"][1, 2, 4, 3] = value
    tensors["x"].requires_grad_(), tensors["weight"].requires_grad_()
    function = block_of(case, transposed, activation, training=False)
    (ours, theirs) = (function(impl, **tensors) for impl in (impl, "reference"))
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(out[0].sum(), [tensors["x"], tensors["weight"]]) for out in (ours, theirs)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-4)


@each_kind
def test_nan_in_training(impl, transposed):
    """Statistics of the channel become NaN, through the convolution those of all channels, and the running statistics.
    """
    tensors = {key: t.float() for key, t in draw(CASES[0], transposed, norm=True).items()}
    tensors["x"][1, 2, 4, 3] = torch.nan
    y = block_of(CASES[0], transposed, "relu")(impl, **tensors)[0]
    assert y.isnan().all() and tensors["running_mean"].isnan().all() and tensors["running_var"].isnan().all()


def chain_layers(momentum: float | None) -> list[nn.Module]:
    torch.manual_seed(0)
    made: list[nn.Module] = [
        nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5, momentum=momentum), nn.LeakyReLU(0.3, inplace=True),
        nn.Conv2d(5, 7, (2, 3), 1, 1), nn.BatchNorm2d(7, affine=False, momentum=momentum), nn.Tanh(),
        nn.ConvTranspose2d(7, 2, 4, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Tanh()]
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.3), nn.init.normal_(layer.bias, 0.7)
    return made


@pytest.mark.parametrize(("momentum", "groups"), [(0.2, 1), (None, 3)], ids=["momentum-g1", "cumulative-g3"])
def test_chain(impl, momentum, groups):
    """Running statistics with their count, affine or not, tracked or not, over three calls and in evaluation."""
    ours, eager = (fnn.Chain(*chain_layers(momentum), impl=impl) for impl in (impl, "reference"))
    ours.stat_groups = eager.stat_groups = groups
    for seed in range(3):
        torch.manual_seed(seed)
        x, g = torch.randn(6, 3, 17, 19, requires_grad=True), torch.randn(6, 2, 20, 20)
        ours.train(seed != 2), eager.train(seed != 2)
        for network in (ours, eager):
            network.zero_grad()
        one, other = (torch.autograd.grad(network(x), [x, *network.parameters()], g) for network in (ours, eager))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(eager.named_buffers()), rtol=1e-5, atol=1e-6)
    assert ours[1].num_batches_tracked == 2 * groups


@each_kind
@pytest.mark.filterwarnings("ignore:var_mean")  # of empty tensors
def test_empty_batch(impl, transposed):
    case = ((0, 3, 17, 19), *CASES[0][1:])
    tensors = {key: t.float().requires_grad_() for key, t in draw(case, transposed, norm=False).items()}
    y = block_of(case, transposed, "relu")(impl, **tensors)[0]
    assert y.shape[0] == 0 and [g.shape for g in torch.autograd.grad(y.sum(), list(tensors.values()))] == [
        t.shape for t in tensors.values()]
