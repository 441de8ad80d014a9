"""Custom networks from fastgan's blocks, trained as WGAN-GP (Gulrajani et al. 2017).

    python examples/own_networks.py [STEPS]

A block consists of convolution, batch normalization and activation, with the names that they have in an
`nn.Sequential`. Blocks can be used in any module; a `Chain` runs consecutive blocks as one operation.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastgan import pictures
from fastgan.config import DataConfig
from fastgan.data import Loader, open_dataset, to_model_range, to_uint8
from fastgan.nn import Chain, ConvBNAct, ConvTransposeBNAct, ConvTransposeBNReLU
from fastgan.train import GANStep

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
NZ, WIDTH = 64, 24


class Generator(nn.Module):
    """z (N, 64) -> (N, 1, 24, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(NZ, WIDTH * 4 * 3 * 3)
        self.main = Chain(ConvTransposeBNReLU(WIDTH * 4, WIDTH * 2, 4, 2, 1),
                          ConvTransposeBNReLU(WIDTH * 2, WIDTH, 4, 2, 1),
                          ConvTransposeBNAct(WIDTH, 1, 4, 2, 1, norm=False, activation="tanh"))

    def forward(self, z: Tensor) -> Tensor:
        return self.main(self.start(z).view(-1, WIDTH * 4, 3, 3))


class Critic(nn.Module):
    """(N, 1, 24, 24) -> (N,). Without batch normalization: the gradient penalty is defined for single images."""

    def __init__(self) -> None:
        super().__init__()
        self.main = Chain(ConvBNAct(1, WIDTH, 4, 2, 1, norm=False, bias=True),
                          ConvBNAct(WIDTH, WIDTH * 2, 4, 2, 1, norm=False, bias=True),
                          ConvBNAct(WIDTH * 2, WIDTH * 4, 4, 2, 1, norm=False, bias=True))
        self.end = nn.Linear(WIDTH * 4 * 3 * 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.main(x).flatten(1)).squeeze(1)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
data = DataConfig(image_size="24", batch=64)
loader = Loader(open_dataset(data), data, seed=0)
generator, critic = Generator().to(device), Critic().to(device)
step = GANStep(generator, critic, nz=NZ, loss="wgan-gp", gp=10.0, n_critic=5, lr=1e-4, beta1=0.0, beta2=0.9)

for _ in tqdm(range(STEPS)):
    pixels, _labels = loader.next_batch()  # uint8 (64, 1, 24, 24)
    real = to_model_range(pixels.to(device), flip=False, unit_range=False, dtype=torch.float32)
    losses = step(real)
print("critic's distance:", round((losses["d_real"] - losses["d_fake"]).item(), 3))

with torch.no_grad():
    drawn = generator.eval()(torch.randn(64, NZ, device=device)).cpu()
pictures.save(pictures.grid(to_uint8(drawn, False)), Path("own_networks.png"))
print("own_networks.png")
