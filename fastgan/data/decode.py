"""Decoding of image files to tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastgan.data.pixels import UnusableImage, fit_images, to_channels
from fastgan.errors import FastganError, one_line

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
# the only readers of Pillow that are used, regardless of file names: others start programs such as Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
WHITE = 65535  # in 16-bit images
THREADS = min(32, os.cpu_count() or 1)  # for reading files; Pillow and torch release the GIL

Failures = list[tuple[str, str]]  # (path, reason)


@dataclass(frozen=True)
class Decoder:
    """Decodes a path to uint8 (C, H, W). Raises `UnusableImage` for a file that is damaged or does not fit.

    `white` is the value of white in 16-bit images.
    """

    channels: int
    size: tuple[int, int]
    fit: str
    white: int = WHITE

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def __call__(self, path: Path) -> Tensor:
        image = read_image(path, self.white)
        return fit_images(to_channels(image[None], self.channels), self.size, self.fit)[0]

    def attempt(self, path: Path) -> Tensor | UnusableImage:
        """The image, or the error if it is unusable."""
        try:
            return self(path)
        except UnusableImage as error:
            return error


def unusable(path: str, reason: str) -> FastganError:
    """The error for an unusable image with `strict`."""
    return FastganError(f"{path}: {reason}; expected a usable image (without --strict it would be skipped)")


def nothing_readable(failures: Failures) -> FastganError:
    """The error for a data set without usable images."""
    path, reason = failures[0]
    return FastganError(f"none of {len(failures)} images can be used; the first: {path}: {reason}; "
                        "expected at least one usable image")


def read_image(path: Path, white: int = WHITE) -> Tensor:
    """uint8 (C, h, w) with C 1, 3 or 4 as in the file, rotated by its EXIF orientation, 16-bit gray scaled to 8 bits.

    `white` is the 16-bit value that becomes 255. Only the first frame of an animation is read. Raises `UnusableImage`.
    """
    try:
        with open_image(path) as image:
            upright = _eight_bits(ImageOps.exif_transpose(image), white)
            pixels = np.array(upright.convert(natural_mode(upright)))
    except UnusableImage:
        raise
    except Exception as error:  # Pillow's format readers raise many types for damaged files
        raise UnusableImage(one_line(error)) from error
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def open_image(path: Path) -> Image.Image:
    """Open an image and read its header. Raises `UnusableImage` for too many pixels, and Pillow's errors."""
    image = Image.open(path, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS  # above this limit Pillow only warns; it raises above twice the limit
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise UnusableImage(f"{image.width}x{image.height} pixels, more than {limit}: a decompression bomb?")
    return image


def natural_mode(image: Image.Image) -> str:
    """The mode (L, RGB or RGBA) that preserves everything except the bit depth. Palettes count as color."""
    if image.mode.startswith(("I", "F")):
        return "L"  # `_eight_bits` drops the transparent value
    if image.has_transparency_data:
        return "RGBA"
    return "L" if image.mode in ("1", "L") else "RGB"


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """Scale gray values from 0..`white` to 0..255; Pillow's `convert` would clip them instead.

    Raises `UnusableImage` for 32-bit values, whose range is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > WHITE:
        raise UnusableImage(f"{'floating-point' if image.mode == 'F' else '32-bit'} values; expected 8 or 16 bits")
    return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
