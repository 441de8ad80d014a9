"""Draw the pictures of the documents: `python docs/drawings.py` writes phases.png, boxes.png and step.png in
docs/images."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")  # Tol's bright scheme, told apart by colour-blind readers too
STRIDE, KERNEL, PADDING, SIDE = 2, 4, 1, 4  # a DCGAN generator's stage, on a 4x4 input


def squares(axes: Axes, count: int, colour: dict[tuple[int, int], str], text: dict[tuple[int, int], str],
            title: str) -> None:
    for (row, column), face in colour.items():
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=2))
        axes.text(column + 0.5, row + 0.5, text.get((row, column), ""), ha="center", va="center", fontsize=9,
                  color="white")
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal", title=title)
    axes.axis("off")


def phase(position: int) -> int:
    """Of an output row or column."""
    return (position + PADDING) % STRIDE


def picture(path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.6), width_ratios=(1, 0.8, 1.5), layout="tight")
    out = range(SIDE * STRIDE)
    squares(left, len(out), {(r, c): COLOURS[2 * phase(r) + phase(c)] for r in out for c in out},
            {(r, c): f"{phase(r)},{phase(c)}" for r in out for c in out}, "output 8x8: four phases")
    squares(middle, KERNEL, {(r, c): COLOURS[2 * (r % STRIDE) + c % STRIDE] for r in range(KERNEL)
                             for c in range(KERNEL)},
            {(r, c): f"kh {r}\nkw {c}" for r in range(KERNEL) for c in range(KERNEL)},
            "kernel 4x4: the taps of each phase")
    rows(right)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def rows(axes: Axes) -> None:
    """One column of pixels, laid flat: which input rows each output row reads, and through which tap."""
    scale = STRIDE
    for i in range(SIDE):
        axes.add_patch(Rectangle((scale * i + 0.55, 2.4), 0.9, 0.5, facecolor="#777777"))
        axes.text(scale * i + 1, 2.65, f"ih {i}", ha="center", va="center", color="white", fontsize=9)
    for o in range(SIDE * STRIDE):
        colour = COLOURS[3 * phase(o)]
        axes.add_patch(Rectangle((o + 0.05, 0), 0.9, 0.5, facecolor=colour))
        axes.text(o + 0.5, 0.25, f"oh {o}", ha="center", va="center", color="white", fontsize=9)
        for t in range(KERNEL // STRIDE):
            source, tap = (o + PADDING) // STRIDE - t, phase(o) + STRIDE * t
            if 0 <= source < SIDE:
                start, end = (scale * source + 1, 2.4), (o + 0.5, 0.5)
                axes.plot(*zip(start, end, strict=True), color=colour, linewidth=1.6)
                axes.text(end[0] + 0.22 * (start[0] - end[0]), 0.5 + 0.22 * 1.9, str(tap), ha="center", va="center",
                          fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.set(xlim=(-0.1, 8.1), ylim=(-0.1, 3.1), title="rows: output oh reads ih = (oh + 1) // 2 - t through kh")
    axes.axis("off")


TAPS = ((0, 0), (1, 2))  # (kh, kw) of boxes.png, each with a colour


def boxes(path: Path) -> None:
    """What two taps of a 4x4 convolution of stride 2 read of an 8x8 image, and the product that they are part of."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 5.4), width_ratios=(1, 1, 1.1), layout="tight")
    fine = range(SIDE * STRIDE)
    squares(left, len(fine), {(r, c): "#cccccc" for r in fine for c in fine}, {},
            "fine image 8x8: what two taps read\n(kh, kw) = (0, 0) blue, (1, 2) red")
    for (kh, kw), colour in zip(TAPS, COLOURS, strict=False):
        for h in range(SIDE):
            for w in range(SIDE):
                pixel(left, STRIDE * w - PADDING + kw, STRIDE * h - PADDING + kh, 1, colour, f"{h},{w}")
    left.set(xlim=(-1.1, 8.1), ylim=(8.1, -1.1))
    described(middle)
    product(right)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pixel(axes: Axes, x: float, y: float, width: float, colour: str, text: str, outside: bool | None = None) -> None:
    """outside: of the image, so that it is filled with zeros."""
    outside = min(x, y) < 0 if outside is None else outside
    axes.add_patch(Rectangle((x, y), width, 1, facecolor="white" if outside else colour,
                             edgecolor=colour if outside else "white", linewidth=1))
    axes.text(x + width / 2, y + 0.5, "0" if outside else text, ha="center", va="center", fontsize=8,
              color=colour if outside else "white")


