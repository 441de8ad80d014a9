"""Convolutions that tests and proofs share: odd and prime sizes, kernels, strides and paddings of each kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# (N, Ci, H, W), Co, kernel, stride, padding, output_padding, bias, statistic groups
CASES: list[tuple[Any, ...]] = [
    ((4, 3, 17, 19), 5, (4, 4), 2, 1, 0, False, 1),
    ((6, 5, 7, 11), 3, (3, 3), 1, 1, 0, True, 3),
    ((2, 1, 13, 5), 7, (5, 5), 3, 2, (2, 1), True, 1),
    ((4, 7, 1, 1), 11, (4, 6), 1, 0, 0, False, 2),
    ((1, 2, 9, 23), 3, (7, 2), (4, 2), (3, 0), (3, 0), True, 1),
    ((3, 3, 5, 3), 2, (1, 1), 2, 0, 1, False, 1),
    ((4, 25, 7, 5), 3, (2, 3), 2, 1, 1, True, 4),
]


def name(case: tuple[Any, ...]) -> str:
    shape, co, kernel, stride, padding, extra, bias, groups = case
    words = ["x".join(map(str, shape)), f"co{co}", "k" + "x".join(map(str, kernel)), f"s{stride}p{padding}o{extra}"]
    text = "-".join(words + ["bias"] * bias + [f"g{groups}"])
    return text.replace("(", "").replace(")", "").replace(", ", "x")


def results(function: Any, x: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Output, all gradients, and the updated buffers."""
    x = x.detach().requires_grad_()
    y = function(x)
    torch.manual_seed(2)
    inputs = {"x": x, **{key: p for key, p in network.named_parameters() if p.requires_grad}}
    weights = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad((y * weights).sum(), list(inputs.values()))
    return {"y": y.detach(), **dict(zip(inputs, grads, strict=True)),
            **{key: b.clone() for key, b in network.named_buffers() if "tracked" not in key}}
