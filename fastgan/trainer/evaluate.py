"""Metrics of a finished run's generator: computed, stored as metrics.json in its folder, and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastgan import __version__
from fastgan.config import Config
from fastgan.data import Dataset, open_dataset
from fastgan.device import pick_device
from fastgan.errors import FastganError
from fastgan.files import StrPath, read_json, replacing
from fastgan.metrics import Metrics
from fastgan.metrics.merit import better
from fastgan.models.pretrained import Pretrained
from fastgan.trainer import checkpoint, run_files
from fastgan.trainer.host import logger

FILE = "metrics.json"
MEANINGS = {
    "fid": "Fréchet distance between the two distributions; 0 is best",
    "kid": "squared MMD between the two distributions, unbiased; 0 is best",
    "is": "Inception Score: quality and diversity; higher is better",
    "score_confidence": "how clearly the fakes belong to one class; 1 is best",
    "score_classes": "number of classes among the fakes",
    "score_diversity": "diversity within classes; 1 is that of the real images",
    "score_novelty": "distance to the nearest real image; 1 is that of new real images, 0 a copy",
    "score_accuracy": "accuracy of the classifier on new real images",
}


def evaluate(folder: StrPath, metrics: str = "", *, images: int = 2000, weights: StrPath | None = None,
             device: str = "auto") -> dict[str, Any]:
    """Compute metrics of a run.

    The result is also stored in metrics.json in the run folder, where it replaces earlier values of the same metrics.

    Args:
        folder: the run folder.
        metrics: names as in --metrics, such as "fid,kid". By default those of the run; if it has none, "score" for data
            with labels and "fid" for other data.
        images: the number of fakes, 100 or more.
        weights: a file with the weights of InceptionV3, as in --metrics-weights.
        device: as in --device.

    Returns:
        The keys "step" (None without a checkpoint), "date", "data", "images", "metrics", "fakes", "reals" and
        "version".

    Raises:
        FastganError: for a folder without a run, and for metrics that cannot be computed.
    """
    if images < 100:
        raise FastganError(f"--images {images}: expected 100 or more; with fewer, no metric is meaningful")
    folder = Path(folder)
    config, source, place = run_files.read_options(folder), Pretrained.load(folder), pick_device(device)
    if len(source.shape) == 1:
        raise FastganError(f"{folder} outputs points, which have no metrics; expected a run that outputs images")
    dataset = open_dataset(run_files.with_channels(config.data, folder), config.run.seed)
    if dataset.shape != source.shape:
        raise FastganError(f"{folder} generates images of {_size(source.shape)}, but {dataset.name} has images of "
                           f"{_size(dataset.shape)}; expected the options that the run was trained with")
    if run_files.read_resolved(folder).get("fingerprint", dataset.fingerprint) != dataset.fingerprint:
        logger.warning(f"{dataset.name} has changed since {folder} was trained on it; the metrics compare with the "
                       "changed images")
    metrics = metrics or config.run.metrics or ("score" if dataset.labels is not None else "fid")
    config = config.replace(metrics=metrics, metrics_images=images,
                            metrics_weights=weights or config.run.metrics_weights).validate()
    computed = open_metrics(config, dataset, place)
    assert computed is not None, "metrics are named"
    computed.learn()
    for message in computed.doubts():
        logger.warning(message)
    source.generator.to(place)
    step, now = checkpoint.newest_step(folder / "checkpoints"), datetime.now(timezone.utc)
    fakes, reals = computed.of(source), computed.of_reals()
    result = {"step": step, "date": now.isoformat(timespec="seconds"), "data": dataset.summary(), "images": images,
              "metrics": metrics, "fakes": fakes, "reals": reals, "version": __version__}
    before = measured(folder, anew={*fakes, *reals})
    with replacing(folder / FILE) as stream:
        stream.write((json.dumps({"measured": [*before, result]}, indent=2) + "\n").encode())
    return result


def open_metrics(config: Config, dataset: Dataset, device: torch.device) -> Metrics | None:
    """The metrics of --metrics, or None without that option. Raises `FastganError` if one cannot be computed."""
    run = config.run
    return Metrics(run.metrics, dataset, config.data, images=run.metrics_images, weights=run.metrics_weights,
                   device=device) if run.metrics else None


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def measured(folder: StrPath, anew: Collection[str] = ()) -> list[dict[str, Any]]:
    """The results in a run's metrics.json, without the metrics in `anew`; [] if the file cannot be read."""
    try:
        content = read_json(Path(folder, FILE))
        results = content.get("measured", [content])  # older files contain a single result
        others = [result | {images: {name: value for name, value in result[images].items() if name not in anew}
                            for images in ("fakes", "reals")} for result in results]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return []
    return [result for result in others if result["fakes"]]


def evaluate_all(folders: Sequence[Path], metrics: str = "", **options: Any) -> dict[Path, dict[str, Any]]:
    """`evaluate` each run with the metrics of the first. Raises `FastganError` for runs on different images."""
    results: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        results[folder] = evaluate(folder, metrics, **options)
        first = results[folders[0]]
        metrics = first["metrics"]
        if results[folder]["data"] != first["data"]:
            raise FastganError(f"{folder} is compared with {results[folder]['data']}, but {folders[0]} with "
                               f"{first['data']}; expected two runs on the same images")
    return results


def lines(results: Mapping[Path, dict[str, Any]]) -> list[str]:
    """A table of results of `evaluate`, with one column for each of at most two runs; * marks the better value."""
    first, runs = next(iter(results.values())), [result["fakes"] for result in results.values()]
    names = [name for name in MEANINGS if name in first["fakes"] or name in first["reals"]]
    heads = ["fakes"] if len(runs) == 1 else [folder.name for folder in results]
    table = [f"{first['images']} fakes against {first['data']}",
             f"{'':18}{''.join(f'{head[-20:]:>22}' for head in heads)}{'reals':>10}"]
    for name in names:
        winner = better(name, runs[0], runs[-1])
        cells = [_number(values, name) + ("*" if index == winner else " ") for index, values in enumerate(runs)]
        table.append(f"{name:18}{''.join(f'{cell:>22}' for cell in cells)}{_number(first['reals'], name):>10}  "
                     f"{MEANINGS[name]}")
    return table


def _number(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    deviation = f" ± {values[f'{name}_std']:.4g}" if f"{name}_std" in values else ""
    return f"{values[name]:.4g}{deviation}"
