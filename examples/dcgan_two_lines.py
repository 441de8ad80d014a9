"""The DCGAN training loop of dcgan_textbook.py, with its body replaced by two lines: a `GANStep` in a CUDA graph.

    python examples/dcgan_two_lines.py [STEPS]

Losses, order of updates and Adam are those of the textbook loop, without its redundant computation, and on a GPU the
host only replays the graph. On a CPU there are no CUDA graphs: `GraphedStep` logs this once, and steps run eagerly.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fastgan
from fastgan.train import GANStep, GraphedStep

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 500
BATCH, NZ, WIDTH = 64, 64, 32
LR, BETAS = 2e-4, (0.5, 0.999)

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# handwritten digits, (1797, 1, 32, 32) in [-1, 1]
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
images = F.interpolate(images, 32, mode="bilinear").to(device)

netG = nn.Sequential(
    nn.Unflatten(1, (NZ, 1, 1)),  # z is (N, NZ)
    nn.ConvTranspose2d(NZ, WIDTH * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(WIDTH * 4), nn.ReLU(True),
    nn.ConvTranspose2d(WIDTH * 4, WIDTH * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH * 2), nn.ReLU(True),
    nn.ConvTranspose2d(WIDTH * 2, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(True),
    nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1, bias=False), nn.Tanh()).to(device)

netD = nn.Sequential(
    nn.Conv2d(1, WIDTH, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
    nn.Conv2d(WIDTH, WIDTH * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH * 2), nn.LeakyReLU(0.2, True),
    nn.Conv2d(WIDTH * 2, WIDTH * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH * 4), nn.LeakyReLU(0.2, True),
    nn.Conv2d(WIDTH * 4, 1, 4, bias=False), nn.Flatten(0), nn.Sigmoid()).to(device)

for name, parameter in [*netG.named_parameters(), *netD.named_parameters()]:
    if parameter.dim() > 1:
        nn.init.normal_(parameter, 0.0, 0.02)
    elif name.endswith("weight"):  # batch normalization
        nn.init.normal_(parameter, 1.0, 0.02)

# without D's sigmoid: the loss takes logits
step = GANStep(fastgan.convert(netG), fastgan.convert(netD[:-1]), nz=NZ, lr=LR, beta1=BETAS[0], beta2=BETAS[1])
step = GraphedStep(step)  # the same calls, one CUDA graph

for i in range(1, STEPS + 1):
    real = images[torch.randint(len(images), (BATCH,), device=device)]
    losses = step(real)  # scalars on the device
    if i % 100 == 0 or i == STEPS:
        print(f"step {i}: loss D {losses['loss_d']:.3f}, loss G {losses['loss_g']:.3f}")
