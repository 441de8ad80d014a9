"""A score for images that Inception was not trained on: a small classifier, trained on the labeled real images.

    score_confidence   E[max_c p(c|x)]: how clearly the fakes belong to one class
    score_classes      number of classes whose share among the fakes is at least a tenth of that among the real images
    score_diversity    sum over classes c of share_c min(1, s_c(fakes) / s_c(reals)), where s_c is the mean distance of
                       features from their mean in class c: 1 if each class is as diverse as in the real images, 0 if
                       all fakes of a class are equal
    score_novelty      median distance, in pixel space, from a fake to the nearest training image, relative to that of
                       real images that were not used for training: 1 for new images, 0 for copies

A third of the real images, at most 2,000, are not used for training. They give the scores that perfect fakes would
have, and the accuracy of the classifier (score_accuracy).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from fastgan.data import Dataset
from fastgan.errors import FastganError
from fastgan.metrics.cache import cached_tensors
from fastgan.metrics.real_images import RealImages

SIDE, DISTANCE_SIDE = 32, 16  # the longer side of images for the classifier, and for distances in pixel space
MAX_REAL_IMAGES, MAX_HELD_OUT = 20_000, 2_000
STEPS, BATCH, RATE = 600, 64, 2e-3
MIN_ACCURACY = 0.25  # rescaled from [share of the most frequent class, 1] to [0, 1]; below it, scores are unreliable
VERSION = "2"  # of the cached tensors: increase it when the constants above or the network change


class ClassifierScore:
    """The metric "score". Raises `FastganError` for data without labels of at least two classes."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        if dataset.labels is None or len(dataset.classes) < 2:
            raise FastganError(f"--metrics score: {dataset.name} has {len(dataset.classes)} classes, but a classifier "
                               "needs labels; expected 2 or more, such as class subfolders, or other --metrics")
        channels, height, width = dataset.shape
        self.device, self.classes = device, len(dataset.classes)
        self.share = torch.bincount(dataset.labels, minlength=self.classes) / len(dataset)
        self.size = _within((height, width), SIDE)
        self.network = _network(channels, self.size, self.classes).to(device, torch.float32)

    def learn(self, reals: RealImages) -> None:
        tensors = cached_tensors(f"classifier-{reals.key('classifier', VERSION)}", lambda: self._train_on(reals))
        self.network.load_state_dict({name[len("network."):]: tensor for name, tensor in tensors.items()
                                      if name.startswith("network.")})
        self.training_pixels = tensors["training_pixels"].to(self.device)
        features = self.features(tensors["held_out"])
        self.variety, self.distance = self._variety(features), self._distance(features)
        correct = (features["probabilities"].argmax(1) == tensors["labels"]).float().mean().item()
        self.real = {**self.compute(features), "score_accuracy": correct}

    def _train_on(self, reals: RealImages) -> dict[str, Tensor]:
        batches = [(_resized(images, self.size), labels)
                   for images, labels in reals.batches(MAX_REAL_IMAGES, "real images for the score")
                   if labels is not None]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        count = min(MAX_HELD_OUT, len(images) // 3)
        _train(self.network, images[count:].to(self.device), labels[count:].to(self.device))
        return {"held_out": images[:count].clone(), "labels": labels[:count].clone(),
                "training_pixels": _small_pixels(images[count:]),
                **{f"network.{name}": tensor.cpu() for name, tensor in self.network.state_dict().items()}}

    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        resized = _resized(images, self.size)
        features = [self.network[:-1](_normalized(chunk.to(self.device))) for chunk in resized.split(256)]
        return {"probabilities": torch.cat([self.network[-1](chunk).softmax(1) for chunk in features]).cpu(),
                "features": torch.cat(features).cpu(), "pixels": _small_pixels(resized)}

    def compute(self, features: dict[str, Tensor]) -> dict[str, float]:
        counts = torch.bincount(features["probabilities"].argmax(1), minlength=self.classes)
        covered = (counts > 0) & (counts >= 0.1 * self.share * counts.sum()) & (self.share > 0)
        ratio = (self._variety(features) / self.variety.clamp(min=1e-8)).clamp(max=1)
        share = self.share * (self.variety > 0)
        return {"score_confidence": features["probabilities"].amax(1).mean().item(),
                "score_classes": float(covered.sum()),
                "score_diversity": ((share * ratio).sum() / share.sum().clamp(min=1e-8)).item(),
                "score_novelty": self._distance(features) / max(self.distance, 1e-8)}

    def of_reals(self) -> dict[str, float]:
        return self.real

    def doubts(self, images: int) -> list[str]:
        accuracy, chance = self.real["score_accuracy"], self.share.max().item()
        return [f"score is unreliable: the accuracy of its classifier is {accuracy:.0%} on new real images, and the "
                f"share of the most frequent class is {chance:.0%}; expected classes that can be distinguished"
                ] * (accuracy < chance + MIN_ACCURACY * (1 - chance))

    def _variety(self, features: dict[str, Tensor]) -> Tensor:
        """Mean distance of features from their mean in each predicted class: (classes,); 0 for an empty class."""
        predicted = features["probabilities"].argmax(1)
        members = [features["features"][predicted == c] for c in range(self.classes)]
        return torch.stack([(f - f.mean(0)).norm(dim=1).mean() if len(f) else f.new_zeros(()) for f in members])

    def _distance(self, features: dict[str, Tensor]) -> float:
        """Median distance to the nearest training image."""
        pixels = self.training_pixels.float()
        nearest = [torch.cdist(chunk.to(self.device).float(), pixels).amin(1)
                   for chunk in features["pixels"].split(256)]
        return torch.cat(nearest).median().item()


def _network(channels: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    """Pixels (N, channels, *size) -> logits (N, classes); the inputs of the last layer are the features."""
    widths = [channels, 16, 32, 64]
    stages = [layer for i, o in itertools.pairwise(widths)
              for layer in (nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU())]
    places = math.prod(math.ceil(side / 8) for side in size)
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(widths[-1] * places, 128), nn.ReLU(), nn.Linear(128, classes))


def _train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train with Adam on random batches, with a learning rate that decays linearly to 0."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in trange(STEPS, unit="step", desc="the score's classifier", leave=False, dynamic_ncols=True):
        chosen = torch.randint(len(images), (BATCH,)).to(images.device)
        loss = F.cross_entropy(network(_normalized(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _normalized(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`size`, shrunk proportionally if its longer side is more than `longest`."""
    shrink = max(1.0, max(size) / longest)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, *size), by area interpolation."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images.float(), size=size, mode="area").round().to(torch.uint8)


def _small_pixels(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, D): vectors for distances in pixel space."""
    height, width = images.shape[-2:]
    return _resized(images, _within((height, width), DISTANCE_SIDE)).flatten(1)
