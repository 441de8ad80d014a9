"""The DCGAN training loop of dcgan_textbook.py with one additional line: `fastgan.convert`.

    python examples/dcgan_one_line.py [STEPS]

Weights, optimizers, state_dict keys and the loop do not change. On a CPU, the C++ kernels are used if they were
compiled; `netG.fastgan_report` shows the engine.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fastgan

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

netG, netD = fastgan.convert(netG), fastgan.convert(netD)  # the one line

criterion = nn.BCELoss()
optimizerD = torch.optim.Adam(netD.parameters(), LR, BETAS)
optimizerG = torch.optim.Adam(netG.parameters(), LR, BETAS)
is_real, is_fake = torch.ones(BATCH, device=device), torch.zeros(BATCH, device=device)

for step in range(1, STEPS + 1):
    real = images[torch.randint(len(images), (BATCH,), device=device)]

    # D: log(D(x)) + log(1 - D(G(z)))
    netD.zero_grad()
    loss_real = criterion(netD(real), is_real)
    loss_real.backward()
    fake = netG(torch.randn(BATCH, NZ, device=device))
    loss_fake = criterion(netD(fake.detach()), is_fake)
    loss_fake.backward()
    optimizerD.step()

    # G: log(D(G(z)))
    netG.zero_grad()
    loss_g = criterion(netD(fake), is_real)
    loss_g.backward()
    optimizerG.step()

    if step % 100 == 0 or step == STEPS:
        print(f"step {step}: loss D {loss_real + loss_fake:.3f}, loss G {loss_g:.3f}")
