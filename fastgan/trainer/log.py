"""The log of a run: stats.jsonl, one JSON object per line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from fastgan import extras, pictures
from fastgan.errors import FastganError
from fastgan.files import replacing
from fastgan.trainer.host import logger

TAGS = {  # TensorBoard tags
    "loss_d": "Loss/D", "loss_g": "Loss/G", "grad_norm_d": "Loss/grad_norm_D", "grad_norm_g": "Loss/grad_norm_G",
    "d_real": "Progress/D(x)", "d_fake": "Progress/D(G(z))", "epoch": "Progress/epoch",
    "fid": "Metrics/FID", "kid": "Metrics/KID", "is": "Metrics/IS",
    "score_confidence": "Metrics/score_confidence", "score_classes": "Metrics/score_classes",
    "score_diversity": "Metrics/score_diversity", "score_novelty": "Metrics/score_novelty",
    "sec_per_step": "Timing/sec_per_step", "images_per_sec": "Timing/images_per_sec",
    "cpu_peak_gb": "Resources/cpu_peak_gb", "gpu_peak_gb": "Resources/gpu_peak_gb",
    "diversity": "Progress/diversity",
}


class RunLog:
    """Appends records to stats.jsonl in a run folder, after removing the records of steps after `step`."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "stats.jsonl"
        self.records = [record for record in read_stats(path) if record["step"] <= step]
        with replacing(path) as stream:
            stream.writelines(_line(record) for record in self.records)
        self._lines = path.open("ab", buffering=0)
        self._has_plots = can_load("matplotlib.figure", "plots", "losses.png")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record: "step" and numbers by name, and, if there are any, "alerts" (messages by name).

        A step may have two records: the metrics of the step, and those of --metrics, computed at its snapshot.
        """
        self.records.append(record)
        line = _line(record)
        if self._lines.write(line) != len(line):  # a partial write, because the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def plot(self, path: Path) -> None:
        """Plot the loss curves if matplotlib is installed."""
        if self._has_plots:
            pictures.loss_curves(self.records, path)

    def close(self) -> None:
        self._lines.close()


def can_load(module: str, extra: str, what: str) -> bool:
    """Whether an optional package can be imported; if not, logs a warning."""
    try:
        extras.load(module, extra, what)
    except FastganError as error:
        logger.warning(f"{error}; the run continues without it")
        return False
    return True


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The records of a stats.jsonl, without lines that are incomplete because of a killed run or a full disk."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def _is_record(value: object) -> bool:
    """Whether a value is a valid record: "step" and other numbers by name, and optionally "alerts", texts by name."""
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        return False
    alerts, numbers = value.get("alerts", {}), [one for key, one in value.items() if key != "alerts"]
    return (all(isinstance(number, (int, float)) for number in numbers)
            and isinstance(alerts, dict) and all(isinstance(words, str) for words in alerts.values()))
