"""The curves of a log: what is drawn together, as data for the page's script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgan import pictures
from fastgan.report import page
from fastgan.report.found import evenly, is_number

MOST_POINTS = 1000  # of a curve: more than a screen has pixels for


class Chart(NamedTuple):
    """keys: of records, with the names of their curves. logarithmic: where values are far apart."""

    title: str
    about: str
    keys: dict[str, str]
    logarithmic: bool = False


CHARTS = (
    Chart("Losses", "of discriminator and generator, as --loss defines them",
          {"loss_d": "discriminator", "loss_g": "generator"}),
    Chart("What D believes", "mean output of the discriminator for real and for generated images; where both are "
          "equal it cannot tell them apart. A probability, but for wgan-gp and least-squares",
          {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"}),
    Chart("Gradient norms", "over all parameters of a network",
          {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}, logarithmic=True),
    Chart("Diversity", "how far the fakes of a batch are from each other; 1 is as far as its reals are",
          {"diversity": "fakes"}),
    Chart("Throughput", "images per second of training", {"images_per_sec": "images per second"}),
    Chart("FID", "distance of the distributions of fakes and reals; less is better", {"fid": "FID"}),
    Chart("KID", "the same by another kernel, without bias; less is better", {"kid": "KID"}),
    Chart("Inception Score", "how clear and how varied; more is better", {"is": "IS"}),
    Chart("Score by a classifier", "of the labelled reals; 1 is as good, as varied and as new as reals are",
          {"score_confidence": "confidence", "score_diversity": "diversity", "score_novelty": "novelty"}),
    Chart("Classes covered", "by the fakes, as a classifier of the labelled reals sees them",
          {"score_classes": "classes"}),
)


def drawn(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(HTML, data) of each chart of which there is something to draw.

    The data: {"title", "log", "series": [{"name", "x", "y", "smooth"}]}.
    """
    for chart in CHARTS:
        series = [one for key, name in chart.keys.items() if (one := _series(records, key, name))["x"]]
        if series:
            low = min(min(one["y"]) for one in series)
            far = chart.logarithmic and low > 0 and max(max(one["y"]) for one in series) > 30 * low
            yield _figure(chart, series), {"title": chart.title, "log": far, "series": series}


def _series(records: Sequence[dict[str, Any]], key: str, name: str) -> dict[str, Any]:
    points = [(record["step"], record[key]) for record in records if is_number(record.get(key))]
    points.sort(key=lambda point: point[0])
    smooth = pictures.smooth(np.array([y for _, y in points], float)).tolist()
    kept = evenly([(x, y, s) for (x, y), s in zip(points, smooth, strict=True)], MOST_POINTS)
    return {"name": name, **{part: [float(f"{point[i]:.6g}") if i else point[0] for point in kept]
                             for i, part in enumerate(("x", "y", "smooth"))}}


def _figure(chart: Chart, series: list[dict[str, Any]]) -> str:
    """An empty plot for the script, and a table that says as much without it: the plot's legend and readout."""
    rows = [(f'<span class="swatch s{i}"></span>{page.text(one["name"])}', page.number(min(one["y"])),
             page.number(max(one["y"])), page.number(one["y"][-1])) for i, one in enumerate(series)]
    legend = page.table(f"{chart.title}: values", ["curve", "lowest", "highest", "last"], rows, "legend")
    return (f'<figure class="chart"><h3>{chart.title}</h3><div class="plot"></div>{legend}'
            f"<figcaption>{chart.about}</figcaption></figure>")
