"""PyTorch's convolutions and their gradients, with workarounds for three bugs on a CPU (PyTorch 2.14, oneDNN 3.12).

    1x1 kernel, stride > 1     the weight gradient writes beyond its workspace for channels_last tensors with few
                               channels: a crash, a hang or wrong values
    one pixel, stride > 1      in bfloat16 with AMX, a result that is one pixel high or wide is computed from memory
                               beyond a tensor; so is the weight gradient of an image narrower than the stride
    one channel                with strides (H W, 1, W, 1), which are both channels_last and contiguous, values are
                               read from wrong addresses

In the first two cases the fine image (the input of a convolution, the result of a transposed one) is cropped or padded
to the pixels that are read; the remaining convolution has stride 1, or images at least as wide as the stride. Images
and weights of one channel get the strides (H W, H W, W, 1).

All library convolutions of fastgan go through this module; `guarded` applies it to unchanged layers. Everything is
differentiable any number of times. Other devices are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from fastgan.ops.memo import memoized
from fastgan.ops.specs import output_size

Pair = int | Sequence[int]


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair | str = 0,
           dilation: Pair = 1, groups: int = 1) -> Tensor:
    """Same as `torch.nn.functional.conv2d`."""
    input, weight = _regular(input), _regular(weight)
    if input.dim() == 4 and padding != "same" and weight.device.type == "cpu":  # "same" allows no strides
        pads = (0, 0) if isinstance(padding, str) else _pair(padding)
        cut = _cut_of_convolution(input.shape[2:], weight.shape[2:], _pair(stride), pads, _pair(dilation))
        if cut is not None:
            input, stride, padding = cut.of(input), cut.stride, cut.padding
    return _regular(F.conv2d(input, weight, bias, stride, padding, dilation, groups))


def conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0,
                     output_padding: Pair = 0, groups: int = 1, dilation: Pair = 1) -> Tensor:
    """Same as `torch.nn.functional.conv_transpose2d`."""
    input, weight, cut = _regular(input), _regular(weight), None
    if input.dim() == 4 and weight.device.type == "cpu":
        cut = _cut_of_transposed(input.shape[2:], weight.shape[2:], *map(_pair, (stride, padding, output_padding,
                                                                                 dilation)))
    if cut is None:
        return _regular(F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation))
    y = F.conv_transpose2d(input, weight, None, cut.stride, cut.padding, cut.left(output_padding), groups, dilation)
    y = _regular(cut.back(_regular(y)))
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def backward(g: Tensor, input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
             output_padding: Sequence[int], transposed: bool, needs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight from g, that of the result; None if not needed."""
    g, input, weight = _regular(g), _regular(input), _regular(weight)
    fine, coarse = (g, input) if transposed else (input, g)
    cut = None
    if weight.device.type == "cpu":
        cut = _cut(fine.shape[2:], coarse.shape[2:], weight.shape[2:], tuple(stride), tuple(padding), (1, 1))
    if cut is not None:
        stride, padding, output_padding = cut.stride, cut.padding, cut.left(output_padding)
        if transposed:
            g = cut.of(g)
        else:
            input = cut.of(input)
    ginput, gweight, _ = torch.ops.aten.convolution_backward(
        g, input, weight, None, stride, padding, (1, 1), transposed, output_padding, 1, (*needs, False))
    if cut is not None and not transposed and needs[0]:
        ginput = cut.back(ginput)
    return _regular(ginput) if needs[0] else ginput, _regular(gweight) if needs[1] else gweight


class guarded(TorchFunctionMode):
    """Within the block, the functions of this module replace `F.conv2d` and `F.conv_transpose2d`."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.conv2d:
            func = conv2d
        elif func is F.conv_transpose2d:
            func = conv_transpose2d
        return func(*args, **(kwargs or {}))


class _Cut(NamedTuple):
    """The pixels of a fine image (N, C, *sides) that a convolution reads: the image is padded, or cropped if pads are
    negative; then every step-th pixel is taken. The convolution of these pixels has `stride` and `padding`. is_cut:
    which sides are cut."""

    sides: Sequence[int]
    pads: tuple[int, int, int, int]  # left, right, top, bottom
    steps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    is_cut: tuple[bool, bool]

    def of(self, fine: Tensor) -> Tensor:
        padded = F.pad(fine, self.pads) if any(self.pads) else fine
        return padded[..., ::self.steps[0], ::self.steps[1]]

    def back(self, part: Tensor) -> Tensor:
        """The transpose of `of`: a fine image with zeros where nothing is read."""
        left, right, top, bottom = self.pads
        padded = part.new_zeros((*part.shape[:2], self.sides[0] + top + bottom, self.sides[1] + left + right))
        padded[..., ::self.steps[0], ::self.steps[1]] = part
        return F.pad(padded, [-pad for pad in self.pads]) if any(self.pads) else padded

    def left(self, output_padding: Pair) -> list[int]:
        """The output_padding of the sides that are not cut."""
        return [0 if cut else more for more, cut in zip(_pair(output_padding), self.is_cut, strict=True)]


@memoized
def _cut_of_convolution(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                        dilation: Sequence[int]) -> _Cut | None:
    """`_cut_of` a convolution of an image."""
    coarse = output_size(image, _reach(kernel, dilation), stride, padding)
    return _cut_of(image, coarse, kernel, stride, padding, dilation)


@memoized
def _cut_of_transposed(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                       output_padding: Sequence[int], dilation: Sequence[int]) -> _Cut | None:
    """`_cut_of` a transposed convolution of an image; also None if PyTorch rejects its output_padding."""
    if any(more >= step for more, step in zip(output_padding, stride, strict=True)):
        return None
    fine = output_size(image, _reach(kernel, dilation), stride, padding, output_padding, transposed=True)
    return _cut_of(fine, image, kernel, stride, padding, dilation)


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """The sides of a dilated kernel."""
    return [far * (k - 1) + 1 for k, far in zip(kernel, dilation, strict=True)]


def _cut_of(fine: Sequence[int], coarse: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
            padding: Sequence[int], dilation: Sequence[int]) -> _Cut | None:
    """The cut of a convolution between images of these sizes; None if it needs none."""
    if tuple(stride) == (1, 1):
        return None
    if tuple(kernel) == (1, 1) and tuple(padding) == (0, 0):
        return _Cut(fine, (0, 0, 0, 0), (stride[0], stride[1]), (1, 1), (0, 0), (True, True))
    top_left, bottom_right, steps, pads = [0, 0], [0, 0], list(stride), list(padding)
    is_cut = [stride[i] > 1 and (coarse[i] == 1 or fine[i] < stride[i]) for i in range(2)]
    if not any(is_cut):
        return None
    for i, far in enumerate(dilation):
        if is_cut[i]:
            top_left[i] = padding[i]
            bottom_right[i] = (coarse[i] - 1) * stride[i] + far * (kernel[i] - 1) + 1 - padding[i] - fine[i]
            steps[i], pads[i] = 1 if coarse[i] == 1 else stride[i], 0
    return _Cut(fine, (top_left[1], bottom_right[1], top_left[0], bottom_right[0]), (1, 1), (steps[0], steps[1]),
                (pads[0], pads[1]), (is_cut[0], is_cut[1]))


_cut = memoized(_cut_of)


def _regular(x: Tensor) -> Tensor:
    """x; with one channel on a CPU, x and its gradient with the strides of a contiguous tensor."""
    return x.reshape(-1).view(x.shape) if x.dim() == 4 and x.shape[1] == 1 and x.device.type == "cpu" else x
