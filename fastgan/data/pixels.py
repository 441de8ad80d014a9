"""Pixels: channels, size and range of image batches.

Pixels are uint8 until `to_model_range`. Resizing is bilinear with half-pixel centers, and antialiased when it shrinks:
for s = source / target > 1 the triangle filter is s times wider. PyTorch's uint8 kernel follows Pillow's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastgan.data.order import WHOLE, Shard

MAX_RESIZED_PIXELS = 2**26
CHUNK_BYTES = 2**24


class UnusableImage(ValueError):
    """An image cannot be read or does not fit. The message is the reason, without the name of the image."""


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Convert between gray (1), RGB (3) and RGBA (4) images: uint8 (N, C, H, W) -> uint8 (N, channels, H, W).

    Gray becomes RGB by repetition; RGB becomes gray by ITU-R 601 luma, as in Pillow; a new alpha channel is opaque.
    Where alpha is dropped, images are composited over white, as transparent images are usually shown: the colors
    stored under transparent pixels are arbitrary.
    """
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 4:
        images = _over_white(images)
    if images.shape[1] == 3 and channels == 1:
        return _luma(images)
    if images.shape[1] == 1 and channels > 1:
        images = images.expand(-1, 3, -1, -1)
    if channels == 4:
        images = torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)
    return images


def _over_white(images: Tensor) -> Tensor:
    colour, alpha = images[:, :3].int(), images[:, 3:].int()
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.int().split(1, dim=1)
    # 0.299, 0.587 and 0.114 in units of 2^-16, Pillow's own integers
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)


def fit_images(images: Tensor, size: tuple[int, int], fit: str) -> Tensor:
    """Resize images to (height, width): uint8 (N, C, h, w) -> uint8 (N, C, height, width).

    `crop` scales the image until it just covers the target and crops the center, rounding as torchvision's Resize and
    CenterCrop do; `stretch` ignores the aspect ratio; `none` only crops the center. Alpha is resized like any other
    channel. Raises `UnusableImage` for an image that is smaller than the crop, or too elongated to be scaled.
    """
    (h, w), (height, width) = images.shape[-2:], size
    if fit == "stretch":
        return _resize(images, size)
    if fit == "crop":
        h, w = (height, w * height // h) if h * width <= w * height else (h * width // w, width)
        if h * w > max(MAX_RESIZED_PIXELS, height * width):
            raise UnusableImage(f"too elongated: covering {height}x{width} would scale it to {h}x{w}")
        images = _resize(images, (h, w))
    elif h < height or w < width:
        raise UnusableImage(f"{h}x{w} is smaller than the {height}x{width} crop of --fit none")
    top, left = round((h - height) / 2), round((w - width) / 2)
    return images[..., top : top + height, left : left + width]


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def prepare(images: Tensor, channels: int, size: tuple[int, int], fit: str) -> Tensor:
    """Apply `to_channels` and `fit_images` to a whole data set, in chunks to limit the memory.

    uint8 (N, C, h, w), any strides -> uint8 (N, channels, *size), contiguous. Raises `UnusableImage`.
    """
    prepared = torch.empty(len(images), channels, *size, dtype=torch.uint8)
    largest = max(images[0].numel(), prepared[0].numel())
    chunk = max(1, CHUNK_BYTES // largest)
    for target, source in zip(prepared.split(chunk), images.split(chunk), strict=True):
        target.copy_(fit_images(to_channels(source, channels), size, fit))
    return prepared


def to_model_range(batch: Tensor, *, flip: bool, unit_range: bool, dtype: torch.dtype, shard: Shard = WHOLE) -> Tensor:
    """Convert a batch of bytes to the input of the networks, without synchronizing with the host.

    Args:
        batch: uint8 (B, C, H, W). A floating-point batch (the source "gaussian") is only cast.
        flip: mirror each image with probability 1/2, drawn from the global generator of the batch's device.
        unit_range: pixels in [0, 1] instead of [-1, 1].
        dtype: dtype of the result.
        shard: which part of the whole batch this batch is, for the random numbers of `flip`.

    Returns:
        (B, C, H, W) in `dtype`, channels_last.
    """
    if batch.is_floating_point():
        return batch.to(dtype)
    if flip:
        mirrored = draws_of_flips(batch, shard) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
    # scale in float32 and round once: subtracting 1 in half precision would lose the gray levels near 0
    images = batch.to(torch.promote_types(dtype, torch.float32), memory_format=torch.channels_last)
    images = images * (1 / 255) if unit_range else images * (2 / 255) - 1
    return images.to(dtype)


def draws_of_flips(batch: Tensor, shard: Shard) -> Tensor:
    """Random numbers float32 (B,) in [0, 1), one for each image of the batch: images below 0.5 are mirrored."""
    return shard.take(torch.rand(len(batch) * shard.of, dtype=torch.float32, device=batch.device))


def to_uint8(images: Tensor, unit_range: bool) -> Tensor:
    """Convert images to uint8, clamped and rounded; the inverse of `to_model_range`, for any shape."""
    levels = images.float() * 255 if unit_range else (images.float() + 1) * 127.5
    return levels.clamp(0, 255).round().to(torch.uint8)
