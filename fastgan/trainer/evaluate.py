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
    "fid": "distance of the two distributions; 0 is best",
    "kid": "the same without bias, by another kernel; 0 is best",
    "is": "how clear and how varied to InceptionV3; more is better",
    "score_confidence": "how clearly a fake is one of the classes; 1 is best",
    "score_classes": "classes that the fakes cover",
    "score_diversity": "how varied the fakes of each class are; 1 is as the reals are",
    "score_novelty": "distance to the nearest real; 1 is as new reals are, 0 a copy",
    "score_accuracy": "how often the classifier is right about new reals",
}


def evaluate(folder: StrPath, metrics: str = "", *, images: int = 2000, weights: StrPath | None = None,
             device: str = "auto") -> dict[str, Any]:
    """Compute metrics of a run.

    The result is also stored in metrics.json in the run folder, where it replaces earlier values of the same metrics.

    Args:
        folder: the run folder.
        metrics: names as in --metrics, such as "fid,kid". By default those of the run; if it has none, "score" for data
            with labels and "fid" for other data.
        images: how many fakes are measured, 100 or more.
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
        raise FastganError(f"{folder} makes points, and all metrics are of images; expected a run that makes images")
    dataset = open_dataset(run_files.with_channels(config.data, folder), config.run.seed)
    if dataset.shape != source.shape:
        raise FastganError(f"{folder} makes images of {_size(source.shape)}, those of {dataset.name} have "
                           f"{_size(dataset.shape)}; expected the options that it was trained with")
    if run_files.read_resolved(folder).get("fingerprint", dataset.fingerprint) != dataset.fingerprint:
        logger.warning(f"{dataset.name} has changed since {folder} was trained on it; measured against the images as "
                       "they are now")
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
    """The metrics that --metrics names, None for none. Raises `FastganError` where one cannot be computed."""
    run = config.run
    return Metrics(run.metrics, dataset, config.data, images=run.metrics_images, weights=run.metrics_weights,
                   device=device) if run.metrics else None


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def measured(folder: StrPath, anew: Collection[str] = ()) -> list[dict[str, Any]]:
    """The results of `evaluate` in a run's metrics.json, without the metrics in `anew`; [] where it cannot be read."""
    try:
        content = read_json(Path(folder, FILE))
        results = content.get("measured", [content])  # older files hold one result
        others = [result | {images: {name: value for name, value in result[images].items() if name not in anew}
                            for images in ("fakes", "reals")} for result in results]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return []
    return [result for result in others if result["fakes"]]


def evaluate_all(folders: Sequence[Path], metrics: str = "", **options: Any) -> dict[Path, dict[str, Any]]:
    """`evaluate` of each of these runs, by the metrics of the first; raises `FastganError` for runs on other images."""
    results: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        results[folder] = evaluate(folder, metrics, **options)
        first = results[folders[0]]
        metrics = first["metrics"]
        if results[folder]["data"] != first["data"]:
            raise FastganError(f"{folder} is measured against {results[folder]['data']}, {folders[0]} against "
                               f"{first['data']}; expected two runs on the same images")
    return results


def lines(results: Mapping[Path, dict[str, Any]]) -> list[str]:
    """Results of `evaluate` as a table, a column for each of at most two runs; * marks the better one."""
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
