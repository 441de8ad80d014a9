"""Pictures: grids of samples, fakes beside real images, scatter plots, loss curves and animations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgan import extras
from fastgan.files import StrPath, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GAP = 2  # pixels between tiles
_CAPTION = 14  # pixels


def grid(images: Tensor, columns: int | None = None, captions: Sequence[str] = ()) -> Image.Image:
    """Arrange images uint8 (N, C, H, W) in a grid with `columns` columns, by default nearly square. Small images are
    enlarged to about 64 pixels.

    captions: a text below each image, truncated to its width.
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows, scale = math.ceil(count / columns), max(1, 64 // max(height, width))
    tile_height, tile_width = height * scale + _GAP + (_CAPTION if captions else 0), width * scale + _GAP
    canvas = Image.new(_MODES[channels], (columns * tile_width + _GAP, rows * tile_height + _GAP))
    for i, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        tile = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels))
        tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (i % columns * tile_width + _GAP, i // columns * tile_height + _GAP))
    for i, text in enumerate(captions):
        canvas.paste(_caption(text, tile_width - _GAP).convert(canvas.mode),
                     (i % columns * tile_width + _GAP, (i // columns + 1) * tile_height - _CAPTION))
    return canvas


def class_columns(count: int, classes: int) -> int | None:
    """Number of columns for a grid of `count` images whose classes alternate, such that each row has equally many
    images of each class and the grid is nearly square; 10 for more than 16 classes. None, for the default of `grid`,
    without classes or if there are fewer images than one row has."""
    if classes > 16:
        return 10 if count >= 10 else None
    return classes * max(1, round(math.sqrt(count) / classes)) if 1 < classes <= count else None


def _caption(text: str, width: int) -> Image.Image:
    """White text on black, (width, _CAPTION) pixels."""
    strip = Image.new("L", (width, _CAPTION))
    font = ImageFont.load_default(11)
    fits = font.getlength(text) <= width
    ImageDraw.Draw(strip).text((width / 2 if fits else 0, _CAPTION / 2), text, 255, font, anchor="mm" if fits else "lm")
    return strip


def side_by_side(fakes: Tensor, reals: Tensor) -> Image.Image:
    """Two titled grids, (N, C, H, W) uint8 each."""
    halves = [grid(fakes).convert("RGB"), grid(reals).convert("RGB")]
    font = ImageFont.load_default(20)
    canvas = Image.new("RGB", (halves[0].width + halves[1].width + 16, halves[0].height + 32), "white")
    pen = ImageDraw.Draw(canvas)
    for half, title, left in zip(halves, ("generated", "real"), (0, halves[0].width + 16), strict=True):
        canvas.paste(half, (left, 32))
        pen.text((left + half.width / 2, 16), title, "black", font, anchor="mm")
    return canvas


def animation(images: Tensor, path: StrPath, milliseconds: int = 60) -> None:
    """Write frames uint8 (N, C, H, W) as a GIF that plays forwards and backwards in a loop."""
    frames = [grid(image[None]).convert("RGB") for image in images]
    with replacing(path) as stream:
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:] + frames[-2:0:-1],
                       duration=milliseconds, loop=0)


def save(image: Image.Image, path: StrPath) -> None:
    """Write a PNG."""
    with replacing(path) as stream:
        image.save(stream, "PNG")


def scatter(path: StrPath, **points: Tensor) -> None:
    """Plot named sets of points (N, 2)."""
    figure = new_figure(figsize=(5, 5))
    axes = figure.add_subplot()
    for name, cloud in points.items():
        axes.scatter(cloud[:, 0].numpy(), cloud[:, 1].numpy(), s=12, alpha=0.7, label=name)
    axes.legend()
    _save_figure(figure, path)


def loss_curves(records: Sequence[Mapping[str, Any]], path: StrPath) -> None:
    """Plot the losses (top) and the discriminator's outputs (bottom) by step."""
    figure = new_figure(figsize=(9, 6))
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, names in ((above, {"loss_d": "discriminator", "loss_g": "generator"}),
                        (below, {"d_real": "D(x), real", "d_fake": "D(G(z)), generated"})):
        for i, (key, name) in enumerate(names.items()):
            plot_curve(axes, [(record["step"], record[key]) for record in records if key in record], name, f"C{i}")
        legend_above(axes)
    above.set_ylabel("loss")
    below.set_ylabel("output of D")
    below.set_xlabel("step")
    _save_figure(figure, path)


def plot_curve(axes: Axes, points: Sequence[tuple[float, float]], label: str, color: str) -> None:
    """Plot (step, value) points as a thin line and their running median as a thick line."""
    steps, values = np.array(points, float).reshape(-1, 2).T
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), color=color, linewidth=1.8, label=label, marker="o" if len(points) < 12 else None)


def legend_above(axes: Axes) -> None:
    """Add a grid, and a legend above the axes, where it does not cover the curves."""
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def smooth(values: np.ndarray) -> np.ndarray:
    """A centered running median over a twentieth of the curve, with mirrored ends; robust to outliers."""
    if not len(values):
        return values
    half = max(len(values) // 40, 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, "symmetric"), 2 * half + 1)
    # at most about a hundred values of each window, for speed
    return np.asarray(np.median(windows[:, :: math.ceil(half / 50)], axis=1))


def new_figure(**options: Any) -> Figure:
    """An empty matplotlib figure."""
    figure = extras.load("matplotlib.figure", "plots", "a plot")  # imported late: it takes a quarter of a second
    return figure.Figure(dpi=120, layout="constrained", **options)


def _save_figure(figure: Figure, path: StrPath) -> None:
    with replacing(path) as stream:
        figure.savefig(stream, format="png")
