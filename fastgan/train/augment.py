"""DiffAugment (Zhao et al. 2020, arXiv:2006.10738): random changes of all images that the discriminator receives.

    color        x + b;  m + 2 s (x - m), m the mean over channels;  m + (c + 1/2)(x - m), m the mean of the image;
                 b uniform on [-1/2, 1/2], s and c on [0, 1]
    translation  by whole pixels, up to an eighth of each side; pixels from outside are 0
    cutout       a rectangle of half of each side at a random position becomes 0

Real images and fakes are changed in the same way, in both updates, and gradients pass through the changes. Therefore
the generator does not learn to imitate them, as it would from augmented data. The changes prevent the discriminator
from memorizing a small data set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data.order import WHOLE, Shard
from fastgan.options import augmentation_names

SHIFT, CUT = 1 / 8, 1 / 2  # as fractions of a side


class DiffAugment:
    """Augmentations by name, such as "color,translation,cutout", with different random values for each image.

    Random numbers come from the global generator of the images' device. There is no synchronization with the host, and
    gradients of any order are deterministic. shard: which part of the batch the images are.
    """

    def __init__(self, names: str, shard: Shard = WHOLE) -> None:
        self.names, self.shard = augmentation_names(names), shard

    def __call__(self, images: Tensor) -> Tensor:
        """Augment images (N, C, H, W). Computed in float32 or wider; shape and dtype are kept."""
        if not self.names:
            return images
        wide = torch.promote_types(images.dtype, torch.float32)
        draws = self.shard.take(torch.rand(len(images) * self.shard.of, 7, dtype=wide, device=images.device))
        return augmented(images.to(wide), draws, self.names).to(images.dtype)


def augmented(x: Tensor, draws: Tensor, names: list[str]) -> Tensor:
    """Apply the augmentations `names` to x (N, C, H, W) with random numbers `draws` (N, 7), uniform on [0, 1)."""
    brightness, saturation, contrast, *places = draws[:, :, None, None, None].unbind(1)  # (N, 1, 1, 1) each
    if "color" in names:
        x = x + (brightness - 0.5)
        if x.shape[1] > 1:
            mean = x.mean(1, keepdim=True)
            x = mean + 2 * saturation * (x - mean)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (contrast + 0.5) * (x - mean)
    if "translation" in names:
        x = _translated(x, *places[:2])
    return x * _kept(x, *places[2:]) if "cutout" in names else x


def _translated(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Translate x by up to SHIFT of each side. `down` and `right` are uniform (N, 1, 1, 1)."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1) - _shift(down, height)  # [N, 1, H, 1]
    columns = torch.arange(width, device=x.device) - _shift(right, width)  # [N, 1, 1, W]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)  # [N, 1, H, W]
    moved = x.flatten(2).gather(2, place.flatten(2).expand(-1, x.shape[1], -1)).view_as(x)
    # with the mask, at most one term in the gradient of a pixel is not 0, so the order of summation does not matter
    return moved * inside


def _shift(uniform: Tensor, side: int) -> Tensor:
    """A uniform integer from -n to n, where n is SHIFT of the side, rounded."""
    most = int(side * SHIFT + 0.5)
    return (uniform * (2 * most + 1)).floor().long() - most


def _kept(x: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """A mask (N, 1, H, W) that is 0 in a rectangle with CUT of each side, centered anywhere in the image."""
    cut = [_in_window(uniform, side, x.device) for uniform, side in zip((top, left), x.shape[2:], strict=True)]
    return ~(cut[0].unsqueeze(-1) & cut[1].unsqueeze(-2))


def _in_window(uniform: Tensor, side: int, device: torch.device) -> Tensor:
    """Whether each position of a side is in a window of length CUT * side around a random center: (N, 1, side)."""
    length = int(side * CUT + 0.5)
    start = (uniform.flatten(1) * (side + 1 - length % 2)).floor().long() - length // 2  # [N, 1]
    places = torch.arange(side, device=device) - start  # [N, side]
    return ((places >= 0) & (places < length)).unsqueeze(1)
