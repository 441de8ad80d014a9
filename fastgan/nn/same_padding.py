"""Convolutions with TensorFlow's SAME padding.

SAME splits the padding into left = total // 2 and right = total - left. If total is odd, PyTorch's symmetric `padding`
cannot express this, and `output_padding` would crop the other side. These layers pad and crop exactly as TensorFlow
does. In the blocks of a `Chain`, `output_padding` is the number of additional rows and columns relative to symmetric
padding, and may be negative.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def _same(small: int, large: int, kernel: int, stride: int) -> tuple[int, int]:
    """The (left, right) padding with which a convolution maps the side `large` to `small`."""
    total = max((small - 1) * stride + kernel - large, 0)
    return total // 2, total - total // 2


class ConvSame(nn.Conv2d):
    """A convolution of square images of side `size` with SAME padding: (N, Ci, size, size) -> ceil(size / stride)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, size: int) -> None:
        super().__init__(channels, out, kernel, stride)
        small = -(-size // stride)
        left, right = _same(small, size, kernel, stride)
        self.pads = (left, right, left, right)
        longer = small - (size + 2 * left - kernel) // stride - 1
        self.stage_padding, self.stage_output_padding = (left, left), (longer, longer)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.pads))


class ConvTransposeSame(nn.ConvTranspose2d):
    """The transpose of a SAME convolution from side `large` to side `small`: (N, Ci, small, small) -> large."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, small: int, large: int) -> None:
        left, _ = _same(small, large, kernel, stride)
        super().__init__(channels, out, kernel, stride, padding=left)
        self.side = large
        shorter = large - ((small - 1) * stride - 2 * left + kernel)
        self.stage_padding, self.stage_output_padding = (left, left), (shorter, shorter)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size)[..., : self.side, : self.side]
