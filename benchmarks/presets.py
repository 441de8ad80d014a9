"""Train every preset for some real steps and show what came out: a table, and one picture of all.

    python benchmarks/presets.py --idx /usr/share/datasets/fashion-mnist --steps 200

Where a preset wants a data set that has to be downloaded, the MNIST-format files in --idx stand in: directly for MNIST,
as a folder of PNG files for folders and CIFAR-10. Everything else is as the preset has it, batch size included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fastgan import presets
from fastgan.config import Config
from fastgan.data.idx import read_idx_folder
from fastgan.train import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx", type=Path, required=True, help="folder with the four MNIST-format files")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--outdir", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", default=list(presets.PRESETS), metavar="PRESET")
    parser.add_argument("--picture", type=Path, help="where to write the picture of all")
    options = parser.parse_args()
    shown = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps each")
    print(f"{'preset':20}{'batch':>6}{'s/step':>9}{'img/s':>8}{'loss_d':>9}{'loss_g':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_pngs(options.idx, Path(scratch) / "images")
        for name in options.only:
            trainer = Trainer(stand_in(presets.get(name), options.idx, folder).replace(
                steps=options.steps, snap=options.steps, grid=16, pictures="grid", outdir=str(options.outdir)))
            run = trainer.fit()
            if trainer.stopped_by is not None:
                sys.exit(f"stopped by {trainer.stopped_by.name}")
            records = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
            seconds = statistics.median(record["sec_per_step"] for record in records)
            batch, last = presets.get(name).data.batch, records[-1]
            print(f"{name:20}{batch:>6}{seconds:>9.3f}{batch / seconds:>8.0f}{last['loss_d']:>9.3f}"
                  f"{last['loss_g']:>9.3f}", flush=True)
            shown[name] = run / f"fakes{options.steps:06d}.png"
    if options.picture:
        contact_sheet(shown, options.steps, options.picture)


def stand_in(config: Config, idx: Path, folder: Path) -> Config:
    """The preset on data that is here."""
    if config.data.source == "mnist":
        return config.replace(source=f"idx:{idx}")
    if config.data.source in ("digits", "gaussian"):
        return config
    return config.replace(source=f"folder:{folder}")


def write_pngs(idx: Path, folder: Path, count: int = 4000) -> Path:
    """The first `count` images as PNG files."""
    folder.mkdir()
    images, _ = read_idx_folder(idx, "train")[0]
    for i, pixels in enumerate(images[:count]):
        Image.fromarray(pixels).save(folder / f"{i:05d}.png")
    return folder


def contact_sheet(pictures: dict[str, Path], steps: int, path: Path) -> None:
    """Each preset's last picture under its name."""
    figure = Figure(figsize=(12, 13), dpi=100, layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(-(-len(pictures) // 3), 3).flat, pictures.items(), strict=False):
        axes.imshow(Image.open(picture).convert("RGB"))
        axes.set_title(name)
    for axes in figure.axes:
        axes.axis("off")
    figure.suptitle(f"Every preset after {steps} steps")
    FigureCanvasAgg(figure)
    figure.savefig(path)


if __name__ == "__main__":
    main()
