"""A score for images that Inception knows nothing of: a small classifier, trained on the labelled reals, judges fakes.

    score_confidence   E[max_c p(c|x)]: how clearly a fake is one of the classes
    score_classes      classes that the fakes cover: that have at least a tenth of the share they have among the reals
    score_diversity    sum over classes c of share_c min(1, s_c(fakes) / s_c(reals)), with s_c the mean distance of
                       features from their mean in class c: 1 where each class is there and as varied as in the reals,
                       0 where all fakes of a class are alike
    score_novelty      median distance, in pixels, from a fake to the nearest real that was learnt, over that of reals
                       which were not learnt: 1 as far as new reals are, 0 for copies

A third of the reals, 2,000 at most, are not learnt: they tell what perfect fakes would reach, and how often the judge
is right (score_accuracy).
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
from fastgan.metrics.kept import Shapes, kept
from fastgan.metrics.reals import Reals

SIDE, SMALL_SIDE = 32, 16  # the longer side of what the classifier sees, and of what distances are taken between
MOST, UNSEEN = 20_000, 2_000  # reals that are used, and how many of them are not learnt
STEPS, BATCH, RATE = 600, 64, 2e-3
LEAST = 0.25  # of the way from guessing to certainty, else the classifier knows nothing
RECIPE = "1"  # another where any of the above, or the network, is another


class Judge:
    """Raises `FastganError` for data without labels of at least two classes."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        if dataset.labels is None or len(dataset.classes) < 2:
            raise FastganError(f"--metrics score: {dataset.name} has {len(dataset.classes)} classes, and a classifier "
                               "learns from labels; expected 2 or more, such as class subfolders, or other --metrics")
        channels, height, width = dataset.shape
        self.device, self.classes = device, len(dataset.classes)
        self.share = torch.bincount(dataset.labels, minlength=self.classes) / len(dataset)
        self.size = _within((height, width), SIDE)
        self.network = _network(channels, self.size, self.classes).to(device, torch.float32)

    def learn(self, reals: Reals) -> None:
        channels, small = reals.dataset.shape[0], _within(self.size, SMALL_SIDE)
        shapes: Shapes = {
            "unseen": ("u", channels, *self.size), "labels": ("u",), "known": ("k", channels * math.prod(small)),
            **{f"network.{name}": tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}}
        tensors = kept(f"judge-{reals.key('judge', RECIPE)}", shapes, lambda: self._learn(reals))
        self.network.load_state_dict({name[len("network."):]: tensor for name, tensor in tensors.items()
                                      if name.startswith("network.")})
        self.known = tensors["known"].to(self.device)
        seen = self.see(tensors["unseen"])
        self.spread, self.distance = self._spread(seen), self._distance(seen)
        right = (seen["probabilities"].argmax(1) == tensors["labels"]).float().mean().item()
        self.real = {**self.tell(seen), "score_accuracy": right}

    def _learn(self, reals: Reals) -> dict[str, Tensor]:
        batches = [(_shrunk(images, self.size), labels) for images, labels in reals.batches(MOST, "reals for the score")
                   if labels is not None]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        unseen = min(UNSEEN, len(images) // 3)
        _train(self.network, images[unseen:].to(self.device), labels[unseen:].to(self.device))
        return {"unseen": images[:unseen].clone(), "labels": labels[:unseen].clone(), "known": _small(images[unseen:]),
                **{f"network.{name}": tensor.cpu() for name, tensor in self.network.state_dict().items()}}

    @torch.no_grad()
    def see(self, images: Tensor) -> dict[str, Tensor]:
        shrunk = _shrunk(images, self.size)
        features = [self.network[:-1](_pixels(part.to(self.device))) for part in shrunk.split(256)]
        return {"probabilities": torch.cat([self.network[-1](part).softmax(1) for part in features]).cpu(),
                "features": torch.cat(features).cpu(), "small": _small(shrunk)}

    def tell(self, seen: dict[str, Tensor]) -> dict[str, float]:
        counts = torch.bincount(seen["probabilities"].argmax(1), minlength=self.classes)
        covered = (counts > 0) & (counts >= 0.1 * self.share * counts.sum()) & (self.share > 0)
        varied = (self._spread(seen) / self.spread.clamp(min=1e-8)).clamp(max=1)
        share = self.share * (self.spread > 0)
        return {"score_confidence": seen["probabilities"].amax(1).mean().item(),
                "score_classes": float(covered.sum()),
                "score_diversity": ((share * varied).sum() / share.sum().clamp(min=1e-8)).item(),
                "score_novelty": self._distance(seen) / max(self.distance, 1e-8)}

    def of_reals(self) -> dict[str, float]:
        return self.real

    def doubts(self, images: int) -> list[str]:
        right, chance = self.real["score_accuracy"], self.share.max().item()
        return [f"score says little: its classifier is right about {right:.0%} of new reals, where the most frequent "
                f"class alone makes {chance:.0%}; expected classes that can be told apart"
                ] * (right < chance + LEAST * (1 - chance))

    def _spread(self, seen: dict[str, Tensor]) -> Tensor:
        """(classes,): mean distance of features from their mean, in each class as it is judged; 0 in an empty one."""
        judged = seen["probabilities"].argmax(1)
        members = [seen["features"][judged == c] for c in range(self.classes)]
        return torch.stack([(f - f.mean(0)).norm(dim=1).mean() if len(f) else f.new_zeros(()) for f in members])

    def _distance(self, seen: dict[str, Tensor]) -> float:
        """Median of the distances to the nearest image that was learnt."""
        known = self.known.float()
        nearest = [torch.cdist(part.to(self.device).float(), known).amin(1) for part in seen["small"].split(256)]
        return torch.cat(nearest).median().item()


def _network(channels: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    """Pixels (N, channels, *size) -> logits (N, classes); what comes before the last layer are the features."""
    widths = [channels, 16, 32, 64]
    stages = [layer for i, o in itertools.pairwise(widths)
              for layer in (nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU())]
    places = math.prod(math.ceil(side / 8) for side in size)
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(widths[-1] * places, 128), nn.ReLU(), nn.Linear(128, classes))


def _train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Adam on random batches; the rate falls to 0."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in trange(STEPS, unit="step", desc="the score's classifier", leave=False, dynamic_ncols=True):
        chosen = torch.randint(len(images), (BATCH,)).to(images.device)
        loss = F.cross_entropy(network(_pixels(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`size`, or one of the same proportions whose longer side is `longest`."""
    shrink = max(1.0, max(size) / longest)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def _shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, *size), by areas."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images.float(), size=size, mode="area").round().to(torch.uint8)


def _small(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, D), where distances are taken."""
    height, width = images.shape[-2:]
    return _shrunk(images, _within((height, width), SMALL_SIDE)).flatten(1)
