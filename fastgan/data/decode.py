"""Image files to tensors, alike in threads and in worker processes."""

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
# whatever a file is called, no other reader of Pillow's is tried: some start programs, such as Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

Failures = list[tuple[str, str]]  # (path, reason)
Decoded = tuple[Tensor, Tensor, Failures]


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


class ImageFiles(torch.utils.data.Dataset):
    """What a worker process needs to decode batches: the paths and the decoder, and nothing else."""

    def __init__(self, paths: list[Path], decoder: Decoder) -> None:
        self.paths = paths
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int]) -> Decoded | FastganError:
        """As `decode`, whose error is returned: raised in a worker, it would come with that one's traceback."""
        try:
            return self.decode(indices)
        except FastganError as error:
            return error

    def decode(self, indices: list[int]) -> Decoded:
        """A batch uint8 (B, C, H, W), the int64 (B,) indices it really came from, and the failures on the way.

        An unreadable image is replaced by the next readable one, the first following the last; `FastganError` where
        there is none.
        """
        images, chosen = [], []
        failures: Failures = []
        for index in indices:
            image, index = self._first_readable(index, failures)
            images.append(image)
            chosen.append(index)
        return torch.stack(images), torch.tensor(chosen), failures

    def _first_readable(self, start: int, failures: Failures) -> tuple[Tensor, int]:
        for offset in range(len(self)):
            index = (start + offset) % len(self)
            try:
                return self.decoder(self.paths[index]), index
            except UnusableImage as error:
                failures.append((str(self.paths[index]), str(error)))
        raise nothing_readable(failures)


def unusable(path: str, reason: str) -> FastganError:
    """What `strict` says of one image."""
    return FastganError(f"{path}: {reason}; expected a usable image (without --strict it would be skipped)")


def nothing_readable(failures: Failures) -> FastganError:
    """What to say of a set without one usable image."""
    path, reason = failures[0]
    return FastganError(f"none of {len(failures)} images can be used; the first: {path}: {reason}; "
                        "expected at least one that can")


def read_image(path: Path) -> Tensor:
    """uint8 (C, h, w) with C 1, 3 or 4 as the file has it, upright by its EXIF orientation, 16 bits reduced to 8.

    Of an animation, the first frame. Raises `UnusableImage`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(image)
            upright = _eight_bits(ImageOps.exif_transpose(image))
            pixels = np.array(upright.convert(natural_mode(upright)))
    # for a damaged file, Pillow's many format readers raise nearly anything
    except Exception as error:
        raise UnusableImage(one_line(error)) from error
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def check_pixels(image: Image.Image) -> None:
    """`UnusableImage` for a file that declares more pixels than Pillow warns of; it refuses twice as many by itself."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnusableImage(f"{image.width}x{image.height} pixels, more than {limit}: a decompression bomb?")


def natural_mode(image: Image.Image) -> str:
    """The mode among L, RGB and RGBA that loses nothing but depth; palettes count as colour."""
    if image.has_transparency_data:
        return "RGBA"
    return "L" if image.mode in ("1", "L", "F") or image.mode.startswith("I") else "RGB"


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 0..255, where Pillow's `convert` would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
