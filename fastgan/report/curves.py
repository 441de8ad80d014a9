"""Plots of the curves in a log."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

from fastgan import pictures
from fastgan.report import page


class Chart(NamedTuple):
    """keys: the keys of the records, and the labels of their curves. log: whether to use a logarithmic scale if the
    values span a large range."""

    title: str
    about: str
    keys: dict[str, str]
    log: bool = False


CHARTS = (
    Chart("Losses", "Of discriminator and generator, as defined by --loss",
          {"loss_d": "discriminator", "loss_g": "generator"}),
    Chart("Discriminator output", "Mean for real and for generated images; equal values mean that the discriminator "
          "cannot distinguish them. Probabilities, except for wgan-gp and least-squares",
          {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"}),
    Chart("Gradient norms", "Norm of all gradients of a network",
          {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}, log=True),
    Chart("Diversity", "Distance between the fakes in a batch (in a class, for conditional runs), relative to that "
          "between real images", {"diversity": "fakes"}),
    Chart("Throughput", "Training images per second", {"images_per_sec": "images per second"}),
    Chart("FID", "Fréchet distance between the distributions of fakes and real images; lower is better",
          {"fid": "FID"}),
    Chart("KID", "Squared MMD between the two distributions, unbiased; lower is better", {"kid": "KID"}),
    Chart("Inception Score", "Quality and diversity of fakes; higher is better", {"is": "IS"}),
    Chart("Score by a classifier", "Trained on the labeled real images; 1 is the value of real images",
          {"score_confidence": "confidence", "score_diversity": "diversity", "score_novelty": "novelty"}),
    Chart("Classes covered", "Number of classes among the fakes, according to that classifier",
          {"score_classes": "classes"}),
)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that can be plotted."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def draw(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """An HTML figure for each chart that has data in the records."""
    for chart in CHARTS:
        curves = {label: [(record["step"], record[key]) for record in records if is_number(record.get(key))]
                  for key, label in chart.keys.items()}
        curves = {label: points for label, points in curves.items() if points}
        if not curves:
            continue
        figure = pictures.new_figure(figsize=(6.4, 3))
        axes = figure.add_subplot(xlabel="step", yscale="log" if chart.log and _spans_decades(curves) else "linear")
        for i, (label, points) in enumerate(curves.items()):
            pictures.plot_curve(axes, points, label, f"C{i}")
        pictures.legend_above(axes)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        last = ", ".join(f"{label} {page.number(points[-1][1])}" for label, points in curves.items())
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        yield (f'<div class="chart"><h3>{chart.title}</h3>'
               + page.picture(f"{chart.title} by step; last values: {last}", f"{chart.about}. Last values: {last}.",
                              stream.getvalue(), (width, height)) + "</div>")


def _spans_decades(curves: dict[str, list[tuple[int, float]]]) -> bool:
    values = [value for points in curves.values() for _, value in points]
    return min(values) > 0 and math.log10(max(values) / min(values)) > 1.5
