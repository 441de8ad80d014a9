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
from fastgan.data.decode import CHANNELS, FORMATS, Decoder, Failures, natural_mode, nothing_readable, unusable
from fastgan.data.pixels import UnusableImage
from fastgan.errors import FastganError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
IGNORED_FOLDERS = {"__MACOSX", "@eaDir"}  # written by archivers and network disks beside the images
SURVEYED = 64  # images whose headers decide the number of channels
CHUNK = 1024  # images that are decoded at once
PROGRESS_FROM = 512  # images for which a progress bar is shown

Labelling = tuple[Tensor | None, list[str]]  # labels int64 (N,) and the names of the classes


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, through links, sorted; without hidden folders, `IGNORED_FOLDERS`, and the "._"
    files of macOS.

    Raises `FastganError` when there are none, `OSError` for a folder that cannot be read.
    """
    if not folder.is_dir():
        raise FastganError(f"folder:{folder}: {'not a folder' if folder.exists() else 'no such folder'}; "
                           "expected a folder of images")
    paths: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED_FOLDERS
                      and not _leads_back(Path(here, name))]
        paths += [path for path in (Path(here, name) for name in files if not name.startswith("._"))
                  if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise FastganError(f"folder:{folder}: no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def _leads_back(folder: Path) -> bool:
    """Whether this is a link to a folder above it, which would be walked through without end."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.absolute().parents}


def label_by_folder(paths: list[Path], root: Path) -> Labelling:
    """Labels int64 (N,) and classes from the first folder below `root`; (None, []) if one is in `root` itself."""
    parts = [path.relative_to(root).parts for path in paths]
    if any(len(part) == 1 for part in parts):
        return None, []
    names = sorted({part[0] for part in parts})
    index = {name: i for i, name in enumerate(names)}
    return torch.tensor([index[part[0]] for part in parts]), [printable(name) for name in names]


def printable(name: str) -> str:
    """A file name with escapes, as in Python, for line ends, bytes that are not UTF-8, and other unprintable text."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def open_files(paths: list[Path], root: Path, name: str, labelling: Labelling, config: DataConfig) -> Dataset:
    """The images at `paths`: decoded into memory when they need no more than `cache_gb`, else streamed.

    Raises `FastganError` when no image is usable, and with `strict` for the first that is not.
    """
    decoder = Decoder(config.channels or survey_channels(paths), parse_size(config.image_size), config.fit)
    if len(paths) * math.prod(decoder.shape) <= config.cache_gb * 1e9:
        return _decode_into_memory(paths, decoder, name, labelling, config.strict)
    labels, classes = labelling
    dataset = StreamedDataset(name=name, labels=labels, classes=classes, paths=paths, decoder=decoder, root=root)
    *_, failures = dataset.read(0)  # raises now, not in a thread, when no image is readable
    if config.strict and failures:
        raise unusable(*failures[0])
    return dataset


def survey_channels(paths: list[Path]) -> int:
    """The largest number of channels among the first images."""
    found = {1}
    for path in paths[:SURVEYED]:
        # damaged files are reported when they are decoded
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
            found.add(CHANNELS[natural_mode(image)])
    return max(found)


def _decode_into_memory(
    paths: list[Path], decoder: Decoder, name: str, labelling: Labelling, strict: bool
) -> MemoryDataset:
    labels, classes = labelling
    data = torch.empty(len(paths), *decoder.shape, dtype=torch.uint8)
    readable: list[int] = []
    failures: Failures = []
    for index, image in enumerate(_decode(paths, decoder)):
        if isinstance(image, Tensor):
            data[len(readable)] = image
            readable.append(index)
        elif strict:
            raise unusable(str(paths[index]), str(image))
        else:
            failures.append((str(paths[index]), str(image)))
    if not readable:
        raise nothing_readable(failures)
    labels = labels if labels is None else labels[readable]
    return MemoryDataset(name=name, labels=labels, classes=classes, skipped=failures, data=data[: len(readable)])


def _decode(paths: list[Path], decoder: Decoder) -> Iterator[Tensor | UnusableImage]:
    """Every image, or the reason why there is none, in order. Pillow and torch release the GIL, so threads suffice."""
    quiet = True if len(paths) < PROGRESS_FROM else None  # None: shown on a terminal only
    with (
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc="Decoding", unit="image", disable=quiet) as progress,
    ):
        for start in range(0, len(paths), CHUNK):
            for image in pool.map(decoder.attempt, paths[start : start + CHUNK]):
                progress.update()
                yield image
