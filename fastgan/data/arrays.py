"""Images and labels in arrays: MNIST's IDX files, plain or gzip-compressed, and NumPy's npz archives.

An IDX file consists of the bytes 0, 0, type, rank; the sizes as big-endian uint32; the values.
"""

from __future__ import annotations

import gzip
import math
import zipfile
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fastgan.errors import FastganError, one_line

Arrays: TypeAlias = "tuple[np.ndarray, np.ndarray | None]"  # images uint8 (N, H, W) or (N, H, W, C), labels (N,)

IDX_PREFIXES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8
NPZ_IMAGES = {"train": ("images", "x_train", "x"), "test": ("x_test",)}
NPZ_LABELS = {"train": ("labels", "y_train", "y"), "test": ("y_test",)}
MAX_LABEL = 65535


def read_idx_folder(folder: Path, split: str) -> list[Arrays]:
    """For each split, images uint8 (N, H, W) and labels uint8 (N,), or None without a label file.

    Raises `FastganError` for a missing folder or image file, damaged files and counts that differ.
    """
    if not folder.is_dir():
        raise FastganError(f"idx:{folder}: {'not a folder' if folder.exists() else 'no such folder'}; "
                           "expected a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    return [_read_idx_split(folder, prefix) for name, prefix in IDX_PREFIXES.items() if split in (name, "all")]


def _read_idx_split(folder: Path, prefix: str) -> Arrays:
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


def _find(folder: Path, stem: str, rank: int) -> Path | None:
    """The first file that exists, of the names that mirrors use."""
    names = (f"{stem}{dot}idx{rank}-ubyte{gz}" for gz in ("", ".gz") for dot in "-.")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The array in one file, uint8 with `rank` dimensions; `FastganError` for any other content."""
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except Exception as error:  # gzip and zlib raise many types for damaged streams
        raise FastganError(f"{path}: {one_line(error)}; expected a complete, readable file") from error
    expected, start = bytes([0, 0, UNSIGNED_BYTE, rank]), 4 + 4 * rank
    if content[:4] != expected:
        raise FastganError(f"{path}: magic number 0x{content[:4].hex()}; expected 0x{expected.hex()}, unsigned bytes "
                           f"of {rank} dimension{'s' * (rank > 1)}")
    if len(content) < start:
        raise FastganError(f"{path}: header of {len(content)} bytes; expected {start}")
    shape = [int(size) for size in np.frombuffer(content, ">u4", rank, 4)]
    if len(content) - start != math.prod(shape):
        raise FastganError(f"{path}: {len(content) - start} bytes of data; expected the {math.prod(shape)} that its "
                           "header declares")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_npz(path: Path, split: str) -> list[Arrays]:
    """For each split, images uint8 (N, H, W) or (N, H, W, C), C in 1, 3, 4, and labels int64 (N,) or None.

    The training images are named images, x_train or x, or are the only array; the test images are named x_test. "all"
    includes the test images if there are any. Raises `FastganError` for a missing or damaged file, other names, dtypes
    or shapes, pickled objects, and counts that differ.
    """
    if not path.is_file():
        raise FastganError(f"npz:{path}: {'not a file' if path.exists() else 'no such file'}; expected an .npz archive")
    try:
        if not zipfile.is_zipfile(path):
            raise FastganError("not a zip archive; expected one written by numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            splits = [split] if split in NPZ_IMAGES else ["train"] + ["test"] * ("x_test" in archive)
            return [_read_npz_split(archive, name) for name in splits]
    except FastganError as error:
        raise FastganError(f"npz:{path}: {error}") from error
    except Exception as error:  # damaged archives raise many types
        raise FastganError(f"npz:{path}: {one_line(error)}; expected an archive written by numpy.savez") from error


def _read_npz_split(archive: np.lib.npyio.NpzFile, split: str) -> Arrays:
    name = next((name for name in NPZ_IMAGES[split] if name in archive), None)
    if name is None and split == "train" and len(archive.files) == 1:
        name = archive.files[0]
    if name is None:
        raise FastganError(f"arrays {', '.join(archive.files) or 'none'}; expected {' or '.join(NPZ_IMAGES[split])}")
    images = _read_npz_array(archive, name)
    if images.dtype != np.uint8:
        raise FastganError(f"{name} is {images.dtype}; expected uint8")
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))) or 0 in images.shape:
        raise FastganError(f"{name} has shape {images.shape}; expected (N, H, W) or (N, H, W, C) with C 1, 3 or 4, "
                           "all sizes above 0")
    label_name = next((name for name in NPZ_LABELS[split] if name in archive), None)
    if label_name is None:
        return images, None
    labels = _read_npz_array(archive, label_name)
    if labels.dtype.kind not in "iu" or labels.shape not in [(len(images),), (len(images), 1)]:
        raise FastganError(f"{label_name} is {labels.dtype} of shape {labels.shape}; expected integers of shape "
                           f"({len(images)},), as many as {name}")
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise FastganError(f"{label_name} from {labels.min()} to {labels.max()}; expected 0 to {MAX_LABEL}")
    return images, labels.reshape(-1).astype(np.int64)


def _read_npz_array(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return np.asarray(archive[name])  # a member that is not an array is returned as bytes
    except Exception as error:  # damaged members raise many types, and so does NumPy's parser of headers
        raise FastganError(f"{name} cannot be read: {one_line(error)}; expected an array written by numpy.savez"
                           ) from error
