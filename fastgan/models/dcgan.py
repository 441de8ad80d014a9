"""The DCGAN of Radford, Metz and Chintala (2015, arXiv:1511.06434), for image sizes that are divisible by 16.

    generator       z (N, nz) -> (N, C0, h, w) -> ... doubling ... -> (N, nc, H, W)
    discriminator   x (N, nc, H, W) -> ... halving ... -> (N, C0, h, w) -> (N,)

The size determines the depth: the image is halved as long as both sides are even and the results are at least 4, so
there are four halvings from 64x64 to 4x4, and four from 64x96 to 4x6. Layers and state_dict keys are those of PyTorch's
DCGAN example (`main.0.weight`, ...), in a `fastgan.nn.Chain`. The discriminator returns logits instead of
probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.nn import Chain
from fastgan.nn.spectral import spectral_norm

_WIDEST = 16  # the number of channels doubles with each halving, up to this multiple of the base width


def halvings(height: int, width: int) -> int:
    """How often the image is halved. Raises `FastganError` for a size that a DCGAN does not support."""
    if height % 16 or width % 16 or min(height, width) < 16:
        raise FastganError(
            f"image size {height}x{width}: expected sides divisible by 16, such as 16, 32, 64x96 or 128")
    count = 0
    while not height % 2 and not width % 2 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def stage_widths(base: int, count: int) -> list[int]:
    """Number of channels after each of `count` halvings, such as 64, 128, 256, 512 for base 64."""
    return [base * min(2**i, _WIDEST) for i in range(count)]


class DCGANGenerator(nn.Module):
    """Maps latent vectors to images in (-1, 1).

    Args:
        nz: length of z.
        ngf: number of channels of the last hidden layer.
        nc: number of channels of an image.
        image_size: side, or (H, W); sides must be divisible by 16.
        bn_eps: eps of `nn.BatchNorm2d`.
        bn_momentum: momentum of `nn.BatchNorm2d`.
        gamma_std: weights of `nn.BatchNorm2d` are initialized from N(1, gamma_std).
        fix_gamma: keep these weights at 1, MXNet's default.
        num_classes: the number of classes of a conditional generator; 0 for an unconditional one.

    Shape:
        z (N, nz) or (N, nz, 1, 1), and labels (N,) int64 if conditional -> (N, nc, H, W).

    Raises:
        FastganError: if a side of the images is not divisible by 16.
    """

    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 3, image_size: int | tuple[int, int] = 64, *,
                 bn_eps: float = 1e-5, bn_momentum: float = 0.1, gamma_std: float = 0.02, fix_gamma: bool = False,
                 num_classes: int = 0) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        count = halvings(height, width)
        self.nz = nz
        self.embedding = nn.Embedding(num_classes, nz) if num_classes else None
        layers: list[nn.Module] = []
        channels = nz * (2 if num_classes else 1)
        for i, out in enumerate(reversed(stage_widths(ngf, count))):
            kernel, stride, padding = (4, 2, 1) if i else ((height >> count, width >> count), 1, 0)
            layers += [nn.ConvTranspose2d(channels, out, kernel, stride, padding, bias=False),
                       nn.BatchNorm2d(out, bn_eps, bn_momentum), nn.ReLU(inplace=True)]
            channels = out
        self.main = Chain(*layers, nn.ConvTranspose2d(channels, nc, 4, 2, 1, bias=False), nn.Tanh())
        initialise(self, gamma_std, fix_gamma, label_std=0.1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        z = z.flatten(1)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        return self.main(z[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """Maps images to logits, which are positive for images classified as real.

    Args:
        ndf: number of channels of the first layer.
        nc: number of channels of an image.
        image_size: side, or (H, W); sides must be divisible by 16.
        norm: which layers have batch normalization: all but the first ("skip-first"), "all" or "none"; or "spectral"
            for spectral normalization of all convolutions instead.
        bn_eps: eps of `nn.BatchNorm2d`.
        bn_momentum: momentum of `nn.BatchNorm2d`.
        gamma_std: as in `DCGANGenerator`.
        fix_gamma: as in `DCGANGenerator`.
        num_classes: the number of classes of a conditional discriminator, which receives the embedding of the label as
            an additional channel of the image; 0 for an unconditional one.

    Shape:
        x (N, nc, H, W), and labels (N,) int64 if conditional -> (N,).

    Raises:
        FastganError: if a side of the images is not divisible by 16.
    """

    def __init__(self, ndf: int = 64, nc: int = 3, image_size: int | tuple[int, int] = 64, *,
                 norm: str = "skip-first", bn_eps: float = 1e-5, bn_momentum: float = 0.1, gamma_std: float = 0.02,
                 fix_gamma: bool = False, num_classes: int = 0) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        count = halvings(height, width)
        self.embedding = nn.Embedding(num_classes, height * width) if num_classes else None
        layers: list[nn.Module] = []
        channels = nc + (1 if num_classes else 0)
        for i, out in enumerate(stage_widths(ndf, count)):
            layers.append(nn.Conv2d(channels, out, 4, 2, 1, bias=False))
            if norm == "all" or (norm == "skip-first" and i):
                layers.append(nn.BatchNorm2d(out, bn_eps, bn_momentum))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = out
        self.main = Chain(*layers, nn.Conv2d(channels, 1, (height >> count, width >> count), bias=False))
        initialise(self, gamma_std, fix_gamma, label_std=1.0)
        if norm == "spectral":  # after the initialization of the weights
            for layer in self.main:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(labels).view(-1, 1, *x.shape[2:])], 1)
        return self.main(x).view(x.shape[0])


def initialise(network: nn.Module, gamma_std: float, fix_gamma: bool, label_std: float) -> None:
    """Initialize convolutions from N(0, 0.02), and batch normalization weights from N(1, gamma_std) or as constant 1.

    Label embeddings are initialized from N(0, label_std), with 0.1 in the generator: with PyTorch's N(0, 1) they are as
    large as z, and the generator learns to ignore z within a class. In the discriminator they are as large as the
    image: with N(0, 0.1), the images of a few hundred steps are worse (docs/training.md has the figures).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.0 if fix_gamma else gamma_std)
            module.weight.requires_grad_(not fix_gamma)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, label_std)
