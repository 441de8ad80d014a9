"""Common networks, converted: torchvision's, PyTorch's DCGAN, blocks of norm_act, a pix2pix U-Net, and those of GAN
tutorials, written from their descriptions. Three steps of each in float64 equal those of eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan
from tests import dcgan_example

pytestmark = pytest.mark.usefixtures("one_thread")


class Main(nn.Module):
    """The networks of PyTorch's DCGAN example."""

    def __init__(self, main: nn.Sequential) -> None:
        super().__init__()
        self.ngpu, self.main = 1, main

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda and self.ngpu > 1:
            return nn.parallel.data_parallel(self.main, input, range(self.ngpu))
        return self.main(input)


class BatchNormAct2d(nn.BatchNorm2d):
    """Normalization and activation in one module, as in timm."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum,
                         self.eps)
        return self.act(x)


class ConvNormAct(nn.Module):
    def __init__(self, channels: int, out: int, act: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, out, 3, 2, 1, bias=False), BatchNormAct2d(out, act)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def norm_act() -> nn.Module:
    return nn.Sequential(ConvNormAct(3, 4), ConvNormAct(4, 6), ConvNormAct(6, 5, act=False))


class UnetBlock(nn.Module):
    """A level of pix2pix's U-Net, which contains the next level."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None, outermost: bool = False) -> None:
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(3 if outermost else outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(inner if inside is None else 2 * inner, outer, 4, 2, 1, bias=outermost)
        if outermost:
            layers = [down, inside, nn.ReLU(True), up, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        else:
            layers = [nn.LeakyReLU(0.2, True), down, nn.BatchNorm2d(inner), inside, nn.ReLU(True), up,
                      nn.BatchNorm2d(outer), nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def unet() -> nn.Module:
    return UnetBlock(3, 4, UnetBlock(4, 6, UnetBlock(6, 8, None)), outermost=True)


class Upsampling(nn.Module):
    """The generator of PyTorch-GAN's DCGAN: a linear layer, a view, upsampling in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.init_size = 4
        self.l1 = nn.Sequential(nn.Linear(10, 8 * self.init_size ** 2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(8), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, stride=1, padding=1),
            nn.BatchNorm2d(8, 0.8), nn.LeakyReLU(0.2, inplace=True), nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 4, 3, stride=1, padding=1), nn.BatchNorm2d(4, 0.8), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4, 1, 3, stride=1, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        out = self.l1(z)
        out = out.view(out.shape[0], 8, self.init_size, self.init_size)
        return self.conv_blocks(out)


class DropoutDiscriminator(nn.Module):
    """The discriminator of PyTorch-GAN's DCGAN: blocks from a function, a view, a linear layer with a sigmoid."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels: int, out: int, bn: bool = True) -> list[nn.Module]:
            layers = [nn.Conv2d(channels, out, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(0.25)]
            return [*layers, nn.BatchNorm2d(out, 0.8)] if bn else layers

        self.model = nn.Sequential(*block(1, 4, bn=False), *block(4, 6), *block(6, 8))
        self.adv_layer = nn.Sequential(nn.Linear(8 * 2 * 2, 1), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        out = self.model(image)
        return self.adv_layer(out.view(out.shape[0], -1))


class AttributeGenerator(nn.Module):
    """A network of MNIST tutorials, with numbered attributes and functional activations."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.deconv1, self.deconv1_bn = nn.ConvTranspose2d(10, d * 4, 4, 1, 0), nn.BatchNorm2d(d * 4)
        self.deconv2, self.deconv2_bn = nn.ConvTranspose2d(d * 4, d * 2, 4, 2, 1), nn.BatchNorm2d(d * 2)
        self.deconv3 = nn.ConvTranspose2d(d * 2, 1, 4, 2, 1)

    def forward(self, input: Tensor) -> Tensor:
        x = F.relu(self.deconv1_bn(self.deconv1(input[:, :, None, None])))
        x = F.relu(self.deconv2_bn(self.deconv2(x)))
        return torch.tanh(self.deconv3(x))


class AttributeDiscriminator(nn.Module):
    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, d, 4, 2, 1)
        self.conv2, self.conv2_bn = nn.Conv2d(d, d * 2, 4, 2, 1), nn.BatchNorm2d(d * 2)
        self.conv3 = nn.Conv2d(d * 2, 1, 4, 1, 0)

    def forward(self, input: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(input), 0.2)
        x = F.leaky_relu(self.conv2_bn(self.conv2(x)), 0.2)
        return torch.sigmoid(self.conv3(x)).squeeze()


class Conditional(nn.Module):
    """A conditional GAN's discriminator: an embedding as an additional channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 16 * 16)
        self.disc = nn.Sequential(nn.Conv2d(2, 4, 4, 2, 1), nn.LeakyReLU(0.2), self._block(4, 6, 4, 2, 1),
                                  nn.Conv2d(6, 1, 4))

    def _block(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, padding, bias=False),
                             nn.InstanceNorm2d(out, affine=True), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        labels = torch.arange(len(x)) % 5
        return self.disc(torch.cat([x, self.embed(labels).view(-1, 1, 16, 16)], 1)).flatten(1)


class ResidualGenerator(nn.Module):
    """CycleGAN's generator: reflection padding, residual blocks, in a sequence built from a list."""

    def __init__(self) -> None:
        super().__init__()
        model: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7), nn.BatchNorm2d(4), nn.ReLU(True)]
        model += [nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True), Residual(8), Residual(8)]
        model += [nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), nn.BatchNorm2d(4), nn.ReLU(True)]
        self.model = nn.Sequential(*model, nn.ReflectionPad2d(3), nn.Conv2d(4, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3),
                                        nn.BatchNorm2d(channels), nn.ReLU(True), nn.ReflectionPad2d(1),
                                        nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class SpectralDiscriminator(nn.Module):
    """SN-GAN's discriminator: spectral normalization of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        spectral_norm = nn.utils.parametrizations.spectral_norm
        self.conv1, self.conv2 = spectral_norm(nn.Conv2d(3, 4, 3, 1, 1)), spectral_norm(nn.Conv2d(4, 6, 4, 2, 1))
        self.fc = spectral_norm(nn.Linear(6 * 8 * 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        m = nn.LeakyReLU(0.1)(self.conv1(x))
        m = nn.LeakyReLU(0.1)(self.conv2(m))
        return self.fc(m.view(-1, 6 * 8 * 8))


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(pytest.importorskip("torchvision").models, name)(num_classes=5, **options)


IMAGES, GREY, NOISE = (4, 3, 16, 16), (4, 1, 16, 16), (4, 10)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # network, input, fused blocks
    "mnasnet": (torchvision("mnasnet0_5", dropout=0.0), (2, 3, 32, 32), 35),
    "resnet18": (torchvision("resnet18"), (2, 3, 32, 32), 20),
    "densenet": (torchvision("DenseNet", growth_rate=4, block_config=(2, 2, 2, 2), num_init_features=8),
                 (2, 3, 32, 32), 20),
    "dcgan-g": (lambda: Main(dcgan_example.networks()[0]), (4, 6, 1, 1), 5),
    "dcgan-d": (lambda: Main(dcgan_example.networks()[1]), (4, 3, 64, 64), 5),
    "norm_act": (norm_act, IMAGES, 3),
    "unet": (unet, IMAGES, 6),
    "upsampling": (Upsampling, NOISE, 3),
    "dropout": (DropoutDiscriminator, GREY, 3),
    "attributes-g": (AttributeGenerator, NOISE, 3),
    "attributes-d": (AttributeDiscriminator, GREY, 3),
    "conditional": (Conditional, GREY, 3),
    "residual": (ResidualGenerator, IMAGES, 8),
    "spectral": (SpectralDiscriminator, IMAGES, 2),
}


def train(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-3)  # a small eps would magnify rounding
    torch.manual_seed(2)
    outputs = {}
    for step in range(3):
        outputs[str(step)] = y = network(torch.randn(shape, dtype=torch.float64))
        optimizer.zero_grad()
        y.square().mean().backward()
        optimizer.step()
    return {**outputs, **network.state_dict()}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_equals_eager(name):
    torch.compiler.reset()
    make, shape, blocks = NETWORKS[name]
    torch.manual_seed(0)
    eager = make().double()
    converted = fastgan.convert(copy.deepcopy(eager))
    expected, found = train(eager, shape), train(converted, shape)
    assert list(expected) == list(found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
    fused = [line for line in converted.fastgan_report if "as PyTorch operators" in line and "to run" not in line]
    assert len(fused) == blocks, "\n".join(converted.fastgan_report)
