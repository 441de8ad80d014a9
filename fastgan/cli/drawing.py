"""`sample` and `interpolate`: images from a trained generator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from fastgan.cli import parsing
from fastgan.errors import FastganError

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.models.pretrained import Pretrained


@dataclass
class Sample:
    """Generate a grid of images with a trained generator."""

    folder: Positional[Path | None] = None
    """a run folder, a folder with generator.safetensors and config.json, or a netG.pth; the newest run if not given"""
    seeds: str | None = None
    """seeds of the latents, such as 0,1,4-6; a seed always gives the same image; 0-63 if not given, or fewer to fill
    whole rows of a conditional generator"""
    label: str | None = None
    """class name or number, for a conditional generator; all classes in turn if not given"""
    columns: int | None = None
    """images per row"""
    out: Path = Path("samples.png")
    """output file"""


def sample(args: list[str]) -> int:
    """`fastgan sample`."""
    options = parsing.parse(Sample, args, "sample")
    from fastgan import pictures
    from fastgan.data import to_uint8

    if options.columns is not None and options.columns < 1:
        raise FastganError(f"--columns {options.columns}: expected 1 or more")
    source, seeds = parsing.load(options.folder), _parse_seeds(options.seeds or "0-63")
    columns = options.columns
    if columns is None and options.label is None:
        columns = pictures.class_columns(len(seeds), len(source.classes))
        if options.seeds is None:
            seeds = seeds[:len(seeds) - len(seeds) % (columns or 1)]
    labels = _labels(source, options.label, len(seeds))
    images = source.draw(source.noise.from_seeds(seeds), labels)
    parsing.writable(options.out)
    if len(source.shape) == 1:
        pictures.scatter(options.out, generated=images)
    else:
        grid = pictures.grid(to_uint8(images, source.unit_range), columns, source.names(labels))
        pictures.save(grid, options.out)
    print(f"{len(seeds)} samples: {options.out}")
    return 0


@dataclass
class Interpolate:
    """Generate images along a path between latents, and write them as a strip (PNG) and an animation (GIF)."""

    folder: Positional[Path | None] = None
    """a run folder, a folder with generator.safetensors and config.json, or a netG.pth; the newest run if not given"""
    seeds: str = "0,1"
    """seeds of two or more latents, such as 0,5,7"""
    frames: int = 10
    """number of images from each latent to the next"""
    label: str | None = None
    """class name or number, for a conditional generator"""
    out: Path = Path("interpolation")
    """output files: OUT.png and OUT.gif"""


def interpolate(args: list[str]) -> int:
    """`fastgan interpolate`."""
    options = parsing.parse(Interpolate, args, "interpolate")
    from fastgan import pictures
    from fastgan.data import to_uint8

    if options.out.suffix not in ("", ".png", ".gif"):
        raise FastganError(f"--out {options.out}: {options.out.suffix} is not supported; expected a name without a "
                           "suffix, or with .png or .gif (both files are written)")
    source, seeds = parsing.load(options.folder), _parse_seeds(options.seeds)
    if len(seeds) < 2 or options.frames < 2:
        raise FastganError(f"--seeds {options.seeds} --frames {options.frames}: expected at least 2 of each")
    if len(source.shape) == 1:
        raise FastganError("this generator outputs points; expected one that outputs images (`fastgan sample` "
                           "plots points)")
    z = source.noise.walk(seeds, options.frames)
    images = to_uint8(source.draw(z, _labels(source, options.label or "0", len(z))), source.unit_range)
    strip, moving = options.out.with_suffix(".png"), options.out.with_suffix(".gif")
    parsing.writable(strip)
    pictures.save(pictures.grid(images, options.frames), strip)
    pictures.animation(images, moving)
    print(f"strip: {strip}\nanimation: {moving}")
    return 0


def _parse_seeds(text: str) -> list[int]:
    """Parse "0,1,4-6" as [0, 1, 4, 5, 6]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**63:
            raise FastganError(f"--seeds {text}: expected numbers and ranges such as 0,1,4-6")
        if len(seeds) + last - first >= 10_000:
            raise FastganError(f"--seeds {text}: expected at most 10000 seeds")
        seeds += range(first, last + 1)
    return seeds


def _labels(source: Pretrained, label: str | None, count: int) -> Tensor | None:
    """The label of each image: `label` for all, or all classes in turn; None for an unconditional generator."""
    import torch

    classes = source.classes
    if not classes or label is None:
        return source.labels_in_turn(count)
    if label in classes:
        return torch.full((count,), classes.index(label))
    if label.isdecimal() and int(label) < len(classes):
        return torch.full((count,), int(label))
    raise FastganError(f"--label {label}: expected one of the classes {', '.join(classes)}, or the number of one")
