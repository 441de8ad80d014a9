"""What an examination has found: numbers, or words for why there are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from fastgan.errors import first_line
from fastgan.ops import dispatch
from fastgan.ops.numerics import Nearness


class Found(NamedTuple):
    """Each quantity's nearness, and what went wrong, in words."""

    quantities: dict[str, Nearness]
    error: str = ""

    @property
    def worst(self) -> str:
        """The quantity that uses most of its allowance; "" without any."""
        return max(self.quantities, key=lambda name: self.quantities[name].used, default="")

    @property
    def passed(self) -> bool:
        return not self.error and all(one.used <= 1 for one in self.quantities.values())


def find(examine: Callable[[], dict[str, Nearness]], impl: str) -> Found:
    """What `examine` finds of an engine. An exception becomes words, and so does an engine that was replaced."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            quantities = examine()
    except Exception as error:  # of a compiler, a driver, a kernel: a finding like others, and the rest still counts
        return Found({}, f"{type(error).__name__}: {first_line(error)}")
    if dispatch.failed(impl):  # the reference went on in its place, and it is not what was asked for
        words = [str(one.message) for one in told if str(one.message).startswith("fastgan")]
        return Found(quantities, words[0] if words else f"kernels of {', '.join(dispatch.failed(impl))} failed before")
    return Found(quantities)
