"""The smallest GAN: a linear generator against a 2-D Gaussian (Dive into Deep Learning, section 17.1)."""

from __future__ import annotations

from torch import Tensor, nn


class GaussianGenerator(nn.Module):
    """One dense layer. Shape: z (N, nz) -> points (N, 2)."""

    def __init__(self, nz: int = 2) -> None:
        super().__init__()
        self.nz = nz
        self.main = nn.Linear(nz, 2)
        small_normal(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class GaussianDiscriminator(nn.Module):
    """Dense layers of 5, 3 and 1 units with tanh between them. Shape: points (N, 2) -> logits (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
        small_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1)


def small_normal(network: nn.Module) -> None:
    """Initialize weights from N(0, 0.02) and biases with 0, as Gluon does with `init.Normal(0.02)`."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            nn.init.zeros_(module.bias)
