"""Results as plots: bars by implementation, scaling with the batch, the ablation as a waterfall."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import OURS, Group, groups, number
from benchmarks.results import Row

PYTORCH_COLOUR, OUR_COLOUR, SLOWER_COLOUR = "#7f8fa6", "#d9822b", "#b03a2e"
WIDTH, LINE = 9.5, 0.36  # inches of a figure, and of a bar with its space
DPI = 130


def all_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, bytes]]:
    """(file name, caption, PNG) of every plot of these rows."""
    for device, of_device in groupby(groups(rows), lambda group: group.device):
        own = list(of_device)
        prefix = f"{_slug(device)}-" if len({row.device for row in rows}) > 1 else ""
        for name, caption, figure in _of_device(own):
            figure.suptitle(caption, fontsize=10.5, x=0.01, ha="left")
            yield f"{prefix}{name}.png", f"{caption} ({device})", _png(figure)


def _of_device(own: list[Group]) -> Iterator[tuple[str, str, Figure]]:
    for group in own:
        if len(group.timed) > 1:
            caption = f"{group.workload}, batch {group.batch}: median time, 20th to 80th percentile"
            yield f"bars-{_slug(group.workload)}-{group.batch}", caption, bars(group)
        if len(group.timed) > 1 and group.suite == "ablation":
            caption = f"{group.what}, batch {group.batch}: contribution of each change"
            yield f"ablation-{_slug(group.what)}-{group.batch}", caption, waterfall(group)
    for workload, of_workload in groupby(own, lambda group: group.workload):
        sizes = list(of_workload)
        if len(sizes) > 1:
            yield f"scaling-{_slug(workload)}", f"{workload}: images per second by batch", scaling(sizes)


def bars(group: Group) -> Figure:
    """Milliseconds of each implementation."""
    rows = group.timed
    figure, axes = _figure(1.1 + LINE * len(rows))
    ms = [row.p50 or 0.0 for row in rows]
    errors = [[now - (row.p20 or now) for now, row in zip(ms, rows, strict=True)],
              [(row.p80 or now) - now for now, row in zip(ms, rows, strict=True)]]
    colours = [OUR_COLOUR if row.implementation.startswith(OURS) else PYTORCH_COLOUR for row in rows]
    axes.barh(range(len(rows)), ms, 0.68, xerr=errors, color=colours, error_kw={"elinewidth": 1.1, "capsize": 2.5})
    end = max(row.p80 or 0.0 for row in rows)
    for i, row in enumerate(rows):
        speed = f"   {row.images_per_s:,.0f} img/s" if row.images_per_s else ""
        axes.text(max(row.p80 or 0.0, ms[i]) + 0.012 * end, i, f"{number(ms[i])} ms{speed}", va="center", fontsize=9)
    axes.set_xlim(0, 1.34 * end)
    several = len({row.precision for row in rows}) > 1
    _names(axes, [f"{row.implementation} ({row.precision})" if several else row.implementation for row in rows])
    axes.set_xlabel("milliseconds")
    return figure


def scaling(groups: Sequence[Group]) -> Figure:
    """Images per second of each implementation that was timed at two batch sizes or more."""
    figure, axes = _figure(5.2)
    names = dict.fromkeys(row.implementation for group in groups for row in group.timed)
    lines = {name: [(row.batch, row.images_per_s) for group in groups for row in group.timed
                    if row.implementation == name and row.images_per_s] for name in names}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    for i, (name, points) in enumerate(lines.items()):
        ours = name.startswith(OURS)
        colours = (OUR_COLOUR, "#8e5a1e", "#e8b04a", "#6d3b00") if ours else (
            PYTORCH_COLOUR, "#34495e", "#5dade2", "#16a085", "#a569bd")
        axes.plot(*zip(*points, strict=True), marker="osD^vXP*"[i % 8], linestyle="-" if ours else "--",
                  color=colours[i % len(colours)], label=name)
    sizes = sorted({group.batch for group in groups})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_xlabel("images per step")
    axes.set_ylabel("images per second")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=8.5, frameon=False, ncols=2)
    return figure


def waterfall(group: Group) -> Figure:
    """The time that each change saves in a step, or adds to it."""
    rows = group.timed
    figure, axes = _figure(1.1 + LINE * len(rows))
    ms = [row.p50 or 0.0 for row in rows]
    for i, now in enumerate(ms):
        before = ms[i - 1] if i else 0.0
        colour = PYTORCH_COLOUR if not i else OUR_COLOUR if now <= before else SLOWER_COLOUR
        axes.barh(i, abs(before - now), 0.68, left=min(before, now), color=colour)
        text = f"{number(now)} ms" + (f"   x {before / now:.2f}, in all {ms[0] / now:.2f}" if i else "")
        axes.text(max(before, now) + 0.012 * max(ms), i, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.34 * max(ms))
    _names(axes, [row.implementation for row in rows])
    axes.set_xlabel("milliseconds of a step")
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
