"""Convolutions by products of patches: all passes, every instruction set, edge sizes."""

from __future__ import annotations

import pytest
import torch

from fastgan.ops.native import convolve
from fastgan.ops.specs import ConvSpec
from tests.test_native_rows import isa  # noqa: F401 (a fixture)
from tests.test_winograd import check_passes

pytestmark = pytest.mark.usefixtures("poisoned")

# fine channels, coarse channels, (N, H, W) of the input, kernel, stride, padding, output_padding
CASES = {
    "D's first, G's last": (3, 64, (6, 16, 16), (4, 4), (2, 2), (1, 1), (0, 0)),
    "one channel, odd sides": (1, 33, (4, 9, 7), (5, 5), (3, 3), (2, 2), (1, 1)),
    "a line longer than a block": (2, 5, (2, 3, 130), (1, 7), (2, 1), (0, 3), (0, 0)),
    "a single pixel": (8, 40, (34, 1, 1), (3, 3), (1, 1), (1, 1), (0, 0)),
    "strides beyond the kernel": (4, 16, (2, 8, 9), (2, 1), (3, 2), (0, 0), (0, 0)),
}


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("case", CASES)
def test_every_pass(case, transposed, isa):  # noqa: F811
    fine, coarse, (count, height, width), kernel, stride, padding, extra = CASES[case]
    ci, co = (coarse, fine) if transposed else (fine, coarse)
    torch.manual_seed(0)
    x = torch.randn(count, ci, height, width).contiguous(memory_format=torch.channels_last)
    conv = ConvSpec(stride, padding, extra if transposed else (0, 0), transposed)
    check_passes(x, torch.randn(coarse, fine, *kernel), torch.randn(co), conv, "patches")


def test_the_same_bits_with_any_number_of_threads():
    torch.manual_seed(0)
    x, g, weight = torch.randn(20, 3, 12, 12), torch.randn(20, 48, 6, 6), torch.randn(48, 3, 4, 4)
    conv = ConvSpec((2, 2), (1, 1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([convolve.forward(x, weight, None, conv, "patches"),
                          convolve.dgrad(g, x, weight, conv, variant="patches"),
                          convolve.wgrad(g, x, weight, conv, variant="patches")])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
