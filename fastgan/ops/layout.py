"""Conversions of images between their shape, (N, C, H, W), and the memory order of kernels, [N, H, W, C]."""

from __future__ import annotations

from torch import Tensor


def nhwc(x: Tensor) -> Tensor:
    """(N, C, H, W) as [N, H, W, C], contiguous, also if a side is 1 and its stride arbitrary."""
    n, c, h, w = x.shape
    if x.stride() == (h * w * c, 1, w * c, c):
        return x.permute(0, 2, 3, 1)
    return x.permute(0, 2, 3, 1).contiguous().view(n, h, w, c)


def nchw(x: Tensor) -> Tensor:
    """[N, H, W, C] as (N, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """(N, C, H, W) with the strides of a contiguous [N, H, W, C]."""
    return nchw(like.new_empty((n, h, w, c)))


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) with the strides of a contiguous [N, H, W, C], also if a side is 1."""
    _, c, h, w = x.shape
    return x if x.stride() == (h * w * c, 1, w * c, c) else nchw(nhwc(x))
