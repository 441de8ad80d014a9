"""Facts about the training of a generator, read from its run folder for exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fastgan.errors import FastganError
from fastgan.files import StrPath
from fastgan.trainer import checkpoint, evaluate, run_files
from fastgan.trainer.host import logger


def facts(folder: StrPath) -> dict[str, Any]:
    """The content of training_options.json, "steps" (completed steps) and "measured" (from metrics.json); {} if the
    folder has no options."""
    folder = Path(folder)
    if not (folder / run_files.OPTIONS).is_file():
        return {}
    config = run_files.read_options(folder).flat()  # with defaults for options that were added after the run
    return {"config": config, "resolved": run_files.read_resolved(folder),
            "steps": checkpoint.newest_step(folder / "checkpoints"), "measured": evaluate.measured(folder)}


def discriminator(folder: StrPath) -> dict[str, Tensor] | None:
    """The discriminator's state_dict in the newest readable checkpoint; None if the folder has no checkpoint.

    Raises `FastganError` for a file that is not a checkpoint of fastgan.
    """
    checkpoints = Path(folder, "checkpoints")
    if checkpoint.newest_step(checkpoints) is None:
        return None
    state, path, problems = checkpoint.read_newest(checkpoints)
    for problem in problems:
        logger.warning(f"{problem}; using the discriminator of {path.name}")
    try:
        return state["step"]["discriminator"]
    except (KeyError, TypeError) as error:
        raise FastganError(f"{path} contains no discriminator; expected a checkpoint of fastgan, or another --format"
                           ) from error