def described(axes: Axes) -> None:
    """The same memory as [H, 2, W, 2C]: even rows above odd ones; two pixels, of C channels each, side by side."""
    for odd in range(STRIDE):
        top = 5.6 * odd
        axes.text(-1.2, top + SIDE / 2, f"{('even', 'odd')[odd]}\nrows", ha="right", va="center", fontsize=9)
        for h in range(SIDE):
            for half in range(STRIDE * SIDE):
                pixel(axes, half, top + h, 1, "#cccccc", "", False)
            for w in range(SIDE):
                axes.add_patch(Rectangle((STRIDE * w, top + h), STRIDE, 1, fill=False, edgecolor="#888888"))
        for (kh, kw), colour in zip(TAPS, COLOURS, strict=False):
            (first_h, row), (first_w, column) = (((k + 1) // 2 - 1, (k + 1) % 2) for k in (kh, kw))
            for h in range(SIDE) if row == odd else ():
                for w in range(SIDE):
                    outside = first_h + h < 0 or first_w + w < 0
                    pixel(axes, STRIDE * (first_w + w) + column, top + first_h + h, 1, colour, f"{h},{w}", outside)
    axes.set(xlim=(-2.6, 8.1), ylim=(9.8, -1.2), aspect="equal",
             title="the same memory as [H, 2, W, 2C]:\neach of them is a box")
    axes.axis("off")


def product(axes: Axes) -> None:
    for left, bottom, width, height, colour, text in (
            (0, 0, 1.6, 2.4, "#777777", "weight\nBM x BK"),
            (1.9, 2.7, 4, 1.6, COLOURS[0], "box, reshaped and transposed\nBK channels x BN pixels"),
            (1.9, 0, 4, 2.4, COLOURS[2], "y, added up in registers\nBM channels x BN pixels")):
        box(axes, left, bottom, width, colour, text, height)
    axes.set(xlim=(-0.1, 6), ylim=(-0.1, 4.9), title="an iteration of a program's loop:\none tap, BK channels")
    axes.axis("off")


CAPTURED = ("fetch\ngather, flip,\nscale", "draw z,\nlearning\nrates", "G(z)", "D[real; fake]\n2 statistic\ngroups",
            "D: gradients,\nfused Adam", "D(fake)\nD's weights\nfrozen", "G: gradients,\nfused Adam", "average\nof G",
            "row of\nthe ring,\nt + 1")
FIRST = (("snapshot", 0), ("warm up\n3 runs, side stream", 1), ("restore", 0), ("capture\nsame stream", 2),
         ("check\n3 eager, 3 replays,\n3 eager", 1), ("restore", 0), ("replay:\nstep 1", 3), ("replay:\nstep 2", 3),
         ("...", 3))


def box(axes: Axes, left: float, bottom: float, width: float, colour: str, text: str, height: float = 0.8) -> None:
    axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="white", linewidth=1.5))
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", color="white", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.3})


def step(path: Path) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(13, 6.6), height_ratios=(2.9, 1), layout="tight")
    blue, red, green, _ = COLOURS
    for y, name in ((3.4, "host"), (2.2, "copy\nstream"), (0.6, "device")):
        above.text(-0.15, y, name, ha="right", va="center", fontsize=10)
    width = 1.15
    left, right = 1.9, 1.9 + width * len(CAPTURED)
    box(above, 0, 3, 1.7, blue, "prepare\nrefill the queue,\nor take what came")
    box(above, left, 3, 1.3, blue, "replay\none launch")
    box(above, left + 1.5, 3, 1.3, blue, "count")
    box(above, left + 3, 3, 4.4, "#bbbbbb", "the same for the next steps, without waiting")
    box(above, left + 7.6, 3, right - left - 7.6, blue, "every K steps:\nlook at the ring,\nlog, save")
    box(above, left + 1.5, 1.85, 3.4, red, "the next batch travels (streamed data)", 0.7)
    above.add_patch(Rectangle((left - 0.12, -0.12), right - left + 0.24, 1.44, facecolor="#eef6ee", edgecolor=green,
                              linewidth=2))
    above.text(left + 0.8, 1.42, "one CUDA graph", color=green, fontsize=10, va="bottom")
    for i, text in enumerate(CAPTURED):
        box(above, left + width * i, 0, width, green, text, 1.2)
    arrow(above, (left + 0.65, 3), (left + 0.65, 1.36))
    arrow(above, (left + 2.1, 3), (left + 2.1, 2.58))
    arrow(above, (0.85, 0.4), (left - 0.14, 0.4))
    arrow(above, (0.85, 3), (0.85, 0.4))
    arrow(above, (right - 0.55, 1.36), (right - 0.55, 2.97))
    above.set(xlim=(-1.1, right + 0.2), ylim=(-0.25, 4), title="a step")
    for i, (text, kind) in enumerate(FIRST):
        box(below, 1.34 * i, 0, 1.34, ("#777777", blue, green, green)[kind], text, 0.9)
    below.set(xlim=(-1.1, 1.34 * len(FIRST) + 0.2), ylim=(-0.1, 1), title="the first call of a phase")
    for axes in (above, below):
        axes.axis("off")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    picture(images / "phases.png")
    boxes(images / "boxes.png")
    step(images / "step.png")
