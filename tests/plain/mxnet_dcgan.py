"""Apache MXNet's tutorial "Generative Adversarial Network (GAN)": its symbols and its training loop.

Variables: g1_weight ... g5_weight, gbn1_gamma, gbn1_beta, gbn1_moving_mean, gbn1_moving_var ..., and d..., dbn... .
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.plain.formulas import Adam, Variables, batch_norm, gradients, leaky_relu, watch

EPSILON = 1e-5 + 1e-12
MOMENTUM = 1 - 0.9  # BatchNorm's default keeps 0.9 of the old value
LR, BETA1, BETA2, ADAM_EPSILON = 0.0002, 0.5, 0.999, 1e-8


def scale_pixels(x: Tensor) -> Tensor:
    return x.double() / (255.0 / 2) - 1.0


def norm(p: Variables, x: Tensor, name: str) -> Tensor:
    return batch_norm(x, p[name + "_gamma"], p[name + "_beta"], EPSILON, p[name + "_moving_mean"],
                      p[name + "_moving_var"], MOMENTUM)


def generator(p: Variables, rand: Tensor) -> Tensor:
    x = torch.relu(norm(p, F.conv_transpose2d(rand, p["g1_weight"]), "gbn1"))
    for i in (2, 3, 4):
        x = F.conv_transpose2d(x, p[f"g{i}_weight"], stride=2, padding=1)
        x = torch.relu(norm(p, x, f"gbn{i}"))
    return torch.tanh(F.conv_transpose2d(x, p["g5_weight"], stride=2, padding=1))


def discriminator(p: Variables, data: Tensor) -> Tensor:
    """The data of `LogisticRegressionOutput`: d5 after Flatten, (N, 1)."""
    x = leaky_relu(F.conv2d(data, p["d1_weight"], stride=2, padding=1), 0.2)
    for i in (2, 3, 4):
        x = F.conv2d(x, p[f"d{i}_weight"], stride=2, padding=1)
        x = leaky_relu(norm(p, x, f"dbn{i}"), 0.2)
    return F.conv2d(x, p["d5_weight"]).flatten(1)


def regression_gradient(d5: Tensor, label: float) -> Tensor:
    """The gradient of `LogisticRegressionOutput`: by definition sigmoid - label, not the gradient of a loss."""
    return torch.sigmoid(d5.detach()) - label


def train(p: Variables, images: list[Tensor], rands: list[Tensor]) -> Variables:
    """images (N, 3, 64, 64) and rands (N, 100), one of each per step."""
    for name in p:
        if name.endswith("_gamma"):
            p[name].fill_(1.0)  # fix_gamma=True
    learned = [name for name in p if name.endswith(("_weight", "_beta"))]
    g_names, d_names = ([name for name in learned if name[0] == network] for network in "gd")
    watch(p, learned)
    g_adam, d_adam = (Adam(LR, BETA1, BETA2, ADAM_EPSILON, eps_hat=True) for _ in range(2))
    for batch, rand in zip(images, rands, strict=True):
        rescale = 1.0 / len(batch)  # Module.init_optimizer divides gradients by the batch size
        out_g = generator(p, rand[:, :, None, None])

        d5 = discriminator(p, out_g.detach())
        grad_d = gradients(d5, p, d_names, regression_gradient(d5, 0))
        d5 = discriminator(p, batch)
        grad_real = gradients(d5, p, d_names, regression_gradient(d5, 1))
        d_adam.update(p, {name: rescale * (grad_real[name] + grad_d[name]) for name in d_names})

        data = out_g.detach().requires_grad_()
        d5 = discriminator(p, data)  # the label is still 1
        (diff_d,) = torch.autograd.grad(d5, data, regression_gradient(d5, 1))
        grad_g = gradients(out_g, p, g_names, diff_d)
        g_adam.update(p, {name: rescale * grad for name, grad in grad_g.items()})
    return p
