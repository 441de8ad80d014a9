"""Train three presets and combine their pictures into one.

    python -m benchmarks.presets --idx /usr/share/datasets/fashion-mnist --out docs/images/presets.png

Two are trained on Fashion-MNIST, with narrower networks than in the presets, which take less time on a CPU; the data of
the third is synthetic. The title of each picture has the options that differ from the preset. The images are in
Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fastgan import presets
from fastgan.config import option
from fastgan.trainer import Trainer


class Shown(NamedTuple):
    """A preset, the options that differ from it except data and length, and the number of training steps."""

    preset: str
    options: dict[str, Any]
    steps: int

    def title(self) -> str:
        words = [option(key) if value is True else f"{option(key)} {value}" for key, value in self.options.items()]
        return f"{self.preset}, {self.steps:,} steps\n{' '.join(words)}"


SHOWN = [
    Shown("dcgan-32", {"cond": True, "ngf": 32, "ndf": 32, "batch": 64, "ema": 0.999}, 2500),
    # with such narrow networks G needs ten times the learning rate of D, or D becomes too strong
    Shown("dcgan-64", {"ngf": 16, "ndf": 8, "batch": 32, "lr_g": 2e-3, "lr_d": 2e-4, "ema": 0.999}, 4500),
    Shown("d2l-gan-gaussian", {}, 2500),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx", type=Path, required=True, help="folder with the four MNIST-format files")
    parser.add_argument("--outdir", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="file of the picture")
    options = parser.parse_args()
    pictures = [train(shown, options.idx, options.outdir) for shown in SHOWN]
    side_by_side(pictures, options.out)


def train(shown: Shown, idx: Path, outdir: Path) -> Path:
    """Train, and return the last picture: eight rows of images, with a column per class if conditional; or points."""
    config = presets.get(shown.preset, **shown.options, steps=shown.steps, outdir=str(outdir))
    if config.data.source != "gaussian":
        config = config.replace(source=f"idx:{idx}", grid=80 if config.data.cond else 64)
    trainer = Trainer(config)
    run = trainer.fit()
    if trainer.stopped_by is not None:
        sys.exit(f"stopped by {trainer.stopped_by.name}")
    return run / f"fakes{shown.steps:06d}.png"


def side_by_side(pictures: list[Path], path: Path) -> None:
    """Draw the pictures with the same height, each below its title."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    widths = [image.width / image.height for image in images]
    figure = Figure(figsize=(5.3 * sum(widths), 6), dpi=100, layout="constrained")
    for axes, image, shown in zip(figure.subplots(1, len(images), width_ratios=widths), images, SHOWN, strict=True):
        axes.imshow(image)
        axes.set_title(shown.title(), fontsize=11)
        axes.axis("off")
    FigureCanvasAgg(figure)
    figure.savefig(path)


if __name__ == "__main__":
    main()
