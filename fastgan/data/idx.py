"""The IDX format of MNIST: 0 0 type rank, big-endian uint32 sizes, then the values; plain or gzip-compressed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from fastgan.data.untrusted import read_exactly
from fastgan.errors import FastganError, one_line

UNSIGNED_BYTE = 8
PREFIXES = {"train": "train", "test": "t10k"}


def read_idx_folder(folder: Path, split: str) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """For each part of the split, images uint8 (N, H, W) and labels uint8 (N,), or None without a label file.

    Raises `FastganError` for a missing folder or image file, damaged files and counts that differ.
    """
    if not folder.is_dir():
        raise FastganError(f"idx:{folder}: {'not a folder' if folder.exists() else 'no such folder'}; "
                           "expected a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    return [_read_part(folder, prefix) for part, prefix in PREFIXES.items() if split in (part, "all")]


def _read_part(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray | None]:
    image_file = _find(folder, f"{prefix}-images", rank=3)
    if image_file is None:
        raise FastganError(f"idx:{folder}: no {prefix} images; expected {prefix}-images-idx3-ubyte, plain or .gz")
    images = read_idx(image_file, rank=3)
    if images.size == 0:
        raise FastganError(f"{image_file}: sizes {images.shape}; expected at least one image and one pixel")
    label_file = _find(folder, f"{prefix}-labels", rank=1)
    if label_file is None:
        return images, None
    labels = read_idx(label_file, rank=1)
    if len(labels) != len(images):
        raise FastganError(f"{label_file}: {len(labels)} labels; expected {len(images)}, as many as {image_file.name}")
    return images, labels


def read_idx(path: Path, rank: int) -> np.ndarray:
    """One file's array, uint8 with `rank` dimensions; `FastganError` when it is not exactly that."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _read(cast(BinaryIO, stream), rank)
    except ValueError as error:
        raise FastganError(f"{path}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise FastganError(f"{path}: {one_line(error)}; expected a complete, readable file") from error


def _read(stream: BinaryIO, rank: int) -> np.ndarray:
    magic = stream.read(4)
    expected = bytes([0, 0, UNSIGNED_BYTE, rank])
    if magic != expected:
        raise ValueError(f"magic number 0x{magic.hex()}; expected 0x{expected.hex()}, "
                         f"unsigned bytes of {rank} dimension{'s' * (rank > 1)}")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"header of {4 + len(sizes)} bytes; expected {4 + 4 * rank}")
    shape = struct.unpack(f">{rank}I", sizes)
    return np.frombuffer(read_exactly(stream, math.prod(shape)), dtype=np.uint8).reshape(shape)


def _find(folder: Path, stem: str, rank: int) -> Path | None:
    """The first of the names under which mirrors keep a file."""
    names = (f"{stem}{dot}idx{rank}-ubyte{gz}" for gz in ("", ".gz") for dot in "-.")
    return next((folder / name for name in names if (folder / name).is_file()), None)
