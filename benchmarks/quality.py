"""A table of the image quality of several groups of runs. A group is one setting; its runs differ in their seed.

    python -m benchmarks.quality first=first/00000-digits,first/00001-digits now=now/00000-digits,now/00001-digits

Confidence and diversity are those of `fastgan evaluate --metrics score`. KID (Binkowski et al. 2018) is the unbiased
squared MMD with the kernel (x'y / d + 1)^3, on the features of the same classifier, scaled so that those of real images
have mean square 1: 0 is best. All groups are compared with the images of the first run. Numbers are means and standard
deviations over runs.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

from fastgan.data import open_dataset
from fastgan.metrics.classifier import MAX_HELD_OUT, ClassifierScore
from fastgan.metrics.metrics import Metrics
from fastgan.metrics.real_images import RealImages
from fastgan.models.pretrained import Pretrained
from fastgan.trainer import run_files

IMAGES = 2000
COLUMNS = ("confidence", "diversity", "KID on features")


def kid(first: Tensor, second: Tensor) -> float:
    """The unbiased squared MMD of features (M, D) and (N, D)."""
    x, y = first.double(), second.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


class Judge:
    """The classifier of the score, trained on the data of a run, and features of real images that it has not seen."""

    def __init__(self, run: Path) -> None:
        config = run_files.read_options(run)
        dataset = open_dataset(run_files.with_channels(config.data, run), config.run.seed)
        self.metrics = Metrics("score", dataset, config.data, images=IMAGES, weights=None, device=torch.device("cpu"))
        self.metrics.learn()
        (score,) = self.metrics.metrics
        assert isinstance(score, ClassifierScore)
        self.score = score
        count = min(MAX_HELD_OUT, len(dataset) // 3)
        reals = torch.cat([images for images, _ in RealImages(dataset, config.data).batches(count, "real images")])
        self.real_features = score.features(reals)["features"]
        self.scale = self.real_features.square().mean().sqrt()

    def measure(self, run: Path) -> tuple[float, ...]:
        """The values of COLUMNS."""
        batches = [self.score.features(images) for images in self.metrics._fakes(Pretrained.load(run))]
        features = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        values = self.score.compute(features)
        return (values["score_confidence"], values["score_diversity"],
                kid(features["features"] / self.scale, self.real_features / self.scale))


def row(name: str, runs: list[tuple[float, ...]]) -> str:
    """A line of the table."""
    cells = [f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
             for values in zip(*runs, strict=True)]
    return f"| {name} | {len(runs)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=RUN,RUN,...")
    groups = {name: [Path(run) for run in runs.split(",")]
              for name, _, runs in (group.partition("=") for group in parser.parse_args().groups)}
    judge = Judge(next(iter(groups.values()))[0])
    print(f"| {IMAGES} fakes each | runs | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for name, runs in groups.items():
        print(row(name, [judge.measure(run) for run in runs]), flush=True)


if __name__ == "__main__":
    main()
