"""The number of channels and the bit depth of image files, determined from a sample of the files."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastgan.config import DataConfig, parse_size
from fastgan.data.decode import CHANNELS, THREADS, WHITE, Decoder, natural_mode, open_image

SURVEYED = 1024  # number of files whose headers are read, chosen at random
DEEP_SURVEYED = 32  # number of 16-bit images whose values are read
WHITE_12_BITS = 4095
NAMES = {1: "gray", 3: "RGB", 4: "RGBA"}


def make_decoder(paths: list[Path], name: str, config: DataConfig) -> Decoder:
    """The decoder of the data set `name`, for the channels and the bit depth of its files.

    The number of channels is `config.channels`, or that of most files; in a tie, the larger one. If no value of the
    16-bit images is above 4095, they are read as 12-bit images. The sample is random with a fixed seed, so that it does
    not favor some file names. Warns about files that are converted, and about 12-bit images.
    """
    sample = random.Random(0).sample(paths, min(len(paths), SURVEYED))
    with ThreadPoolExecutor(THREADS) as pool:
        headers = {path: header for path, header in zip(sample, pool.map(_header, sample), strict=True) if header}
    channels = config.channels or _most_frequent(Counter(channels for channels, _ in headers.values()), name)
    white = _white([path for path, (_, deep) in headers.items() if deep], name)
    return Decoder(channels, parse_size(config.image_size), config.fit, white)


def _header(path: Path) -> tuple[int, bool] | None:
    """The channels of an image and whether they have 16 bits; None for a damaged file, which is reported later, when it
    is decoded."""
    with contextlib.suppress(Exception), open_image(path) as image:
        return CHANNELS[natural_mode(image)], image.mode.startswith("I")
    return None


def _most_frequent(found: Counter[int], name: str) -> int:
    channels = max(found, key=lambda channels: (found[channels], channels), default=1)
    others = {other: count for other, count in sorted(found.items()) if other != channels}
    if others:
        counts = " and ".join(f"{count} {NAMES[other]}" for other, count in others.items())
        warnings.warn(f"{name}: {counts} of {found.total()} inspected images are converted to {NAMES[channels]}, the "
                      "most frequent mode; --channels sets another", stacklevel=6)
    return channels


def _white(deep: list[Path], name: str) -> int:
    """The value of white in the 16-bit images at `deep`."""
    brightest = -1
    for path in deep[:DEEP_SURVEYED]:
        with contextlib.suppress(Exception), open_image(path) as image:
            brightest = max(brightest, int(np.asarray(image).max()))
        if brightest > WHITE_12_BITS:
            return WHITE
    if brightest < 0:
        return WHITE
    warnings.warn(f"{name}: no value in {len(deep[:DEEP_SURVEYED])} inspected 16-bit images is above {WHITE_12_BITS}; "
                  f"16-bit images are read as 12-bit, with white at {WHITE_12_BITS}", stacklevel=6)
    return WHITE_12_BITS
