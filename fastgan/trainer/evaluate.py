"""How good the generator of a finished run is: measured, kept as metrics.json in its folder, and as a small table."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastgan import __version__
from fastgan.data import open_dataset
from fastgan.errors import FastganError
from fastgan.files import StrPath, read_json, replacing
from fastgan.models.pretrained import Pretrained
from fastgan.train.host import pick_device, say
from fastgan.trainer import checkpoint, run_files
from fastgan.trainer.loop import open_metrics

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
    """{"step", "date", "data", "images", "metrics", "fakes", "reals", "version"}, "step" None where no checkpoint lies.

    Also written to metrics.json in `folder`: {"measured": [...]}, with what was measured before and is not known anew.
    `metrics` as --metrics has them; when empty the run's own, else score where its data has labels, and fid where not.
    Raises `FastganError` for a folder without a run, and for what cannot be measured.
    """
    if images < 100:
        raise FastganError(f"--images {images}: expected 100 or more; of fewer, no measure says anything")
    folder = Path(folder)
    config, source, place = run_files.read_options(folder), Pretrained.load(folder), pick_device(device)
    if len(source.shape) == 1:
        raise FastganError(f"{folder} makes points, and all metrics are of images; expected a run that makes images")
    dataset = open_dataset(config.data, config.run.seed)
    if dataset.shape != source.shape:
        raise FastganError(f"{folder} makes images of {_size(source.shape)}, those of {dataset.name} have "
                           f"{_size(dataset.shape)}; expected in its options what it was trained on")
    if run_files.read_resolved(folder).get("fingerprint", dataset.fingerprint) != dataset.fingerprint:
        say(f"{dataset.name} has changed since {folder} was trained on it; measured against the images as they are now")
    metrics = metrics or config.run.metrics or ("score" if dataset.labels is not None else "fid")
    config = config.replace(metrics=metrics, metrics_images=images,
                            metrics_weights=weights or config.run.metrics_weights).validate()
    measures = open_metrics(config, dataset, place)
    assert measures is not None, "metrics are named"
    measures.learn()
    for words in measures.doubts():
        say(words)
    source.generator.to(place)
    step, now = checkpoint.newest_step(folder / "checkpoints"), datetime.now(timezone.utc)
    fakes, reals = measures.of(source), measures.of_reals()
    found = {"step": step, "date": now.isoformat(timespec="seconds"), "data": dataset.summary(), "images": images,
             "metrics": metrics, "fakes": fakes, "reals": reals, "version": __version__}
    before = measured(folder, anew={*fakes, *reals})
    with replacing(folder / FILE) as stream:
        stream.write((json.dumps({"measured": [*before, found]}, indent=2) + "\n").encode())
    return found


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def measured(folder: StrPath, anew: Collection[str] = ()) -> list[dict[str, Any]]:
    """What metrics.json of a run holds, as `evaluate` returned it, without metrics of these names; [] of none that can
    be read."""
    try:
        told = read_json(Path(folder, FILE))
        found = told.get("measured", [told])  # one measurement, as it was written before there were several
        kept = [one | {who: {name: value for name, value in one[who].items() if name not in anew}
                       for who in ("fakes", "reals")} for one in found]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return []
    return [one for one in kept if one["fakes"]]


def lines(found: dict[str, Any]) -> list[str]:
    """What `evaluate` returned as a table."""
    fakes, reals = found["fakes"], found["reals"]
    names = [name for name in MEANINGS if name in fakes or name in reals]
    return [f"{found['images']} fakes against {found['data']}", f"{'':18}{'fakes':>17}{'reals':>8}",
            *(f"{name:18}{_number(fakes, name):>17}{_number(reals, name):>8}  {MEANINGS[name]}" for name in names)]


def _number(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    spread = f" ± {values[f'{name}_std']:.4g}" if f"{name}_std" in values else ""
    return f"{values[name]:.4g}{spread}"
