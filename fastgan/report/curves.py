"""The curves of a log as pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

from fastgan import pictures
from fastgan.report import page


class Chart(NamedTuple):
    """keys: of records, with the labels of their curves. log: a logarithmic scale if the values span a large range."""

    title: str
    about: str
    keys: dict[str, str]
    log: bool = False


CHARTS = (
    Chart("Losses", "Of discriminator and generator, as --loss defines them",
          {"loss_d": "discriminator", "loss_g": "generator"}),
    Chart("Discriminator output", "Mean for real and for generated images; equal values mean that it cannot tell them "
          "apart. A probability, except for wgan-gp and least-squares",
          {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"}),
    Chart("Gradient norms", "Over all parameters of a network",
          {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}, log=True),
    Chart("Diversity", "Distance between the fakes of a batch, or of a class in a conditional run, relative to that "
          "between the real images", {"diversity": "fakes"}),
    Chart("Throughput", "Images per second of training", {"images_per_sec": "images per second"}),
    Chart("FID", "Distance of the distributions of fakes and real images; lower is better", {"fid": "FID"}),
    Chart("KID", "The same by another kernel, without bias; lower is better", {"kid": "KID"}),
    Chart("Inception Score", "Quality and variety of fakes; higher is better", {"is": "IS"}),
    Chart("Score by a classifier", "Trained on the labelled real images; 1 means as good as real images",
          {"score_confidence": "confidence", "score_diversity": "diversity", "score_novelty": "novelty"}),
    Chart("Classes covered", "By the fakes, according to that classifier", {"score_classes": "classes"}),
)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is finite and can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def draw(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The HTML figure of each chart for which there are records."""
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
