"""Radford, Metz and Chintala's DCGAN (2015) in the form of PyTorch's DCGAN example.

Variables: netG.main.0.weight ... and netD.main.0.weight ..., the state_dict keys of the example. Their number
determines the depth, because smaller and larger variants repeat the same stage.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.plain.formulas import Adam, Variables, batch_norm, gradients, leaky_relu, watch

LR, BETA1, BETA2, ADAM_EPSILON = 0.0002, 0.5, 0.999, 1e-8
BN_EPSILON, BN_MOMENTUM = 1e-5, 0.1  # nn.BatchNorm2d
REAL_LABEL, FAKE_LABEL = 1, 0


def scale_pixels(x: Tensor) -> Tensor:
    """ToTensor, then Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))."""
    return (x.double() / 255 - 0.5) / 0.5


def norm(p: Variables, x: Tensor, layer: str) -> Tensor:
    weight, bias, mean, var = (p[f"{layer}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
    return batch_norm(x, weight, bias, BN_EPSILON, mean, var, BN_MOMENTUM)


def net_g(p: Variables, noise: Tensor) -> Tensor:
    """Groups of transposed convolution, batch normalization and relu; then the last convolution and tanh."""
    stages = sum(name.startswith("netG") and name.endswith("running_mean") for name in p)
    x = noise
    for i in range(stages):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        x = F.conv_transpose2d(x, p[f"netG.main.{3 * i}.weight"], stride=stride, padding=padding)
        x = torch.relu(norm(p, x, f"netG.main.{3 * i + 1}"))
    return torch.tanh(F.conv_transpose2d(x, p[f"netG.main.{3 * stages}.weight"], stride=2, padding=1))


def net_d(p: Variables, x: Tensor) -> Tensor:
    """Convolution, leaky relu; groups of convolution, batch normalization and leaky relu; convolution, sigmoid."""
    stages = sum(name.startswith("netD") and name.endswith("running_mean") for name in p)
    x = leaky_relu(F.conv2d(x, p["netD.main.0.weight"], stride=2, padding=1), 0.2)
    for i in range(2, 2 + 3 * stages, 3):
        x = F.conv2d(x, p[f"netD.main.{i}.weight"], stride=2, padding=1)
        x = leaky_relu(norm(p, x, f"netD.main.{i + 1}"), 0.2)
    return torch.sigmoid(F.conv2d(x, p[f"netD.main.{2 + 3 * stages}.weight"])).flatten()


def criterion(output: Tensor, label: int) -> Tensor:
    """BCELoss."""
    return -(label * torch.log(output) + (1 - label) * torch.log(1 - output)).mean()


def train(p: Variables, images: list[Tensor], noises: list[Tensor]) -> Variables:
    """images (N, nc, H, W) and noises (N, nz), one of each per step."""
    learned = [name for name in p if "running" not in name]
    d_names, g_names = ([name for name in learned if name.startswith(net)] for net in ("netD", "netG"))
    watch(p, learned)
    optimizer_d, optimizer_g = (Adam(LR, BETA1, BETA2, ADAM_EPSILON, eps_hat=False) for _ in range(2))
    for real, noise in zip(images, noises, strict=True):
        grad_real = gradients(criterion(net_d(p, real), REAL_LABEL), p, d_names)
        fake = net_g(p, noise[:, :, None, None])
        grad_fake = gradients(criterion(net_d(p, fake.detach()), FAKE_LABEL), p, d_names)
        optimizer_d.update(p, {name: grad_real[name] + grad_fake[name] for name in d_names})

        optimizer_g.update(p, gradients(criterion(net_d(p, fake), REAL_LABEL), p, g_names))
    return p
