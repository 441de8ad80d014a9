"""Dive into Deep Learning, section 17.2: the DCGAN on Pokemon sprites (Gluon).

Variables: net_G[0].conv2d_trans.weight, net_G[0].batch_norm.gamma, .beta, .running_mean, .running_var ...
net_G[4].weight, and net_D[0].conv2d.weight ... net_D[4].weight.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.plain.formulas import Adam, Variables, batch_norm, gradients, leaky_relu, sigmoid_cross_entropy, watch

LR, BETA1 = 0.005, 0.5
BETA2, ADAM_EPSILON = 0.999, 1e-8  # Gluon's "adam"
BN_EPSILON, BN_MOMENTUM = 1e-5, 1 - 0.9  # Gluon's BatchNorm keeps 0.9 of the old value


def scale_pixels(x: Tensor) -> Tensor:
    """ToTensor, then Normalize(0.5, 0.5)."""
    return (x.double() / 255 - 0.5) / 0.5


def norm(p: Variables, x: Tensor, block: str) -> Tensor:
    gamma, beta, mean, var = (p[f"{block}.batch_norm.{k}"] for k in ("gamma", "beta", "running_mean", "running_var"))
    return batch_norm(x, gamma, beta, BN_EPSILON, mean, var, BN_MOMENTUM)


def net_g(p: Variables, x: Tensor) -> Tensor:
    for i in range(4):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        x = F.conv_transpose2d(x, p[f"net_G[{i}].conv2d_trans.weight"], stride=stride, padding=padding)
        x = torch.relu(norm(p, x, f"net_G[{i}]"))
    return torch.tanh(F.conv_transpose2d(x, p["net_G[4].weight"], stride=2, padding=1))


def net_d(p: Variables, x: Tensor) -> Tensor:
    for i in range(4):
        x = F.conv2d(x, p[f"net_D[{i}].conv2d.weight"], stride=2, padding=1)
        x = leaky_relu(norm(p, x, f"net_D[{i}]"), 0.2)
    return F.conv2d(x, p["net_D[4].weight"])


def train(p: Variables, images: list[Tensor], latents: list[Tensor]) -> Variables:
    """images (N, 3, 64, 64) and Z (N, 100), one of each per step."""
    learned = [name for name in p if "running" not in name]
    d_names, g_names = ([name for name in learned if name.startswith(net)] for net in ("net_D", "net_G"))
    watch(p, learned)
    trainer_d, trainer_g = (Adam(LR, BETA1, BETA2, ADAM_EPSILON, eps_hat=True) for _ in range(2))
    for x, latent in zip(images, latents, strict=True):
        z = latent[:, :, None, None]
        real_y = net_d(p, x)
        fake_x = net_g(p, z)
        fake_y = net_d(p, fake_x.detach())
        loss_d = (sigmoid_cross_entropy(real_y, 1) + sigmoid_cross_entropy(fake_y, 0)) / 2
        # backward() of a vector sums it; trainer.step(batch_size) divides by the batch size
        trainer_d.update(p, gradients(loss_d.sum() / len(x), p, d_names))

        loss_g = sigmoid_cross_entropy(net_d(p, net_g(p, z)), 1)
        trainer_g.update(p, gradients(loss_g.sum() / len(x), p, g_names))
    return p
