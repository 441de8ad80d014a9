"""Run folders such as `runs/00000-digits`, and the options stored in them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from fastgan.config import Config, DataConfig
from fastgan.errors import FastganError, one_line
from fastgan.files import StrPath, read_json, reason, replacing

OPTIONS = "training_options.json"
# options that a resumed run may change: they do not change what a step computes, except for rounding (device,
# precision). If the learning rate depends on the length, epochs and steps may not change.
MAY_CHANGE = {"outdir", "data_root", "cache_gb", "workers", "strict", "epochs", "steps", "device", "precision", "impl",
              "plan", "graph", "gpu_data_gb", "snap", "snap_minutes", "log_every", "keep", "tensorboard", "source",
              "metrics", "metrics_images", "metrics_weights"}


def absolute(config: Config) -> Config:
    """`config` with absolute paths, except for paths that begin with ~."""
    kind, _, place = config.data.source.partition(":")
    run, train = config.run, config.train
    paths = {"data_root": config.data.data_root, "net_g": train.net_g, "net_d": train.net_d,
             "metrics_weights": run.metrics_weights, "plan": None if run.plan in ("auto", "default") else run.plan}
    return config.replace(**{key: _absolute(path) for key, path in paths.items() if path is not None},
                          source=f"{kind}:{_absolute(place)}" if place else config.data.source)


def _absolute(path: str) -> str:
    return path if path.startswith("~") else str(Path(path).absolute())


def create(outdir: Path, config: Config) -> Path:
    """Create a run folder with the next free number, which contains its options from the start. Processes that call
    this at the same time get different folders."""
    _check_text(outdir)
    aside = outdir / f".{secrets.token_hex(4)}.tmp"
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        number = 1 + max(map(_number, outdir.iterdir()), default=-1)
        (aside / "checkpoints").mkdir(parents=True)
        write_options(aside, config, {})
        while True:
            with contextlib.suppress(FileExistsError):
                return _rename(aside, outdir / f"{number:05d}-{config.preset}")
            number += 1
    except OSError as error:
        raise FastganError(f"--outdir {outdir}: cannot create a run folder there: {reason(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_text(folder: Path) -> None:
    if re.search("[\ud800-\udfff]", str(folder)):
        raise FastganError(f"{folder}: not valid UTF-8, which TensorBoard and safetensors require; expected another "
                           "folder name")


def _rename(folder: Path, target: Path) -> Path:
    """Rename a folder. Raises `FileExistsError` if the target exists, for which systems have two error codes."""
    try:
        return folder.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError from error
        raise


def newest(outdir: StrPath) -> Path:
    """The run folder with the highest number. Raises `FastganError` if there is none."""
    runs = [path.parent for path in Path(outdir).glob(f"[0-9]*/{OPTIONS}")]  # not those of killed processes
    if not runs:
        raise FastganError(f"no run in {outdir}: expected folders such as 00000-digits; give a run folder, or train "
                           "first")
    return max(runs, key=_number)


def _number(run: Path) -> int:
    """The number of a run folder, -1 for other names."""
    match = re.match(r"(\d+)-", run.name)
    return int(match[1]) if match else -1


def write_options(folder: Path, config: Config, resolved: dict[str, Any]) -> None:
    """Write all options, and the facts in `resolved`, to training_options.json."""
    with replacing(folder / OPTIONS) as stream:
        stream.write((json.dumps({"config": config.flat(), "resolved": resolved}, indent=2) + "\n").encode())


def read_options(folder: StrPath) -> Config:
    """The configuration of a run. Raises `FastganError` if `folder` has no valid one."""
    content = _read(folder)
    try:
        return Config.from_flat(content["config"]).validate()
    except FastganError as error:
        raise FastganError(f"{Path(folder, OPTIONS)}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_run(folder, error) from error


def read_resolved(folder: StrPath) -> dict[str, Any]:
    """The facts stored when the run last started; {} if it was stopped before. Raises `FastganError` if `folder` is not
    a run folder."""
    resolved = _read(folder).get("resolved")
    return resolved if isinstance(resolved, dict) else {}


def with_channels(data: DataConfig, folder: StrPath) -> DataConfig:
    """`data` with the number of channels that the run in `folder` began with, because another version of fastgan may
    choose a different number for files of several modes."""
    shape = read_resolved(folder).get("shape")
    if data.channels is None and isinstance(shape, list) and len(shape) == 3 and shape[0] in (1, 3, 4):
        return dataclasses.replace(data, channels=shape[0])
    return data


def _read(folder: StrPath) -> dict[str, Any]:
    try:
        return dict(read_json(Path(folder, OPTIONS)))
    except (OSError, ValueError, TypeError) as error:
        raise _no_run(folder, error) from error


def _no_run(folder: StrPath, error: Exception) -> FastganError:
    why = reason(error) if isinstance(error, OSError) else one_line(error)
    return FastganError(f"{folder} is not a run folder: cannot read {OPTIONS} ({why})")


def check_resume(folder: Path, before: Config, now: Config) -> None:
    """Raise `FastganError`, which lists the changes, if options changed that a resumed run must not change."""
    _check_text(folder)
    old, new = absolute(before).flat(), absolute(now).flat()
    may = MAY_CHANGE if before.train.lr_schedule == "constant" else MAY_CHANGE - {"epochs", "steps"}
    changed = [f"{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key] and key not in may]
    if changed:
        raise FastganError(f"cannot resume {folder} with other options: {', '.join(changed)}; "
                           f"expected the original values, or a new run by `fastgan train`")
