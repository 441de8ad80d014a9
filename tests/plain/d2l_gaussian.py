"""Dive into Deep Learning, section 17.1: a linear generator against a 2-D Gaussian (Gluon).

Variables: net_G[0].weight, net_G[0].bias, net_D[0].weight ... net_D[2].bias.
"""

import torch
from torch import Tensor

from tests.plain.formulas import Adam, Variables, gradients, sigmoid_cross_entropy, watch

LR_D, LR_G = 0.05, 0.005
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8  # Gluon's "adam"


def dense(p: Variables, name: str, x: Tensor) -> Tensor:
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def net_g(p: Variables, z: Tensor) -> Tensor:
    return dense(p, "net_G[0]", z)


def net_d(p: Variables, x: Tensor) -> Tensor:
    h = torch.tanh(dense(p, "net_D[0]", x))
    return dense(p, "net_D[2]", torch.tanh(dense(p, "net_D[1]", h)))


def train(p: Variables, points: list[Tensor], latents: list[Tensor]) -> Variables:
    """points (N, 2) and Z (N, 2), one of each per step."""
    d_names, g_names = ([name for name in p if name.startswith(net)] for net in ("net_D", "net_G"))
    watch(p, list(p))
    trainer_d, trainer_g = (Adam(lr, BETA1, BETA2, ADAM_EPSILON, eps_hat=True) for lr in (LR_D, LR_G))
    for x, z in zip(points, latents, strict=True):
        real_y, fake_y = net_d(p, x), net_d(p, net_g(p, z).detach())
        loss_d = (sigmoid_cross_entropy(real_y, 1) + sigmoid_cross_entropy(fake_y, 0)) / 2
        # backward() of a vector sums it; trainer.step(batch_size) divides by the batch size
        trainer_d.update(p, gradients(loss_d.sum() / len(x), p, d_names))

        loss_g = sigmoid_cross_entropy(net_d(p, net_g(p, z)), 1)
        trainer_g.update(p, gradients(loss_g.sum() / len(x), p, g_names))
    return p
