"""The networks of "Generative adversarial networks for beginners" (O'Reilly, TensorFlow 1), 28x28x1.

    generator       z (N, 100) as 2x2x25, relu -> 3x3x256 -> 6x6x128 -> 12x12x64 -> 28x28x1, tanh
    discriminator   28x28x1 -> conv 5x5, 8, relu, average pooling -> conv 5x5, 16, relu, average pooling -> 32 -> 1

Reshapes between vectors and images are in TensorFlow's NHWC order.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.nn import Chain
from fastgan.nn.same_padding import ConvSame, ConvTransposeSame


class OReillyGenerator(nn.Module):
    """Four 5x5 transposed convolutions of stride 2, with batch normalization and relu between them and tanh at the end.

    The document creates a bias of 0.1 for each transposed convolution but never adds it. Batch normalization cancels a
    bias before it, so the first three layers have it as a constant; the last layer has none, because it would change
    the image.

    Shape: z (N, 100) -> (N, 1, 28, 28).
    """

    nz = 100

    def __init__(self, bn_eps: float = 1e-3, bn_momentum: float = 1e-3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, small, large in ((25, 256, 2, 3), (256, 128, 3, 6), (128, 64, 6, 12)):
            layers += [ConvTransposeSame(channels, out, 5, 2, small, large),
                       nn.BatchNorm2d(out, bn_eps, bn_momentum), nn.ReLU(inplace=True)]
        # TensorFlow's VALID padding with output size 28: the last row and column are output_padding
        last = nn.ConvTranspose2d(64, 1, 5, 2, output_padding=1, bias=False)
        self.main = Chain(*layers, last, nn.Tanh())
        for module in self.main:
            if isinstance(module, nn.ConvTranspose2d):
                truncated_normal(module.weight, 0.1)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.1).requires_grad_(False)

    def forward(self, z: Tensor) -> Tensor:
        return self.main(F.relu(z.view(-1, 2, 2, 25).permute(0, 3, 1, 2)))


class OReillyDiscriminator(nn.Module):
    """Two convolutions with average pooling and two dense layers. Shape: x (N, 1, 28, 28) -> logits (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.main = Chain(ConvSame(1, 8, 5, 1, 28), nn.ReLU(inplace=True), nn.AvgPool2d(2),
                          ConvSame(8, 16, 5, 1, 14), nn.ReLU(inplace=True), nn.AvgPool2d(2))
        self.fc1, self.fc2 = nn.Linear(7 * 7 * 16, 32), nn.Linear(32, 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                truncated_normal(layer.weight, 0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        h = F.relu(self.fc1(h.permute(0, 2, 3, 1).flatten(1)))
        return self.fc2(h).view(-1)


def truncated_normal(weight: Tensor, std: float) -> None:
    """TensorFlow's truncated_normal_initializer: N(0, std), truncated at two standard deviations."""
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
