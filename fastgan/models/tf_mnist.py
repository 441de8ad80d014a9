"""The networks of a TensorFlow 1 DCGAN tutorial on MNIST, 28x28x1, with two-class softmax outputs.

    generator       z (N, nz) -> dense 7*7*128, BN, relu -> 14x14x64, BN, relu -> 28x28x1, tanh
    discriminator   28x28x1 -> 14x14x64, BN, leaky relu -> 7x7x128, BN, leaky relu -> dense 1024, BN, leaky relu -> 2

Reshapes between vectors and images are in TensorFlow's NHWC order.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.nn import Chain
from fastgan.nn.same_padding import ConvSame, ConvTransposeSame


class TFGenerator(nn.Module):
    """Shape: z (N, nz) -> (N, 1, 28, 28)."""

    def __init__(self, nz: int = 100, bn_eps: float = 1e-3, bn_momentum: float = 1e-2) -> None:
        super().__init__()
        self.nz = nz
        self.fc, self.bn0 = nn.Linear(nz, 7 * 7 * 128), nn.BatchNorm1d(7 * 7 * 128, bn_eps, bn_momentum)
        self.main = Chain(ConvTransposeSame(128, 64, 5, 2, 7, 14), nn.BatchNorm2d(64, bn_eps, bn_momentum),
                          nn.ReLU(inplace=True), ConvTransposeSame(64, 1, 5, 2, 14, 28), nn.Tanh())
        glorot_uniform(self)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.bn0(self.fc(z))).view(-1, 7, 7, 128).permute(0, 3, 1, 2)
        return self.main(h)


class TFDiscriminator(nn.Module):
    """Shape: x (N, 1, 28, 28) -> (N, 2), logits of the classes fake and real."""

    def __init__(self, bn_eps: float = 1e-3, bn_momentum: float = 1e-2) -> None:
        super().__init__()
        self.main = Chain(
            ConvSame(1, 64, 5, 2, 28), nn.BatchNorm2d(64, bn_eps, bn_momentum), nn.LeakyReLU(0.2, inplace=True),
            ConvSame(64, 128, 5, 2, 14), nn.BatchNorm2d(128, bn_eps, bn_momentum), nn.LeakyReLU(0.2, inplace=True))
        self.fc1, self.bn3 = nn.Linear(7 * 7 * 128, 1024), nn.BatchNorm1d(1024, bn_eps, bn_momentum)
        self.fc2 = nn.Linear(1024, 2)
        glorot_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(self.main(x).permute(0, 2, 3, 1).flatten(1))
        return self.fc2(F.leaky_relu(self.bn3(h), 0.2))


def glorot_uniform(network: nn.Module) -> None:
    """Initialize as tf.layers does: Glorot-uniform kernels, zero biases."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
