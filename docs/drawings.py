"""Draw the pictures of docs/kernels.md: `python docs/drawings.py` writes docs/images/phases.png."""

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


if __name__ == "__main__":
    picture(Path(__file__).parent / "images" / "phases.png")
