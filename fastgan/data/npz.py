"""Images and labels in NumPy's npz archives, read without pickle."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy

from fastgan.data.untrusted import read_exactly
from fastgan.errors import FastganError, one_line

IMAGES = {"train": ("images", "x_train", "x"), "test": ("x_test",)}
LABELS = {"train": ("labels", "y_train", "y"), "test": ("y_test",)}
MAX_LABEL = 65535
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """What a member declares before its values."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_npz(path: Path, split: str) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """For each part of the split, images uint8 (N, H, W) or (N, H, W, C), C in 1, 3, 4, and labels int64 (N,) or None.

    The train part's images are called images, x_train or x, or are the only array; the test part's, x_test; "all" takes
    the test part if there is one. Raises `FastganError` for a missing or damaged file, other names, dtypes or shapes,
    pickled objects, and counts that differ.
    """
    if not path.is_file():
        raise FastganError(f"npz:{path}: {'not a file' if path.exists() else 'no such file'}; expected an .npz archive")
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            parts = [split] if split in IMAGES else ["train"] + ["test"] * ("x_test" in held)
            return [_read_part(archive, held, part) for part in parts]
    except FastganError as error:
        raise FastganError(f"npz:{path}: {error}") from error
    # a damaged or encrypted archive, an unknown compression
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
            struct.error) as error:
        raise FastganError(f"npz:{path}: {one_line(error)}; expected an archive as numpy.savez writes it") from error


def _read_part(archive: zipfile.ZipFile, held: list[str], part: str) -> tuple[np.ndarray, np.ndarray | None]:
    images_name = next((name for name in IMAGES[part] if name in held), None)
    if images_name is None and part == "train" and len(held) == 1:
        images_name = held[0]
    if images_name is None:
        raise FastganError(f"arrays {', '.join(held) or 'none'}; expected {' or '.join(IMAGES[part])}")
    images = _read_array(archive, images_name, _check_images)
    labels_name = next((name for name in LABELS[part] if name in held), None)
    if labels_name is None:
        return images, None
    labels = _read_array(archive, labels_name, _check_labels).reshape(-1)
    if len(labels) != len(images):
        raise FastganError(f"{len(labels)} {labels_name}; expected {len(images)}, as many as {images_name}")
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise FastganError(f"{labels_name} from {labels.min()} to {labels.max()}; expected 0 to {MAX_LABEL}")
    return images, labels.astype(np.int64)


def _read_array(archive: zipfile.ZipFile, name: str, check: Callable[[str, Header], None]) -> np.ndarray:
    """One member's array, its header checked before its values are read."""
    with archive.open(f"{name}.npy") as member:
        stream = cast(BinaryIO, member)
        header = _read_header(stream, name)
        check(name, header)
        data = read_exactly(stream, math.prod(header.shape) * header.dtype.itemsize)
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    return np.frombuffer(data, dtype=header.dtype).reshape(header.shape, order=order)


def _read_header(stream: BinaryIO, name: str) -> Header:
    version = npy.read_magic(stream)
    if version not in HEADERS:
        raise FastganError(f"{name} in npy format {version}; expected {' or '.join(map(str, HEADERS))}")
    try:
        return Header(*HEADERS[version](stream))
    # numpy hands the header to Python's parser, which raises nearly anything
    except Exception as error:
        raise ValueError(f"the header of {name} cannot be read: {one_line(error)}") from error


def _check_images(name: str, header: Header) -> None:
    shape = header.shape
    if header.dtype.hasobject:
        raise FastganError(f"{name} holds pickled objects, which are never loaded; expected uint8")
    if header.dtype != np.uint8:
        raise FastganError(f"{name} is {header.dtype}; expected uint8")
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))) or 0 in shape:
        raise FastganError(f"{name} has shape {shape}; expected (N, H, W) or (N, H, W, C) with C 1, 3 or 4, not empty")


def _check_labels(name: str, header: Header) -> None:
    if header.dtype.hasobject:
        raise FastganError(f"{name} holds pickled objects, which are never loaded; expected whole numbers")
    if header.dtype.kind not in "iu" or header.shape not in [header.shape[:1], (*header.shape[:1], 1)]:
        raise FastganError(f"{name} is {header.dtype} of shape {header.shape}; expected whole numbers of shape (N,)")
