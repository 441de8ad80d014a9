"""A run folder as one page, report.html: pictures over time, curves, plan, certificate, options; while it trains, too.

A part that is missing or damaged is said to be, and costs nothing but itself.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from fastgan import pictures, presets
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, replacing
from fastgan.report import curves, found, page
from fastgan.trainer import lock, plan_setup
from fastgan.trainer.run_files import OPTIONS

NAME = "report.html"
LOG, CERTIFICATE, METRICS = "stats.jsonl", "certificate.json", "metrics.json"
WALK_SEEDS, WALK_FRAMES, WALK_SIDE = (0, 1, 2, 3), 8, 1056  # the side in pixels, at most


def is_run(folder: StrPath) -> bool:
    """Does any of what a run writes lie there?"""
    folder = Path(folder)
    return (folder / OPTIONS).exists() or (folder / LOG).exists() or bool(found.fakes(folder))


def write(folder: StrPath, out: StrPath | None = None) -> Path:
    """The page of the run in `folder`, to `out` or report.html there. Raises `FastganError` where none lies there, or
    where the page cannot be written."""
    if not is_run(folder):
        raise FastganError(f"{folder} is no run folder: expected {OPTIONS}, {LOG} or pictures of fakes in it")
    out, folder = Path(out or Path(folder, NAME)), Path(folder)
    with replacing(out) as stream:
        stream.write(_Report(folder).page().encode(errors="backslashreplace"))
    return out


class _Report:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.charts: list[dict[str, Any]] = []  # what the script draws
        self.untold: list[str] = []  # trouble that has no section of its own
        try:
            options = found.json_of(folder / OPTIONS, f"There is no {OPTIONS}")
        except FastganError as error:
            self.untold.append(str(error))
            options = {}
        self.config, self.resolved = (part if isinstance(part, dict) else {}
                                      for part in map(options.get, ("config", "resolved")))

    def page(self) -> str:
        name = self.folder.resolve().name
        sections: dict[str, Callable[[], str]] = {
            "Alerts": self.alerts, "Samples": self.samples, "Interpolation": self.interpolation, "Curves": self.curves,
            "Metrics": self.metrics, "Plan": self.plan, "Certificate": self.certificate, "Facts": self.facts,
            "Options": self.options}
        links = "".join(f'<li><a href="#{title.lower()}">{title}</a></li>' for title in sections)
        parts = [f'<section id="{title.lower()}">\n<h2>{title}</h2>\n{_attempt(part)}\n</section>'
                 for title, part in sections.items()]
        return page.shell(f"{name}: fastgan", "\n".join([
            f'<header>\n<h1>{page.short(name)}</h1>\n{_attempt(self.summary)}',
            *(f'<p class="missing">{page.short(words)}</p>' for words in self.untold),
            f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>\n</header>', *parts]), self.charts)

    @cached_property
    def _log(self) -> tuple[list[dict[str, Any]], int]:
        return found.records(self.folder / LOG)

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        """Of the log, none where it cannot be read."""
        try:
            return self._log[0]
        except FastganError:
            return []

    def summary(self) -> str:
        """The run in a few numbers, as far as they are known."""
        records = self._records
        done, total = records[-1]["step"] if records else 0, self.resolved.get("steps")
        speeds = [record["images_per_sec"] for record in records if found.is_number(record.get("images_per_sec"))]
        key = {"preset": page.short(self.config.get("preset", "unknown")),
               "steps done": f"{done:,.0f}" + (f" of {total:,.0f}" if found.is_number(total) else ""),
               "images per second": page.number(median(speeds)) if speeds else "unknown",
               "device": page.short(self.resolved.get("device", "unknown")),
               "precision": page.short(self.resolved.get("precision", "unknown"))}
        cards = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in key.items())
        state = ""
        if found.is_number(total) and done < total:
            state = {True: "; the run goes on", False: "; the run was stopped before its end",
                     None: "; the run goes on, or was stopped"}[lock.held(self.folder)]
        return (f'<dl class="key">{cards}</dl>\n'
                f'<p class="soft">As of {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC{state}.</p>')

    def alerts(self) -> str:
        told = [(record["step"], words) for record in self._log[0] if isinstance(record.get("alerts"), dict)
                for words in record["alerts"].values()]
        broken = [f"step {int(path.stem[9:])} was not finite; state and batch are in {path.name}"
                  for path in sorted(self.folder.glob("nonfinite*.pt")) if path.stem[9:].isdecimal()]
        lines = [f"step {step:,}: {words}" for step, words in told] + broken
        return "\n".join(f'<p class="alert">{page.short(line)}</p>' for line in lines) or "<p>None in the log.</p>"

    def samples(self) -> str:
        """Fakes over time, one at a time where the script runs, beside the reals."""
        there = found.fakes(self.folder)
        good, bad = _pictures(found.evenly(there, found.MOST_PICTURES))
        if len(there) > found.MOST_PICTURES:
            bad.append(f"{len(there)} pictures lie there; {found.MOST_PICTURES} of them, evenly chosen, are shown.")
        what = self._what_a_picture_shows()
        figures = [page.picture(f"{what} {_when(one.step)}", f"{what} {_when(one.step)}", one.png, one.size,
                                f'data-said="step {one.step:,}"') for one in good]
        slider = (f'<p class="slider" hidden><label for="step">Step</label><input type="range" id="step" min="0" '
                  f'max="{len(good) - 1}" value="{len(good) - 1}"><output for="step" aria-live="polite"></output></p>')
        reals, without = _pictures([(0, self.folder / "reals.png")])
        figures += [page.picture("Real data, for comparison", "Real data", one.png, one.size) for one in reals]
        kind = ' class="slides"' if good else ""  # what the script puts under the slider
        return (f'<div{kind}>{slider if good else ""}<div class="pair">{"".join(figures)}</div></div>'
                + "".join(f'<p class="missing">{page.text(words)}</p>'
                          for words in bad + without + ["No pictures of fakes yet."] * (not there)))

    def _what_a_picture_shows(self) -> str:
        if self.resolved.get("shape") == [2]:
            return "Generated points beside real ones"
        if self.config.get("pictures") == "side-by-side":
            return "Generated images beside real ones"
        count = self.config.get("grid")
        return f"{count} images from the same latents" if found.is_number(count) else "Images from the same latents"

    def interpolation(self) -> str:
        import torch

        from fastgan.data import to_uint8
        from fastgan.models.pretrained import Pretrained

        source = Pretrained.load(self.folder)
        if len(source.shape) == 1:
            return "<p>This generator makes points, between which there is nothing to see.</p>"
        z = source.noise.walk(WALK_SEEDS, WALK_FRAMES)
        labels = torch.zeros(len(z), dtype=torch.long) if source.classes else None
        strip = pictures.grid(to_uint8(source.draw(z, labels), source.unit_range), WALK_FRAMES)
        strip.thumbnail((WALK_SIDE, WALK_SIDE))
        stream = io.BytesIO()
        strip.save(stream, "PNG")
        rows = ", ".join(f"{a} to {b}" for a, b in itertools.pairwise(WALK_SEEDS))
        name = f", class {source.classes[0]}" if source.classes else ""
        alt = f"{len(WALK_SEEDS) - 1} rows of {WALK_FRAMES} images; each row goes from one latent to the next"
        caption = f"From seed to seed in {WALK_FRAMES} images, a row each: {rows}{name}"
        return page.picture(alt, caption, stream.getvalue(), strip.size)

    def curves(self) -> str:
        records, bad = self._log
        drawn = list(curves.drawn(records))
        self.charts += [data for _, data in drawn]
        note = f'<p class="missing">{bad} lines of {LOG} cannot be read and are left out.</p>' if bad else ""
        if not drawn:
            return f"{note}<p>The log has no curves yet.</p>"
        return (f'{note}<p class="soft">Thin lines are the records, thick ones their running median. A pointer over a '
                f"plot, or the arrow keys within it, choose a step, whose values stand below it.</p>\n"
                f'<div class="charts">{"".join(figure for figure, _ in drawn)}</div>')

    def metrics(self) -> str:
        """What `fastgan evaluate` found, or else the last numbers in the log."""
        if not (self.folder / METRICS).exists() and (logged := self._logged_metrics()):
            return logged
        told = found.json_of(self.folder / METRICS, f"There is no {METRICS}: the run was not evaluated.")
        measured = told.get("measured", [told])  # one measurement, as it was written before there were several
        return "\n".join(map(self._measured, measured))

    def _logged_metrics(self) -> str:
        from fastgan.trainer.evaluate import MEANINGS

        last = next((record for record in reversed(self._records) if record.keys() & MEANINGS.keys()), None)
        if last is None:
            return ""
        rows = [(page.short(name), _value(last[name])) for name in MEANINGS if name in last]
        return (f"<p>There is no {METRICS}; the log has, of step {last['step']:,}:</p>"
                + page.table("Metrics", ["metric", "fakes"], rows))

    def _measured(self, told: dict[str, Any]) -> str:
        fakes, reals = (part if isinstance(part, dict) else {} for part in map(told.get, ("fakes", "reals")))
        rows = [(page.short(name), _value(fakes.get(name)), _value(reals.get(name)))
                for name in dict.fromkeys([*fakes, *reals])]
        if not rows:
            raise FastganError(f"{METRICS} cannot be read: no metrics are in it")
        step, done = told.get("step"), self._records[-1]["step"] if self._records else 0
        when = f", after step {step:,}, {told.get('date')}" if found.is_number(step) else ", after an unknown step"
        old = f'<p class="missing">Not of the run as it is: it has gone on to step {done:,}.</p>'
        against = page.short(f"{told.get('data', 'unknown data')}{when}")
        return (f"<p>{_value(told.get('images'))} fakes against {against}</p>"
                + (old if found.is_number(step) and step < done else "")
                + page.table("Metrics", ["metric", "fakes", "reals"], rows))

    def plan(self) -> str:
        """The engine of each pass, the time of each candidate, and the time of a whole step under each engine."""
        missing = f"There is no {plan_setup.FILE}; engine: {self.resolved.get('engine', 'unknown')}"
        told = found.json_of(self.folder / plan_setup.FILE, missing)
        problems, engine = told["problems"], told["engine"]
        counts = Counter(str(row["choice"]) for row in problems)
        step = sorted(told["step"].items(), key=lambda item: item[1])
        worth = "; ms of a step: " + ", ".join(f"{name} {1e3 * took:.1f}" for name, took in step) if step else ""
        verdict = ", ".join(f"{name} {count}" for name, count in counts.most_common()) + f" of {len(problems)} passes"
        chosen = verdict if engine == "plan" else f"{engine}, which is faster as a whole than: {verdict}"
        table = page.table("Plan", ["pass", "engine", "ms", "ms of eager PyTorch"], map(_pass, problems))
        return (f"<p>{page.short(f'{chosen}{worth}')}</p>" + page.folded(f"All {len(problems)} passes", table)
                + page.folded("Where it was made", _facts("Machine of the plan", told.get("machine", {}))))

    def certificate(self) -> str:
        from fastgan.verify.table import verdict

        preset = self.config.get("preset", "NAME")
        told = found.json_of(self.folder / CERTIFICATE,
                             f"There is no {CERTIFICATE}; it is made by: fastgan verify --preset {preset} --out "
                             f"{self.folder / CERTIFICATE}")
        rows = [*told["steps"], *told["operations"]]
        table = page.table("Certificate", ["what", "engine", "precision", "worst quantity", "ours", "eager", "allowed",
                                           "verdict"], map(_check, rows), "words")
        mark = "good" if told["passed"] is True else "bad"
        machine = told["machine"].get("device", "unknown")
        return (f'<p class="{mark}">{page.short(verdict(told))}</p><p>{page.short(told["preset"])}, batch '
                f"{page.short(told['batch'])}, on {page.short(machine)}: distances from float64, relative</p>"
                + page.folded(f"All {len(rows)} checks", table))

    def facts(self) -> str:
        """What was found out when the run began, without what is empty; the plan has a section of its own."""
        if not self.resolved:
            return '<p class="missing">Not known.</p>'
        return _facts("Facts", {key: value for key, value in self.resolved.items() if key != "plan" and value != []})

    def options(self) -> str:
        if not self.config:
            return '<p class="missing">Not known.</p>'
        try:
            usual = presets.get(str(self.config.get("preset"))).flat()
        except FastganError:
            usual = {}
        changed = [(page.short(key), page.short(value), page.short(usual[key])) for key, value in self.config.items()
                   if key in usual and usual[key] != value]
        differ = page.table("Options unlike the preset's", ["option", "value", "the preset's"], changed, "words")
        return ((differ if changed else "<p>None that differs from the preset's.</p>")
                + page.folded(f"All {len(self.config)} options", _facts("Options", self.config)))


def _attempt(part: Callable[[], str]) -> str:
    """A part of the page, or why there is none."""
    try:
        return part()
    except FastganError as error:
        reason = str(error)
    except Exception as error:  # what others have written into the folder fails in many ways
        reason = f"This part cannot be shown: {type(error).__name__}: {first_line(error)}"
    return f'<p class="missing">{page.short(reason)}</p>'


def _pictures(paths: list[tuple[int, Path]]) -> tuple[list[found.Picture], list[str]]:
    """Those that are whole, and words on the others."""
    good, bad = [], []
    for step, path in paths:
        try:
            good.append(found.picture(path, step))
        except FastganError as error:
            bad.append(str(error))
    return good, bad


def _when(step: int) -> str:
    return f"after step {step:,}" if step else "before the first step"


def _facts(about: str, told: dict[str, Any]) -> str:
    rows = ((page.short(key), page.short(_words(value))) for key, value in told.items())
    return page.table(about, ["name", "value"], rows, "words")


def _words(value: object) -> object:
    """What is in lists and objects, without their brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else value


def _value(value: object) -> str:
    return page.number(value) if found.is_number(value) else page.short("" if value is None else value)


def _pass(row: dict[str, Any]) -> Iterator[str]:
    from fastgan.ops.tuning import Problem

    yield page.short(" ".join(Problem.from_json(row["problem"]).words().split()))
    yield page.short(row["choice"])
    for name in (row["choice"], "reference"):
        seconds = row["trials"].get(name, {}).get("seconds")
        yield f"{1e3 * seconds:.3f}" if found.is_number(seconds) else ""


def _check(row: dict[str, Any]) -> Iterator[str]:
    quantities = row["quantities"]
    one = quantities.get(row["worst"]) or {}
    yield from (page.short(row[key]) for key in ("what", "engine", "precision"))
    yield page.short(row["error"] or row["worst"])
    yield from (f"{one[key]:.1e}" if found.is_number(one.get(key)) else "" for key in ("ours", "eager", "allowed"))
    yield '<span class="good">pass</span>' if row["passed"] is True else '<span class="bad">FAIL</span>'
