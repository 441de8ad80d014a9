"""The inputs of a step, in tensors with fixed addresses, which a captured step reads and writes.

After a non-finite step (`halted`) the inputs are not overwritten: later calls repeat that step until the host reads the
metrics, so that the batch and the noise that caused it can be examined.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastgan.config import TrainConfig
from fastgan.errors import FastganError


def check_batch(real: Tensor, config: TrainConfig) -> None:
    """Raise `FastganError` for real images that a step of this configuration cannot take."""
    if not real.is_floating_point():
        raise FastganError(f"a batch of dtype {real.dtype}: expected floating-point images, such as bytes / 127.5 - 1")
    if config.augment and real.dim() != 4:
        raise FastganError(f"a batch {tuple(real.shape)} with augment={config.augment!r}: expected images (N, C, H, W)")
    if len(real) % config.accumulate:
        raise FastganError(f"a batch of {len(real)} images with accumulate={config.accumulate}: expected a multiple of "
                           "it")


class StaticBuffers:
    """The noise, images and labels of a step on N real images.

    Attributes:
        z: (N, nz), for the discriminator's update. z_fresh: (N, nz), for the generator's update if it uses new noise.
        images: (2 N, C, H, W) or (2 N, 2), of `dtype`: both halves in the order for the discriminator.
        real, fake: (N, ...), the halves. labels: (2 N,), the same for both halves; None for unconditional models.
    """

    def __init__(self, nz: int, real: Tensor, labels: Tensor | None, real_first: bool,
                 dtype: torch.dtype, channels_last: bool = True) -> None:
        self.real_first, count = real_first, len(real)
        self.z, self.z_fresh = real.new_zeros(count, nz), real.new_zeros(count, nz)
        layout = torch.channels_last if channels_last and real.dim() == 4 else torch.contiguous_format
        self._images = torch.zeros((2 * count, *real.shape[1:]), dtype=dtype, device=real.device).to(
            memory_format=layout)
        self.labels = None if labels is None else torch.cat([labels, labels])
        first, second = self._images.split(count)
        self.real, self.fake = (first, second) if real_first else (second, first)

    def parts(self, count: int) -> list[StaticBuffers]:
        """Split the inputs into `count` equal parts."""
        if count == 1:
            return [self]
        size, parts = len(self.real) // count, []
        for begin in range(0, len(self.real), size):
            rows, part = slice(begin, begin + size), copy.copy(self)
            part.z, part.z_fresh, part.real, part.fake = (
                tensor[rows] for tensor in (self.z, self.z_fresh, self.real, self.fake))
            part.labels = None if self.labels is None else self.labels[rows].repeat(2)
            parts.append(part)
        return parts

    @property
    def images(self) -> Tensor:
        """Both halves. The halves of a part are not adjacent in memory, so they are copied."""
        if len(self._images) == 2 * len(self.real):
            return self._images
        return torch.cat([self.real, self.fake] if self.real_first else [self.fake, self.real])

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """Additional arguments of the networks: the labels of one half, or nothing."""
        return () if self.labels is None else (self.labels[: len(self.real)],)

    def diversity(self) -> Tensor:
        """The mean standard deviation of pixels over the fakes of a batch, divided by that over the real images: ().

        With labels, it is measured within classes, and NaN if no class is in the batch twice.
        """
        halves = self.images.unflatten(0, (2, -1))  # [2, N, ...]
        deviation = halves.std(1, correction=0) if self.labels is None else self._deviation_within_classes(halves)
        first, second = deviation.flatten(1).mean(1, dtype=self.z.dtype)
        real, fake = (first, second) if self.real_first else (second, first)
        return fake / real.clamp(min=1e-8)

    def _deviation_within_classes(self, halves: Tensor) -> Tensor:
        """sqrt(E[(x_i - x_j)^2] / 2), [2, N, ...] -> [2, ...]; the mean is over adjacent images of one class after
        sorting by label.

        Unlike a scatter by class, this needs no number of classes and is deterministic.
        """
        labels, order = self.condition[0].sort(stable=True)
        same = labels[1:] == labels[:-1]  # [N - 1]
        steps = halves.index_select(1, order).diff(dim=1).float().square_()
        weight = (same / same.sum()).view(-1, *[1] * (halves.dim() - 2))
        return ((steps * weight).sum(1) / 2).sqrt()

    def tensors(self) -> list[Tensor]:
        """All buffers."""
        return [self.z, self.z_fresh, self.images, *([] if self.labels is None else [self.labels])]
