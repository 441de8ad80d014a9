"""Are the demo's digits digits? A classifier trained on the real ones judges 500 samples.

    python benchmarks/digits_quality.py [RUN]        the newest run in runs/ when not given

The classifier is scikit-learn's MLPClassifier on the real 8x8 digits; samples are shrunk to 8x8 by area. A third of the
real digits, which it has not seen, gives the figures that perfect samples would reach.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch.nn import functional as F

from fastgan.data import to_uint8
from fastgan.models.pretrained import Pretrained
from fastgan.train import runs

COUNT, SEEN = 500, 5  # samples; how many make a class count as found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else runs.newest(Path("runs"))
    digits = load_digits()
    known, unseen, labels, unseen_labels = train_test_split(digits.data, digits.target, test_size=1 / 3, random_state=0)
    classifier = MLPClassifier((64,), max_iter=1000, random_state=0).fit(known, labels)
    print(f"classifier: accuracy {classifier.score(unseen, unseen_labels):.3f} on {len(unseen)} unseen real digits")
    report("real digits", classifier.predict_proba(unseen))
    source = Pretrained.load(folder)
    images = to_uint8(source.draw(source.noise.from_seeds(range(COUNT))), source.unit_range)
    small = F.interpolate(images.float(), size=(8, 8), mode="area").flatten(1) * (16 / 255)
    report(f"samples of {folder}", classifier.predict_proba(small.numpy()))
    nearest = torch.cdist(small, torch.tensor(digits.data, dtype=torch.float32)).min(1).values
    between = torch.cdist(torch.tensor(unseen, dtype=torch.float32), torch.tensor(known, dtype=torch.float32)).min(1)
    print(f"distance to the nearest real digit: samples {nearest.median():.1f}, unseen reals to the known "
          f"{between.values.median():.1f} (0 would be a copy)")


def report(what: str, probabilities: np.ndarray) -> None:
    """Mean confidence, and how the classes are covered."""
    counts = np.bincount(probabilities.argmax(1), minlength=10)
    print(f"{what}: mean confidence {probabilities.max(1).mean():.3f}, classes found {(counts >= SEEN).sum()} of 10, "
          f"counts {counts.tolist()}")


if __name__ == "__main__":
    main()
