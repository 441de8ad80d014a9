"""The settings of the preset "own-images", chosen by the number and the size of the images in a folder.

They are rules of thumb: few images need augmentation and narrow networks.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fastgan.data.decode import open_image
from fastgan.data.folder import find_images

SURVEYED = 256  # number of files whose size is read, chosen at random
FEW, MANY = 2_000, 20_000  # below FEW images, all augmentations are used; from MANY images on, none
SIDES = (128, 64, 32)
SHOWN = 500_000  # real images for the whole training on a GPU; a fifth of them on a CPU


class Choice(NamedTuple):
    """Options by field, and the reason for their values."""

    values: dict[str, Any]
    why: str


MIRRORED = Choice({"flip": True}, "doubles the images; give --no-flip if mirrored images are wrong, as for letters")


def recommend(folder: Path, on_gpu: bool) -> list[Choice]:
    """Image size, width, augmentation, batch size and length for the images below `folder`.

    Raises `FastganError` if there are no images.
    """
    paths, _ = find_images(folder)
    count, side = len(paths), _shorter_side(paths)
    sides = [one for one in SIDES if one <= max(side, 32) and (on_gpu or one <= 64)]
    width = 64 if on_gpu and count >= FEW else 32
    batch = max(2, min(64, count // 4))
    names = "color,translation,cutout" if count < FEW else "translation,cutout" if count < MANY else ""
    images = SHOWN if on_gpu else SHOWN // 5
    return [
        Choice({"image_size": str(sides[0])}, f"the median of the images' shorter sides is {side:.0f} pixels"
               + "; larger sizes take hours on a CPU" * (not on_gpu and side > 64)),
        Choice({"ngf": width, "ndf": width}, "wide, for many images on a GPU" if width == 64 else
               "narrow, for few images" if on_gpu else "narrow, for a CPU"),
        Choice({"augment": names}, f"with only {count:,} images, the discriminator would memorize them"
               if names else f"{count:,} images need no augmentation"),
        MIRRORED,
        Choice({"ema": 0.999}, "images of the averaged generator are better"),
        Choice({"batch": batch, "steps": images // batch}, f"the discriminator is trained on {images:,} images, "
               f"each about {images // count:,} times"),
    ]


def _shorter_side(paths: list[Path]) -> float:
    """The median of the shorter sides in a random sample (with a fixed seed) of the images; 64 if none is readable."""
    sides = []
    for path in random.Random(0).sample(paths, min(len(paths), SURVEYED)):
        with contextlib.suppress(Exception), open_image(path) as image:  # damaged files are reported when decoded
            sides.append(min(image.size))
    return median(sides) if sides else 64
