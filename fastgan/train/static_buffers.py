"""What a step was given, in tensors that stay where they are: a captured step reads and writes the same ones each time.

Once a step has gone wrong (`halted`), what it was given is held: later calls do that step again, until the host looks.
So the batch and the noise that broke it can still be seen, however late it does.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Held:
    """The noise, images and labels of one step on N real images.

    Attributes:
        z: (N, nz), of the discriminator's update. z_fresh: (N, nz), of the generator's where it draws its own.
        images: (2 N, C, H, W) or (2 N, 2), of `dtype`: both halves as the discriminator sees them.
        labels: (2 N,), the same for both halves; None without.
    """

    def __init__(self, nz: int, real: Tensor, labels: Tensor | None, real_first: bool,
                 dtype: torch.dtype, channels_last: bool = True) -> None:
        count = len(real)
        self.z, self.z_fresh = real.new_zeros(count, nz), real.new_zeros(count, nz)
        layout = torch.channels_last if channels_last and real.dim() == 4 else torch.contiguous_format
        self.images = torch.zeros((2 * count, *real.shape[1:]), dtype=dtype, device=real.device).to(
            memory_format=layout)
        self.labels = None if labels is None else torch.cat([labels, labels])
        first, second = self.images.split(count)
        self.real, self.fake = (first, second) if real_first else (second, first)

    def given(self) -> tuple[Tensor, ...]:
        """Labels of one half, as the networks take them."""
        return () if self.labels is None else (self.labels[: len(self.real)],)

    def tensors(self) -> list[Tensor]:
        return [self.z, self.z_fresh, self.images, *([] if self.labels is None else [self.labels])]


def keep(mine: Tensor, new: Tensor, held: Tensor) -> None:
    """Put `new` in the place of `mine`, in its dtype, but not where `held` (), a truth value, is true."""
    torch.where(held, mine, new.to(mine.dtype), out=mine)
