"""Image files to tensors."""

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
# Pillow's other readers are never used, whatever a file's name is: some start programs, such as Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
WHITE = 65535  # of 16 bits
THREADS = min(32, os.cpu_count() or 1)  # that read files; Pillow and torch release the GIL

Failures = list[tuple[str, str]]  # (path, reason)


@dataclass(frozen=True)
class Decoder:
    """Path -> uint8 (C, H, W), or `UnusableImage` for a file that is damaged or does not fit.

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
        """The image, or the reason why there is none."""
        try:
            return self(path)
        except UnusableImage as error:
            return error


def unusable(path: str, reason: str) -> FastganError:
    """The error for one image under `strict`."""
    return FastganError(f"{path}: {reason}; expected a usable image (without --strict it would be skipped)")


def nothing_readable(failures: Failures) -> FastganError:
    """The error for a data set without one usable image."""
    path, reason = failures[0]
    return FastganError(f"none of {len(failures)} images can be used; the first: {path}: {reason}; "
                        "expected at least one that can")


def read_image(path: Path, white: int = WHITE) -> Tensor:
    """uint8 (C, h, w) with C 1, 3 or 4 as in the file, rotated by its EXIF orientation, 16-bit grey scaled to 8 bits.

    `white` is the 16-bit value that becomes 255. Of an animation, the first frame. Raises `UnusableImage`.
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
    """The image, of which only the header is read. Raises `UnusableImage` for too many pixels, and Pillow's errors."""
    image = Image.open(path, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS  # above it Pillow warns; it refuses images of twice as many pixels
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise UnusableImage(f"{image.width}x{image.height} pixels, more than {limit}: a decompression bomb?")
    return image


def natural_mode(image: Image.Image) -> str:
    """The mode among L, RGB and RGBA that preserves all but the depth; palettes count as colour."""
    if image.mode.startswith(("I", "F")):
        return "L"  # `_eight_bits` drops the transparent value
    if image.has_transparency_data:
        return "RGBA"
    return "L" if image.mode in ("1", "L") else "RGB"


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """Grey from 0 to `white` scaled to 0..255, where Pillow's `convert` would clip it to white.

    Raises `UnusableImage` for 32-bit values, of which the range is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > WHITE:
        raise UnusableImage(f"{'floating-point' if image.mode == 'F' else '32-bit'} values; expected 8 or 16 bits")
    return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
