"""SAME padding, in the networks and in the plain loops: the transposed convolution is the convolution's adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.nn import Chain
from fastgan.nn.blocks import block, read
from fastgan.nn.chain import flat
from fastgan.nn.same_padding import ConvSame, ConvTransposeSame
from fastgan.ops import reference
from tests.plain.formulas import tf_conv2d, tf_conv2d_transpose

# (large, small, kernel, stride); the first five are the presets'
SIZES = [(28, 28, 5, 1), (28, 14, 5, 2), (14, 7, 5, 2), (3, 2, 5, 2), (12, 6, 5, 2), (13, 5, 4, 3), (17, 9, 3, 2),
         (11, 3, 10, 4)]


@pytest.mark.parametrize(("large", "small", "kernel", "stride"), SIZES, ids=lambda n: str(n))
def test_transposed_is_the_adjoint(large, small, kernel, stride):
    """<conv(x), y> = <x, transposed(y)> for the same weights."""
    torch.manual_seed(large)
    x = torch.randn(2, 3, large, large, dtype=torch.float64)
    y = torch.randn(2, 4, small, small, dtype=torch.float64)
    down = ConvSame(3, 4, kernel, stride, large).double()
    up = ConvTransposeSame(4, 3, kernel, stride, small, large).double()
    up.weight.data, down.bias.data, up.bias.data = down.weight.data, torch.zeros(4).double(), torch.zeros(3).double()
    assert down(x).shape == y.shape and up(y).shape == x.shape
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())

    hwio = down.weight.detach().permute(2, 3, 1, 0)
    torch.testing.assert_close(down(x), tf_conv2d(x.permute(0, 2, 3, 1), hwio, stride).permute(0, 3, 1, 2))
    torch.testing.assert_close(
        up(y), tf_conv2d_transpose(y.permute(0, 2, 3, 1), hwio, stride, large, "SAME").permute(0, 3, 1, 2))


@pytest.mark.parametrize(("large", "small", "kernel", "stride"), SIZES[:7], ids=lambda n: str(n))
def test_as_stages(large, small, kernel, stride):
    """A chain reads them as blocks; outputs, gradients and gradients of gradients are those of the layers."""
    torch.manual_seed(large)
    down, up = ConvSame(3, 4, kernel, stride, large), ConvTransposeSame(4, 3, kernel, stride, small, large)
    layers = nn.Sequential(down, nn.BatchNorm2d(4), nn.LeakyReLU(0.2), up, nn.BatchNorm2d(3), nn.Tanh()).double()
    chain = Chain(*layers)
    assert [len(part) for part in read(flat(chain))] == [2]
    found = []
    for network in (layers, chain):
        x = torch.linspace(-1, 1, 6 * large**2, dtype=torch.float64).view(2, 3, large, large).sin().requires_grad_()
        y = network(x)
        (gx,) = torch.autograd.grad((y * y).sum() + y.sum(), x, create_graph=True)
        found.append([y, gx, *torch.autograd.grad(gx.square().sum(), [x, *network.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("large", "small", "kernel", "stride"), SIZES[:7], ids=lambda n: str(n))
@pytest.mark.parametrize("kind", ["convolution", "transposed"])
def test_gradient_spelt_out(large, small, kernel, stride, kind):
    """The passes also handle the odd pixel."""
    torch.manual_seed(large)
    layer: nn.Module = ConvSame(3, 4, kernel, stride, large)
    if kind == "transposed":
        layer = ConvTransposeSame(3, 4, kernel, stride, small, large)
    tensors, (conv, _, _) = block(layer.double(), None, None)
    side = small if kind == "transposed" else large
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    gy = torch.randn_like(y)
    given = reference.dgrad(gy, x, tensors.weight, conv), reference.wgrad(gy, x, tensors.weight, conv)
    torch.testing.assert_close(given, torch.autograd.grad(y, [x, layer.weight], gy))


@pytest.mark.parametrize(("side", "left", "right"), [(28, 1, 2), (14, 1, 2), (3, 2, 2)])
def test_the_odd_pixel_of_padding_comes_after(side, left, right):
    """An impulse in the corner: with a kernel that reads only its first tap, output 0 reads pixel -left."""
    conv = ConvSame(1, 1, 5, 2, side)
    assert conv.pads == (left, right, left, right)
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    conv.weight.data[..., left, left] = 1
    image = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    assert torch.equal(conv(image), image[..., ::2, ::2])
