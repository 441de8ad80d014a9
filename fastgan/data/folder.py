"""Data sets of image files in a folder: finding the files and their labels, and decoding them into memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset, StreamedDataset
from fastgan.data.decode import THREADS, Decoder, Failures, nothing_readable, unusable
from fastgan.data.pixels import UnusableImage
from fastgan.errors import FastganError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# unsupported image types, which are skipped with a warning
NOT_READ = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".tga", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw")
# created by archivers, network disks and file systems
IGNORED_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
RULES = (f"images: names ending in {', '.join(SUFFIXES)}, at any depth; ignored: hidden files and folders, "
         f"{', '.join(IGNORED_FOLDERS)}; classes: the folders directly below DIR with a usable image, or no classes if "
         "DIR itself contains an image")
CHUNK = 1024  # images decoded at once
PROGRESS_FROM = 512  # number of images from which on a progress bar is shown
NAMED = 3  # maximum number of files named in a message

Labelling = tuple[Tensor | None, list[str]]  # labels int64 (N,) and the names of the classes


def find_images(folder: Path) -> tuple[list[Path], Failures]:
    """All image files below a folder according to `RULES`, sorted, and the images of unsupported types with the reason.

    Follows links. Raises `FastganError` if there are no images, and `OSError` for a folder that cannot be read.
    """
    if not folder.is_dir():
        raise FastganError(f"folder:{folder}: {'not a folder' if folder.exists() else 'no such folder'}; "
                           "expected a folder of images")
    paths: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED_FOLDERS
                      and not _leads_back(Path(here, name))]
        paths += [path for path in (Path(here, name) for name in files if not name.startswith("."))
                  if path.suffix.lower() in SUFFIXES + NOT_READ and path.is_file()]
    paths.sort()
    read = [path for path in paths if path.suffix.lower() in SUFFIXES]
    others = [path for path in paths if path.suffix.lower() in NOT_READ]
    if not read:
        found = f", but {len(others)} of unsupported types, {_first_few(others, folder)}" if others else ""
        raise FastganError(f"folder:{folder}: no images{found}; expected files ending in {', '.join(SUFFIXES)}")
    return read, [(str(path), f"{path.suffix} files are not supported") for path in others]


def _raise(error: OSError) -> None:
    raise error


def _leads_back(folder: Path) -> bool:
    """Whether this is a link to a parent folder, which would lead to endless recursion."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.absolute().parents}


def label_by_folder(paths: list[Path], root: Path) -> Labelling:
    """Labels int64 (N,) and classes by the first folder below `root`; (None, []) if an image is in `root` itself."""
    names = _first_folders(paths, root)
    classes = sorted(set(names))
    if "" in classes:
        return None, []
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index[name] for name in names]), [printable(name) for name in classes]


def _first_folders(paths: list[Path], root: Path) -> list[str]:
    """For each image, the folder directly below `root` that contains it; "" for an image in `root` itself."""
    depth = len(root.parts)
    return [path.parts[depth] if len(path.parts) > depth + 1 else "" for path in paths]


def drop_unusable_classes(paths: list[Path], root: Path, decoder: Decoder) -> tuple[list[Path], Failures]:
    """The images of classes with a usable image, and for each image of the other classes the reason.

    Decodes each class up to its first usable image. Raises `FastganError` if no image is usable.
    """
    names = _first_folders(paths, root)
    if "" in names:
        return paths, []
    folders: dict[str, list[Path]] = {}
    for name, path in zip(names, paths, strict=True):
        folders.setdefault(name, []).append(path)
    with ThreadPoolExecutor(THREADS) as pool:
        failures = list(chain.from_iterable(pool.map(partial(_all_failures, decoder), folders.values())))
    if len(failures) == len(paths):
        raise nothing_readable(failures)
    dropped = {path for path, _ in failures}
    return [path for path in paths if str(path) not in dropped], failures


def _all_failures(decoder: Decoder, paths: list[Path]) -> Failures:
    """The reason why each image is unusable; [] if one of them is usable."""
    failures: Failures = []
    for path in paths:
        image = decoder.attempt(path)
        if isinstance(image, Tensor):
            return []
        failures.append((str(path), str(image)))
    return failures


def printable(name: str) -> str:
    """A file name in which line breaks, bytes that are not UTF-8, and other unprintable characters are escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def open_files(paths: list[Path], root: Path, name: str, decoder: Decoder, config: DataConfig,
               labelling: Labelling = (None, []), skipped: Failures | None = None) -> Dataset:
    """The images at `paths`, decoded into memory if they need at most `cache_gb`, otherwise streamed.

    `skipped` lists the files that were already left out. Warns about all files that are left out. Raises `FastganError`
    if no image is usable, and with `strict` for the first unusable image.
    """
    labels, classes = labelling
    skipped = skipped or []
    if config.strict and skipped:
        raise unusable(*skipped[0])
    dataset: Dataset
    if len(paths) * math.prod(decoder.shape) <= config.cache_gb * 1e9:
        data, readable, failures = _decode_into_memory(paths, decoder, config.strict)
        dataset = MemoryDataset(name=name, labels=labels if labels is None else labels[readable], classes=classes,
                                skipped=[*skipped, *failures], data=data)
    else:
        dataset = StreamedDataset(name=name, labels=labels, classes=classes, skipped=skipped, paths=paths,
                                  decoder=decoder, root=root)
        *_, failures = dataset.read(0)  # if no image is readable, raises here and not later in a thread
        if config.strict and failures:
            raise unusable(*failures[0])
    if dataset.skipped:
        files, reasons = zip(*dataset.skipped, strict=True)
        warnings.warn(f"{name}: skipped {len(files)} of {len(paths) + len(skipped)} image files: "
                      f"{_first_few([Path(file) for file in files], root)}; the first: {reasons[0]}", stacklevel=5)
    return dataset


def _first_few(paths: list[Path], root: Path) -> str:
    """The first few names relative to `root`, such as "a.png, b.png, c.png, ..."."""
    names = [printable(str(path.relative_to(root))) for path in paths[:NAMED]]
    return ", ".join([*names, "..."] if len(paths) > NAMED else names)


def _decode_into_memory(paths: list[Path], decoder: Decoder, strict: bool) -> tuple[Tensor, list[int], Failures]:
    """The n readable images uint8 (n, C, H, W), their indices, and the failures."""
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
    return data[: len(readable)], readable, failures


def _decode(paths: list[Path], decoder: Decoder) -> Iterator[Tensor | UnusableImage]:
    """Each image, or the error if it is unusable, in order. Pillow and torch release the GIL, so threads suffice."""
    quiet = True if len(paths) < PROGRESS_FROM else None  # None: shown on a terminal only
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(paths), desc="Decoding", unit="image", disable=quiet) as progress,
    ):
        for start in range(0, len(paths), CHUNK):
            for image in pool.map(decoder.attempt, paths[start : start + CHUNK]):
                progress.update()
                yield image
