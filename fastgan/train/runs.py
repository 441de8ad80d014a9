"""Run folders: `runs/00000-digits` and what stands in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastgan.config import Config
from fastgan.errors import FastganError
from fastgan.files import reason, replacing

OPTIONS = "training_options.json"
# what a resumed run may do otherwise: none of these changes what is computed in a step (a learning rate that falls
# towards the end of the run binds that end)
MAY_CHANGE = {"outdir", "data_root", "cache_gb", "workers", "strict", "epochs", "steps", "device", "impl", "plan",
              "graph", "gpu_data_gb", "snap", "log_every", "keep", "tensorboard", "source", "metrics", "metrics_images",
              "metrics_weights"}


def create(outdir: Path, name: str) -> Path:
    """A new folder with the next free number; two runs that start at once get two."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(match[1]) for path in outdir.iterdir() if (match := re.match(r"(\d+)-", path.name))),
                         default=-1)
        while True:
            folder = outdir / f"{number:05d}-{name}"
            try:
                folder.mkdir()
                (folder / "checkpoints").mkdir()
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        raise FastganError(f"--outdir {outdir}: cannot make a run folder there: {reason(error)}") from error


def newest(outdir: Path) -> Path:
    """The run with the highest number, or `FastganError`."""
    runs = sorted(path.parent for path in outdir.glob(f"*/{OPTIONS}"))
    if not runs:
        raise FastganError(f"no run in {outdir}: expected folders such as 00000-digits; give one, or train first")
    return runs[-1]


def write_options(folder: Path, config: Config, resolved: dict[str, Any]) -> None:
    """Every option, and every fact that was found out."""
    with replacing(folder / OPTIONS) as stream:
        stream.write((json.dumps({"config": config.flat(), "resolved": resolved}, indent=2) + "\n").encode())


def read_options(folder: Path) -> Config:
    """The configuration of a run. Raises `FastganError` when `folder` holds none."""
    try:
        return Config.from_flat(json.loads((folder / OPTIONS).read_text())["config"])
    except FastganError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FastganError(f"{folder} is no run folder: cannot read {OPTIONS} ({error})") from error


def check_resume(folder: Path, before: Config, now: Config) -> None:
    """`FastganError` that shows, per key, what a resumed run must not change."""
    old, new = before.flat(), now.flat()
    may = MAY_CHANGE if before.train.lr_schedule == "constant" else MAY_CHANGE - {"epochs", "steps"}
    changed = [f"{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key] and key not in may]
    if changed:
        raise FastganError(f"cannot resume {folder} with other options: {', '.join(changed)}; "
                           f"expected them as they were, or a new run by `fastgan train`")
