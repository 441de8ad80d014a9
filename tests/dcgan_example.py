"""The networks of PyTorch's DCGAN example, small, as plain layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def networks(nz: int = 6, ngf: int = 4, nc: int = 3, ndf: int = 5) -> tuple[nn.Sequential, nn.Sequential]:
    """Networks with the layers and names of the example; no value is the initial one."""
    torch.manual_seed(0)
    generator: list[nn.Module] = [nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 8),
                                  nn.ReLU()]
    discriminator: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for wide in (4, 2, 1):
        generator += [nn.ConvTranspose2d(ngf * wide * 2, ngf * wide, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * wide),
                      nn.ReLU()]
    for wide in (1, 2, 4):
        discriminator += [nn.Conv2d(ndf * wide, ndf * wide * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ndf * wide * 2),
                          nn.LeakyReLU(0.2)]
    made = (nn.Sequential(*generator, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh()),
                nn.Sequential(*discriminator, nn.Conv2d(ndf * 8, 1, 4, bias=False), nn.Sigmoid()))
    for network in made:
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for _ in range(10):  # running statistics
        made[0](torch.randn(16, nz, 1, 1))
    return made


def named(network: nn.Sequential) -> dict[str, Tensor]:
    return {f"main.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
