"""Modules of fused layers, and the conversion of existing networks."""

from __future__ import annotations

from fastgan.nn.chain import (
    Chain,
    ConvBNAct,
    ConvBNLeakyReLU,
    ConvTransposeBNAct,
    ConvTransposeBNReLU,
    frozen,
    use,
)
from fastgan.nn.convert import convert, to_eager
from fastgan.nn.groups import stat_groups

__all__ = ["Chain", "ConvBNAct", "ConvBNLeakyReLU", "ConvTransposeBNAct", "ConvTransposeBNReLU", "convert",
           "frozen", "stat_groups", "to_eager", "use"]
