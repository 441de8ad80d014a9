"""Modules that run as stages, and the way there and back for networks written with eager layers."""

from __future__ import annotations

from fastgan.nn.chain import (
    Chain,
    ConvBNAct,
    ConvBNLeakyReLU,
    ConvTransposeBNAct,
    ConvTransposeBNReLU,
    frozen,
    stat_groups,
    use,
)
from fastgan.nn.convert import convert, to_eager

__all__ = ["Chain", "ConvBNAct", "ConvBNLeakyReLU", "ConvTransposeBNAct", "ConvTransposeBNReLU", "convert",
           "frozen", "stat_groups", "to_eager", "use"]
