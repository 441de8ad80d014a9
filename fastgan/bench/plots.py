"""Results as pictures: bars by contender, scaling with the batch, the ablation as a waterfall, the roofline."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastgan.bench.ablation import Ablation
from fastgan.bench.results import Row
from fastgan.bench.table import OURS, Group, ablations, groups

THEIRS_COLOUR, OUR_COLOUR, LOSS_COLOUR = "#7f8fa6", "#d9822b", "#b03a2e"
MARKERS = {"dgrad": "s", "wgrad": "^"}  # of passes; "o" of the forward ones
WIDTH, LINE = 9.5, 0.36  # inches: of a picture, of a bar with its space
DPI = 130


def all_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, bytes]]:
    """(file name, caption, PNG) of every picture that these rows give."""
    found = groups(rows)
    several = len({group.device for group in found}) > 1
    for device, part in groupby(found, lambda group: group.device):
        own, before = list(part), f"{_slug(device)}-" if several else ""
        for suite in dict.fromkeys(group.suite for group in own):
            for name, caption, figure in _of_suite(suite, [group for group in own if group.suite == suite]):
                yield f"{before}{name}.png", f"{caption} ({device})", _png(figure)


def _of_suite(suite: str, own: list[Group]) -> Iterator[tuple[str, str, Figure]]:
    if suite == "operations":
        yield from _rooflines(own)
        return
    if suite == "stages":  # a table says more than fifty bars
        return
    for group in own:
        if len(group.timed) > 1 and not group.what.endswith("/total"):
            caption = f"{group.workload}, batch {group.batch}: median time, 20th to 80th percentile"
            yield f"bars-{_slug(group.workload)}-{group.batch}", caption, _titled(bars(group), caption)
    for what, part in groupby(own, lambda group: group.what):
        sizes = list(part)
        if len(sizes) > 1:
            caption = f"{suite}/{what}: images per second by batch"
            yield f"scaling-{suite}-{_slug(what)}", caption, _titled(scaling(sizes), caption)
    for group, made in ablations(own):
        if len(made.links) < 2:
            continue
        caption = f"{group.what}, batch {group.batch}: what each change earns"
        yield (f"ablation-{_slug(group.what)}-{group.batch}", f"{caption}; it {made.verdict}",
               _titled(waterfall(made), caption))


def bars(group: Group) -> Figure:
    """Milliseconds of each contender, the published order kept."""
    rows = group.timed
    figure, axes = _figure(1.1 + LINE * len(rows))
    ms = [row.p50 or 0.0 for row in rows]
    spread = [[now - (row.p20 or now) for now, row in zip(ms, rows, strict=True)],
              [(row.p80 or now) - now for now, row in zip(ms, rows, strict=True)]]
    colours = [OUR_COLOUR if row.contender.startswith(OURS) else THEIRS_COLOUR for row in rows]
    axes.barh(range(len(rows)), ms, 0.68, xerr=spread, color=colours, error_kw={"elinewidth": 1.1, "capsize": 2.5})
    end = max(row.p80 or 0.0 for row in rows)
    for i, row in enumerate(rows):
        speed = f"   {row.images_per_s:,.0f} img/s" if row.images_per_s else ""
        axes.text(max(row.p80 or 0.0, ms[i]) + 0.012 * end, i, f"{_ms(ms[i])} ms{speed}", va="center", fontsize=9)
    axes.set_xlim(0, 1.34 * end)
    _names(axes, [_label(row, group) for row in rows])
    axes.set_xlabel("milliseconds")
    return figure


def scaling(groups: Sequence[Group]) -> Figure:
    """Images per second of each contender that was timed at two batch sizes or more."""
    figure, axes = _figure(5.2)
    names = dict.fromkeys(row.contender for group in groups for row in group.timed)
    lines = {name: [(row.batch, row.images_per_s) for group in groups for row in group.timed
                    if row.contender == name and row.images_per_s] for name in names}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    marks = {True: 0, False: 0}
    for name, points in lines.items():
        our = name.startswith(OURS)
        axes.plot(*zip(*points, strict=True), marker="osD^vXP*"[marks[our] % 8], linestyle="-" if our else "--",
                  color=(OUR_COLOUR, "#8e5a1e", "#e8b04a", "#6d3b00")[marks[our] % 4] if our else
                  (THEIRS_COLOUR, "#34495e", "#5dade2", "#16a085", "#a569bd")[marks[our] % 5], label=name)
        marks[our] += 1
    sizes = sorted({group.batch for group in groups})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * max((speed or 0.0 for points in lines.values() for _, speed in points), default=1.0))
    axes.set_xlabel("images per step")
    axes.set_ylabel("images per second")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=8.5, frameon=False, ncols=2)
    return figure


def waterfall(made: Ablation) -> Figure:
    """What each change takes off the time of a step, or adds to it."""
    links = made.links
    figure, axes = _figure(1.5 + LINE * (len(links) + 1))
    end = max(link.ms for link in links)
    before = links[0].ms
    for i, link in enumerate(links):
        left, width = (0.0, link.ms) if i == 0 else (min(before, link.ms), abs(before - link.ms))
        colour = THEIRS_COLOUR if i == 0 else OUR_COLOUR if link.ms <= before else LOSS_COLOUR
        axes.barh(i, width, 0.68, left=left, color=colour)
        words = f"{_ms(link.ms)} ms" if i == 0 else f"{_ms(link.ms)} ms   x {link.gain:.2f}"
        axes.text(max(before, link.ms) + 0.012 * end, i, words, va="center", fontsize=9)
        if i + 1 < len(links):
            axes.plot([link.ms, link.ms], [i + 0.34, i + 0.66], color="#555555", linewidth=0.9)
        before = link.ms
    axes.barh(len(links), links[-1].ms, 0.68, color=OUR_COLOUR)
    axes.text(links[-1].ms + 0.012 * end, len(links), f"{_ms(links[-1].ms)} ms   x {made.product:.2f}", va="center",
              fontsize=9, weight="bold")
    axes.set_xlim(0, 1.25 * end)
    _names(axes, [*(link.name for link in links), "all of it"])
    whole = "not measured by themselves" if made.total is None else f"by themselves x {made.total:.2f}"
    verdict = "" if made.closes else ": DOES NOT CLOSE"
    axes.set_xlabel(f"milliseconds of a step; textbook and last link {whole}{verdict}",
                    color="black" if made.closes else LOSS_COLOUR)
    return figure


def roofline(found: Sequence[Group]) -> Figure:
    """TFLOP/s of single passes by operations per byte: the fastest of ours, above or below eager PyTorch."""
    figure, axes = _figure(5.6)
    shown = set()
    for group in found:
        points = [row for row in group.timed if row.tflop_per_s and row.gb_per_s]
        ours, theirs = ([row for row in points if row.contender.startswith(OURS) == our] for our in (True, False))
        kind = group.what.partition("/")[2].split(" ")[0]
        pair = [min(rows, key=lambda row: row.p50 or math.inf) for rows in (theirs, ours) if rows]
        at = [(1e3 * (row.tflop_per_s or 0) / (row.gb_per_s or 1), row.tflop_per_s or 0) for row in pair]
        axes.plot(*zip(*at, strict=True), color="#bbbbbb", linewidth=0.9, zorder=1)
        for row, (x, y) in zip(pair, at, strict=True):
            our = row.contender.startswith(OURS)
            label = f"{kind}, {'fastgan' if our else 'eager PyTorch'}"
            axes.scatter(x, y, s=42, marker=MARKERS.get(kind, "o"), zorder=2, edgecolor="white", linewidth=0.6,
                         color=OUR_COLOUR if our else THEIRS_COLOUR, label=None if label in shown else label)
            shown.add(label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for limits, widen in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = limits()
        middle = math.sqrt(low * high)
        widen(min(low, middle / 3), max(high, middle * 3))  # a decade at least: one pass alone is not stretched
    _bandwidths(axes, found)
    axes.set_xlabel("operations per byte (the fewest bytes: each tensor read or written once)")
    axes.set_ylabel("TFLOP/s")
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), fontsize=8.5, frameon=False, ncols=3)
    return figure


def _rooflines(own: list[Group]) -> Iterator[tuple[str, str, Figure]]:
    def key(group: Group) -> tuple[str, int]:
        return group.what.partition("/")[0], group.batch

    for (what, batch), part in groupby(own, key):
        known = [group for group in part if any(row.tflop_per_s and row.gb_per_s for row in group.timed)]
        if known:
            caption = "single passes; dashed, the highest rates that were measured here, which are no limits"
            yield (f"roofline-{_slug(what)}-{batch}", f"{what}, batch {batch}: {caption}",
                   _titled(roofline(known), f"{what}, batch {batch}: single passes"))


def _bandwidths(axes: Axes, found: Sequence[Group]) -> None:
    """The roof as far as it was touched: the highest TFLOP/s and the highest GB/s of any pass."""
    rows = [row for group in found for row in group.timed]
    flops, moved = (max(getattr(row, name) or 0.0 for row in rows) for name in ("tflop_per_s", "gb_per_s"))
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    ridge = 1e3 * flops / moved
    axes.plot([left, min(ridge, right)], [left * moved / 1e3, min(ridge, right) * moved / 1e3], "--", color="#888888",
              linewidth=1)
    axes.plot([max(left, min(ridge, right)), right], [flops, flops], "--", color="#888888", linewidth=1)
    axes.text(0.01, 0.98, f"highest measured: {flops:.3g} TFLOP/s, {moved:.3g} GB/s", transform=axes.transAxes,
              va="top", fontsize=8.5, color="#555555")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, 1.6 * max(top, flops))


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _titled(figure: Figure, words: str) -> Figure:
    figure.suptitle(words, fontsize=10.5, x=0.01, ha="left")
    return figure


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _label(row: Row, group: Group) -> str:
    """With the precision where contenders differ in it."""
    words = row.contender if len(row.contender) <= 58 else row.contender[:57] + "…"
    return f"{words} ({row.precision})" if len({one.precision for one in group.timed}) > 1 else words


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
