"""Custom networks, optimizers and losses in a fused training step: a least-squares GAN on handwritten digits.

    python examples/own_step.py [STEPS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastgan

steps, device = int(sys.argv[1]) if len(sys.argv) > 1 else 600, "cuda" if torch.cuda.is_available() else "cpu"
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
images = nn.functional.interpolate(images, 16, mode="bilinear").to(device)

torch.manual_seed(0)
netG = nn.Sequential(nn.ConvTranspose2d(32, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
                     nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
                     nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh()).to(device)
netD = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),
                     nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
                     nn.Conv2d(64, 1, 4), nn.Flatten(0)).to(device)


def loss_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:  # of logits; Mao et al. 2017, equation 8
    return (real - 1).square().mean() + (fake + 1).square().mean()


def loss_g(fake: torch.Tensor) -> torch.Tensor:
    return fake.square().mean()


optimizers = (torch.optim.AdamW(netG.parameters(), 1e-3, (0.5, 0.999)), torch.optim.RMSprop(netD.parameters(), 2e-4))
step = fastgan.GANStep(fastgan.convert(netG), fastgan.convert(netD), nz=32, loss=(loss_d, loss_g),
                       optimizers=optimizers, grad_clip=5.0, ema=0.99)
step = fastgan.GraphedStep(step)  # one CUDA graph on a GPU
for i in range(1, steps + 1):
    metrics = step(images[torch.randint(len(images), (64,), device=device)])
    if i % 100 == 0 or i == steps:
        print(f"step {i}: loss D {metrics['loss_d']:.3f}, loss G {metrics['loss_g']:.3f}, "
              f"diversity {metrics['diversity']:.2f}")

with torch.no_grad():
    drawn = step.ema.module(torch.randn(64, 32, 1, 1, device=device)).cpu()
fastgan.pictures.save(fastgan.pictures.grid(((drawn + 1) * 127.5).to(torch.uint8)), "own_step.png")
print("own_step.png")
