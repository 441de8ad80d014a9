"""Custom networks and a custom loop with fastgan's training step: a GAN that learns a ring of eight points.

    python examples/own_loop.py [STEPS]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import nn

from fastgan import pictures
from fastgan.train import GANStep


def ring(count: int) -> torch.Tensor:
    """Points (count, 2) near eight positions on a circle."""
    angle = torch.randint(0, 8, (count,)) * (math.pi / 4)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = perceptron(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x).squeeze(1)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    torch.manual_seed(0)
    generator = perceptron(8, 2)
    step = GANStep(generator, Critic(), nz=8, r1=0.1, lr=1e-3, beta1=0.0)
    for i in range(steps):
        losses = step(ring(256))
        if (i + 1) % 500 == 0:
            print(i + 1, {name: round(value.item(), 3) for name, value in losses.items()})
    with torch.no_grad():
        pictures.scatter(Path("ring.png"), real=ring(500), generated=generator(step.draw(torch.empty(500, 2))))
    print("ring.png")


if __name__ == "__main__":
    main()
