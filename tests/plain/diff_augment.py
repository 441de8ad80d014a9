"""DiffAugment, image by image, from the text of Zhao et al. 2020 and its published code; imports nothing from fastgan.

Each image uses seven uniform numbers: brightness, saturation, contrast, translation down and right, cutout down and
right. The published code draws integers for the last four; here uniform numbers are scaled and rounded down.
"""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, policy: str) -> Tensor:
    draws = torch.rand(len(images), 7, dtype=images.dtype)
    return torch.stack([one(image, row.tolist(), policy) for image, row in zip(images, draws, strict=True)])


def one(x: Tensor, u: list[float], policy: str) -> Tensor:
    """An image (C, H, W)."""
    height, width = x.shape[1:]
    if "color" in policy:
        x = x + (u[0] - 0.5)
        mean = x.mean(0, keepdim=True)
        x = (x - mean) * (u[1] * 2) + mean if len(x) > 1 else x
        x = (x - x.mean()) * (u[2] + 0.5) + x.mean()
    if "translation" in policy:
        most = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
        down, right = (int(u[3 + i] * (2 * most[i] + 1)) - most[i] for i in (0, 1))
        padded = torch.nn.functional.pad(x, (most[1], most[1], most[0], most[0]))
        x = padded[:, most[0] - down : most[0] - down + height, most[1] - right : most[1] - right + width]
    if "cutout" in policy:
        size = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
        top, left = (int(u[5 + i] * (side + 1 - size[i] % 2)) - size[i] // 2 for i, side in ((0, height), (1, width)))
        mask = torch.ones_like(x)
        mask[:, max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)] = 0
        x = x * mask
    return x
