"""A run folder as an HTML page, report.html: alerts, pictures over time, curves, metrics, facts and options.

The run may still be training. A missing or damaged file is reported in its section and does not affect the others.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from fastgan import pictures, presets
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, replacing
from fastgan.metrics.merit import best, merit
from fastgan.report import curves, files, page
from fastgan.report.curves import is_number
from fastgan.trainer import lock
from fastgan.trainer.evaluate import FILE as METRICS
from fastgan.trainer.evaluate import MEANINGS
from fastgan.trainer.log import read_stats
from fastgan.trainer.run_files import OPTIONS

NAME, LOG = "report.html", "stats.jsonl"
MAX_PICTURES = 40
WALK_SEEDS, WALK_FRAMES, WALK_SIDE = (0, 1, 2, 3), 8, 1056  # WALK_SIDE: maximum side in pixels


def is_run(folder: StrPath) -> bool:
    """Whether a folder contains any file of a run."""
    folder = Path(folder)
    return (folder / OPTIONS).exists() or (folder / LOG).exists() or bool(files.fakes(folder))


def write(folder: StrPath, out: StrPath | None = None) -> Path:
    """Write the report of a run as one HTML page, and return its path.

    Args:
        folder: the run folder.
        out: the page; by default report.html in the folder.

    Raises:
        FastganError: for a folder without a run, and if the page cannot be written.
    """
    if not is_run(folder):
        raise FastganError(f"{folder} is not a run folder: expected {OPTIONS}, {LOG} or pictures of fakes")
    out, folder = Path(out or Path(folder, NAME)), Path(folder)
    with replacing(out) as stream:
        stream.write(_Report(folder).page().encode(errors="backslashreplace"))
    return out


class _Report:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = read_stats(folder / LOG)
        self.done = self.records[-1]["step"] if self.records else 0
        self.error = ""  # why the options cannot be read; shown in the header
        try:
            options = files.json_object(folder / OPTIONS, f"There is no {OPTIONS}")
        except FastganError as error:
            self.error, options = page.missing(str(error)), {}
        self.config, self.resolved = (value if isinstance(value, dict) else {}
                                      for value in map(options.get, ("config", "resolved")))

    def page(self) -> str:
        name = self.folder.resolve().name
        sections: dict[str, Callable[[], str]] = {
            "Alerts": self.alerts, "Samples": self.samples, "Interpolation": self.interpolation, "Curves": self.curves,
            "Metrics": self.metrics, "Facts": self.facts, "Options": self.options}
        links = "".join(f'<li><a href="#{title.lower()}">{title}</a></li>' for title in sections)
        body = [f'<section id="{title.lower()}">\n<h2>{title}</h2>\n{_attempt(section)}\n</section>'
                for title, section in sections.items()]
        return page.shell(f"{name}: fastgan", "\n".join([
            f"<header>\n<h1>{page.short(name)}</h1>\n{_attempt(self.summary)}{self.error}",
            f'<nav aria-label="Sections of this page"><ul>{links}</ul></nav>\n</header>', *body]))

    def summary(self) -> str:
        """The most important numbers of the run."""
        total = self.resolved.get("steps")
        speeds = [record["images_per_sec"] for record in self.records if is_number(record.get("images_per_sec"))]
        facts = {"preset": page.short(self.config.get("preset", "unknown")),
                 "steps done": f"{self.done:,.0f}" + (f" of {total:,.0f}" if is_number(total) else ""),
                 "images per second": page.number(median(speeds)) if speeds else "unknown",
                 "device": page.short(self.resolved.get("device", "unknown")),
                 "precision": page.short(self.resolved.get("precision", "unknown"))}
        cards = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in facts.items())
        state = ""
        if is_number(total) and self.done < total:
            state = {True: "; the run is training", False: "; the run was stopped before its end",
                     None: "; the run is training or was stopped"}[lock.is_locked(self.folder)]
        return (f'<dl class="key">{cards}</dl>\n'
                f'<p class="soft">As of {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC{state}.</p>')

    def alerts(self) -> str:
        lines = [f"step {record['step']:,}: {words}" for record in self.records
                 for words in record.get("alerts", {}).values()]
        lines += [f"step {int(path.stem[9:])} was not finite; state and batch are in {path.name}"
                  for path in sorted(self.folder.glob("nonfinite*.pt")) if path.stem[9:].isdecimal()]
        return "\n".join(f'<p class="alert">{page.short(line)}</p>' for line in lines) or "<p>None in the log.</p>"

    def samples(self) -> str:
        """Pictures of fakes over time beside real images. With JavaScript, a slider selects one of them."""
        paths = files.fakes(self.folder)
        shown, errors = _pictures(_evenly(paths, MAX_PICTURES))
        if len(paths) > MAX_PICTURES:
            errors.append(f"{MAX_PICTURES} of {len(paths)} pictures are shown, evenly spaced.")
        what = self._contents()
        figures = [page.picture(f"{what} {_when(one.step)}", f"{what} {_when(one.step)}", one.png, one.size,
                                f'data-step="{one.step:,}"') for one in shown]
        last = len(shown) - 1
        slider = (f'<p class="slider" hidden><label for="step">Step</label><input type="range" id="step" min="0" '
                  f'max="{last}" value="{last}"><output for="step" aria-live="polite"></output></p>')
        reals, missing = _pictures([(0, self.folder / "reals.png")])
        figures += [page.picture("Real data, for comparison", "Real data", one.png, one.size) for one in reals]
        kind = ' class="slides"' if shown else ""
        return (f'<div{kind}>{slider if shown else ""}<div class="pair">{"".join(figures)}</div></div>'
                + "".join(map(page.missing, errors + missing + ["No pictures of fakes yet."] * (not paths))))

    def _contents(self) -> str:
        if self.resolved.get("shape") == [2]:
            return "Generated points beside real ones"
        if self.config.get("pictures") == "side-by-side":
            return "Generated images beside real ones"
        return "Images from the same latents"

    def interpolation(self) -> str:
        import torch

        from fastgan.data import to_uint8
        from fastgan.models.pretrained import Pretrained

        source = Pretrained.load(self.folder)
        if len(source.shape) == 1:
            return "<p>This generator outputs points, not images.</p>"
        z = source.noise.walk(WALK_SEEDS, WALK_FRAMES)
        labels = torch.zeros(len(z), dtype=torch.long) if source.classes else None
        grid = pictures.grid(to_uint8(source.draw(z, labels), source.unit_range), WALK_FRAMES)
        grid.thumbnail((WALK_SIDE, WALK_SIDE))
        stream = io.BytesIO()
        grid.save(stream, "PNG")
        rows = ", ".join(f"{a} to {b}" for a, b in itertools.pairwise(WALK_SEEDS))
        name = f", class {source.classes[0]}" if source.classes else ""
        alt = f"{len(WALK_SEEDS) - 1} rows of {WALK_FRAMES} images; each row interpolates between two latents"
        caption = f"Interpolation between seeds in {WALK_FRAMES} images per row: {rows}{name}"
        return page.picture(alt, caption, stream.getvalue(), grid.size)

    def curves(self) -> str:
        figures = "".join(curves.draw(self.records))
        if not figures:
            raise FastganError("The log has no curves yet." if (self.folder / LOG).exists() else f"There is no {LOG}")
        return ('<p class="soft">Thin lines are the recorded values, thick lines their running median.</p>\n'
                f'<div class="charts">{figures}</div>')

    def metrics(self) -> str:
        """The best checkpoint, and the results of `fastgan evaluate`, or otherwise the last values in the log."""
        return self._best() + self._latest()

    def _best(self) -> str:
        record = best(self.records)
        if record is None or not (self.folder / "checkpoints" / "best.pt").exists():
            return ""
        name, value = merit(record) or ("", 0.0)
        what = "confidence times diversity" if name == "score_confidence" else name
        return (f"<p>Best snapshot, with {what} {page.number(abs(value))}: step {record['step']:,}, stored in "
                "checkpoints/best.pt and the folder best.</p>")

    def _latest(self) -> str:
        last = next((record for record in reversed(self.records) if record.keys() & MEANINGS.keys()), None)
        if not (self.folder / METRICS).exists() and last is not None:
            rows = [(page.short(name), _value(last[name])) for name in MEANINGS if name in last]
            return (f"<p>There is no {METRICS}. Metrics in the log, at step {last['step']:,}:</p>"
                    + page.table("Metrics", ["metric", "fakes"], rows))
        content = files.json_object(self.folder / METRICS, f"There is no {METRICS}: the run was not evaluated.")
        return "\n".join(map(self._measured, content.get("measured", [content])))  # older files contain a single result

    def _measured(self, result: dict[str, Any]) -> str:
        fakes, reals = (value if isinstance(value, dict) else {} for value in map(result.get, ("fakes", "reals")))
        rows = [(page.short(name), _value(fakes.get(name)), _value(reals.get(name)))
                for name in dict.fromkeys([*fakes, *reals])]
        if not rows:
            raise FastganError(f"{METRICS} cannot be read: it contains no metrics")
        step = result.get("step")
        when = f", after step {step:,}, {result.get('date')}" if is_number(step) else ", after an unknown step"
        old = page.missing(f"The run has been trained to step {self.done:,} since then.")
        against = page.short(f"{result.get('data', 'unknown data')}{when}")
        return (f"<p>{_value(result.get('images'))} fakes against {against}</p>"
                + (old if is_number(step) and step < self.done else "")
                + page.table("Metrics", ["metric", "fakes", "reals"], rows))

    def facts(self) -> str:
        """The facts that were stored when the run began, without empty values."""
        if not self.resolved:
            return page.missing("Unknown.")
        return _facts("Facts", {key: value for key, value in self.resolved.items() if value not in ("", [])})

    def options(self) -> str:
        if not self.config:
            return page.missing("Unknown.")
        try:
            usual = presets.get(str(self.config.get("preset"))).flat()
        except FastganError:
            usual = {}
        changed = [(page.short(key), page.short(value), page.short(usual[key])) for key, value in self.config.items()
                   if key in usual and usual[key] != value]
        differ = page.table("Options that differ from the preset", ["option", "value", "preset"], changed, "words")
        return ((differ if changed else "<p>All options have the values of the preset.</p>")
                + page.folded(f"All {len(self.config)} options", _facts("Options", self.config)))


def _attempt(section: Callable[[], str]) -> str:
    """A section, or the reason why it cannot be shown."""
    try:
        return section()
    except FastganError as error:
        return page.missing(str(error))
    except Exception as error:  # files of other programs raise many types
        return page.missing(f"This section cannot be shown: {type(error).__name__}: {first_line(error)}")


def _evenly(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, including the first and the last."""
    return items if len(items) <= count else [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _pictures(paths: list[tuple[int, Path]]) -> tuple[list[files.Picture], list[str]]:
    """The pictures that can be shown, and the errors of the others."""
    shown, errors = [], []
    for step, path in paths:
        try:
            shown.append(files.picture(path, step))
        except FastganError as error:
            errors.append(str(error))
    return shown, errors


def _when(step: int) -> str:
    return f"after step {step:,}" if step else "before the first step"


def _facts(about: str, values: dict[str, Any]) -> str:
    rows = ((page.short(key), page.short(_flat(value))) for key, value in values.items())
    return page.table(about, ["name", "value"], rows, "words")


def _flat(value: object) -> object:
    """A list or object as text without brackets; other values unchanged."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else value


def _value(value: object) -> str:
    return page.number(value) if is_number(value) else page.short("" if value is None else value)
