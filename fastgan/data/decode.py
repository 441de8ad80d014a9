"""Image files to tensors."""

from __future__ import annotations

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
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

Failures = list[tuple[str, str]]  # (path, reason)


@dataclass(frozen=True)
class Decoder:
    """Path -> uint8 (C, H, W), or `UnusableImage` for a file that is damaged or does not fit."""

    channels: int
    size: tuple[int, int]
    fit: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def __call__(self, path: Path) -> Tensor:
        return fit_images(to_channels(read_image(path)[None], self.channels), self.size, self.fit)[0]

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


def read_image(path: Path) -> Tensor:
    """uint8 (C, h, w) with C 1, 3 or 4 as in the file, rotated by its EXIF orientation, 16 bits reduced to 8.

    Of an animation, the first frame. Raises `UnusableImage`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS  # above it Pillow warns; it refuses images of twice as many pixels
            if limit is not None and image.width * image.height > limit:
                raise UnusableImage(f"{image.width}x{image.height} pixels, more than {limit}: a decompression bomb?")
            upright = _eight_bits(ImageOps.exif_transpose(image))
            pixels = np.array(upright.convert(natural_mode(upright)))
    except UnusableImage:
        raise
    except Exception as error:  # Pillow's format readers raise many types for damaged files
        raise UnusableImage(one_line(error)) from error
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def natural_mode(image: Image.Image) -> str:
    """The mode among L, RGB and RGBA that preserves all but the depth; palettes count as colour."""
    if image.has_transparency_data:
        return "RGBA"
    return "L" if image.mode in ("1", "L", "F") or image.mode.startswith("I") else "RGB"


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 0..255, where Pillow's `convert` would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
