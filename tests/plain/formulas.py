"""Batch normalization, cross-entropies, TensorFlow's SAME padding and the two forms of Adam, as formulas."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Variables = dict[str, Tensor]


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, running_mean: Tensor | None = None,
               running_var: Tensor | None = None, momentum: float = 0.0) -> Tensor:
    """(x - mean) / sqrt(var + eps) * gamma + beta over all dimensions but 1; var is biased, running_var is not."""
    dims = [d for d in range(x.dim()) if d != 1]
    along = [-1 if d == 1 else 1 for d in range(x.dim())]
    mean = x.mean(dims, keepdim=True)
    var = ((x - mean) ** 2).mean(dims, keepdim=True)
    if running_mean is not None:
        count = x.numel() // x.shape[1]
        running_mean.mul_(1 - momentum).add_(momentum * mean.detach().flatten())
        running_var.mul_(1 - momentum).add_(momentum * var.detach().flatten() * count / (count - 1))
    return (x - mean) / torch.sqrt(var + eps) * gamma.view(along) + beta.view(along)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def sigmoid_cross_entropy(logits: Tensor, label: float) -> Tensor:
    """-label log s - (1 - label) log(1 - s) with s = sigmoid(logits), for each element."""
    log_s = torch.minimum(logits, torch.zeros_like(logits)) - torch.log1p(torch.exp(-logits.abs()))
    return -label * log_s - (1 - label) * (log_s - logits)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after), for ceil(size / stride) outputs; an odd pixel is added after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def tf_conv2d(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """`tf.nn.conv2d`, padding SAME: x NHWC, kernel (h, w, in, out) -> NHWC."""
    top, bottom = same_padding(x.shape[1], kernel.shape[0], stride)
    left, right = same_padding(x.shape[2], kernel.shape[1], stride)
    padded = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    return F.conv2d(padded, kernel.permute(3, 2, 0, 1), stride=stride).permute(0, 2, 3, 1)


def tf_conv2d_transpose(x: Tensor, kernel: Tensor, stride: int, side: int, padding: str) -> Tensor:
    """`tf.nn.conv2d_transpose` to a square image: x NHWC, kernel (h, w, out, in) -> NHWC.

    It is the gradient of the convolution from `side` to x's size: gradients of padding are removed, and pixels that the
    convolution does not read have gradient 0.
    """
    full = F.conv_transpose2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=stride)
    before = same_padding(side, kernel.shape[0], stride)[0] if padding == "SAME" else 0
    unread = max(before + side - full.shape[-1], 0)
    full = F.pad(full, (0, unread, 0, unread))
    return full[:, :, before : before + side, before : before + side].permute(0, 2, 3, 1)


class Adam:
    """Kingma and Ba's Adam over named variables; `eps_hat` puts epsilon where TensorFlow and MXNet have it."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float, *, eps_hat: bool) -> None:
        self.lr, self.beta1, self.beta2, self.eps, self.eps_hat = lr, beta1, beta2, eps, eps_hat
        self.t = 0
        self.m: Variables = {}
        self.v: Variables = {}

    @torch.no_grad()
    def update(self, variables: Variables, gradients: Variables) -> None:
        self.t += 1
        c1, c2 = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        for name, g in gradients.items():
            m = self.m[name] = self.beta1 * self.m.get(name, torch.zeros_like(g)) + (1 - self.beta1) * g
            v = self.v[name] = self.beta2 * self.v.get(name, torch.zeros_like(g)) + (1 - self.beta2) * g**2
            if self.eps_hat:
                variables[name] -= self.lr * math.sqrt(c2) / c1 * m / (torch.sqrt(v) + self.eps)
            else:
                variables[name] -= self.lr * (m / c1) / (torch.sqrt(v / c2) + self.eps)


def watch(variables: Variables, names: list[str]) -> None:
    """Require gradients for the named variables."""
    for name in names:
        variables[name].requires_grad_()


def gradients(output: Tensor, variables: Variables, names: list[str], grad_output: Tensor | None = None) -> Variables:
    """d output / d variable by name, weighted by `grad_output`; variables that output does not use are omitted."""
    found = torch.autograd.grad(output, [variables[name] for name in names], grad_output, allow_unused=True,
                                retain_graph=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}
