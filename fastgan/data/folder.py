"""Folders of image files: which files, which labels, and whether they fit into memory."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastgan.config import DataConfig, parse_size
from fastgan.data.dataset import Dataset, MemoryDataset, StreamedDataset
from fastgan.data.decode import (
    CHANNELS,
    FORMATS,
    Decoder,
    Failures,
    ImageFiles,
    natural_mode,
    nothing_readable,
    read_image,
    unusable,
)
from fastgan.data.pixels import UnusableImage
from fastgan.errors import FastganError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
SIDECARS = {"__MACOSX", "@eaDir"}  # folders that archivers and network disks leave beside the images
SURVEYED = 64  # images whose headers decide the channels
WINDOW = 1024  # images in flight while decoding
PROGRESS_FROM = 512  # images worth a progress bar

Labelling = tuple[Tensor | None, list[str]]  # labels int64 (N,) and the names of the classes


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, links followed, sorted; `FastganError` when there are none.

    Raises `OSError` for a folder that may not be read.
    """
    if not folder.is_dir():
        raise FastganError(f"folder:{folder}: {'not a folder' if folder.exists() else 'no such folder'}; "
                           "expected a folder of images")
    paths = sorted(_walk(folder, frozenset()))
    if not paths:
        raise FastganError(f"folder:{folder}: no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return paths


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Images in and below a folder, through links too, but for what tools leave there: hidden folders, `SIDECARS`, and
    the "._" files of macOS. `OSError` where one may not look, as images would be missing."""
    facts = folder.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:  # a link back to where it lies
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                if not entry.name.startswith(".") and entry.name not in SIDECARS:
                    yield from _walk(path, above | {here})
            elif path.suffix.lower() in SUFFIXES and not entry.name.startswith("._") and entry.is_file():
                yield path


def label_by_folder(paths: list[Path], root: Path) -> Labelling:
    """Labels int64 (N,) and classes from the first folder below `root`; (None, []) when an image lies in `root`."""
    parts = [path.relative_to(root).parts for path in paths]
    if any(len(part) == 1 for part in parts):
        return None, []
    names = sorted({part[0] for part in parts})
    index = {name: i for i, name in enumerate(names)}
    return torch.tensor([index[part[0]] for part in parts]), [printable(name) for name in names]


def without_empty_classes(paths: list[Path], labelling: Labelling) -> tuple[list[Path], Labelling, Failures]:
    """Images and classes of the folders in which at least one image can be read, and the failures in the others.

    Whether an image fits `image_size` does not count, so that a label means the same in every size.
    """
    labels, classes = labelling
    if labels is None:
        return paths, labelling, []
    images: list[list[Path]] = [[] for _ in classes]
    for path, label in zip(paths, labels.tolist(), strict=True):
        images[label].append(path)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        failures = list(pool.map(_until_readable, images))
    kept = torch.tensor([len(failed) < len(folder) for folder, failed in zip(images, failures, strict=True)])
    chosen = kept[labels]
    return ([path for path, keep in zip(paths, chosen.tolist(), strict=True) if keep],
            ((kept.cumsum(0) - 1)[labels][chosen], [name for name, keep in zip(classes, kept, strict=True) if keep]),
            [failure for failed, keep in zip(failures, kept, strict=True) if not keep for failure in failed])


def _until_readable(paths: list[Path]) -> Failures:
    """The images before the first that can be read, and why they cannot."""
    failures: Failures = []
    for path in paths:
        try:
            read_image(path)
            break
        except UnusableImage as error:
            failures.append((str(path), str(error)))
    return failures


def printable(name: str) -> str:
    """A file's name as text: what cannot be printed, such as a line's end or bytes that are no UTF-8, as in Python."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def open_files(paths: list[Path], root: Path, name: str, labelling: Labelling, config: DataConfig) -> Dataset:
    """The images at `paths`: decoded into memory when they need no more than `cache_gb`, else streamed.

    Raises `FastganError` when no image is usable, and with `strict` for the first that is not.
    """
    decoder = Decoder(config.channels or survey_channels(paths), parse_size(config.image_size), config.fit)
    if len(paths) * math.prod(decoder.shape) <= config.cache_gb * 1e9:
        return _decode_into_memory(paths, decoder, name, labelling, config.strict)
    files = ImageFiles(paths, decoder)
    *_, failures = files.decode([0])  # when nothing is readable, say so now and in this process
    if config.strict and failures:
        raise unusable(*failures[0])
    labels, classes = labelling
    return StreamedDataset(name=name, labels=labels, classes=classes, files=files, root=root)


def survey_channels(paths: list[Path]) -> int:
    """The channels of the most capable mode among the first images."""
    found = {1}
    for path in paths[:SURVEYED]:
        # decoding will name what is damaged
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
            found.add(CHANNELS[natural_mode(image)])
    return max(found)


def _decode_into_memory(
    paths: list[Path], decoder: Decoder, name: str, labelling: Labelling, strict: bool
) -> MemoryDataset:
    labels, classes = labelling
    data = torch.empty(len(paths), *decoder.shape, dtype=torch.uint8)
    kept: list[int] = []
    failures: Failures = []
    for index, image in enumerate(_decode(paths, decoder)):
        if isinstance(image, Tensor):
            data[len(kept)] = image
            kept.append(index)
        elif strict:
            raise unusable(str(paths[index]), str(image))
        else:
            failures.append((str(paths[index]), str(image)))
    if not kept:
        raise nothing_readable(failures)
    labels = labels if labels is None else labels[kept]
    return MemoryDataset(name=name, labels=labels, classes=classes, skipped=failures, data=data[: len(kept)])


def _decode(paths: list[Path], decoder: Decoder) -> Iterator[Tensor | UnusableImage]:
    """Every image or what is wrong with it, in order, by threads: Pillow and torch release the interpreter's lock."""

    def attempt(path: Path) -> Tensor | UnusableImage:
        try:
            return decoder(path)
        except UnusableImage as error:
            return error

    quiet = True if len(paths) < PROGRESS_FROM else None  # None: shown on a terminal only
    with (
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc="Decoding", unit="image", disable=quiet) as progress,
    ):
        for start in range(0, len(paths), WINDOW):
            for image in pool.map(attempt, paths[start : start + WINDOW]):
                progress.update()
                yield image
