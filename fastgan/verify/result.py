"""The result of a check of the certificate: errors relative to float64, or the exception that ended it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from fastgan.errors import first_line
from fastgan.ops import dispatch
from fastgan.ops.numerics import Nearness


class Result(NamedTuple):
    """The nearness of each quantity by name, and an error message ("" if there is none)."""

    quantities: dict[str, Nearness]
    error: str = ""

    @property
    def worst(self) -> str:
        """The quantity with the largest ratio of error and allowed error; "" if there are none."""
        return max(self.quantities, key=lambda name: self.quantities[name].used, default="")

    @property
    def passed(self) -> bool:
        return not self.error and all(one.used <= 1 for one in self.quantities.values())


def run(compare: Callable[[], dict[str, Nearness]], impl: str) -> Result:
    """Run a comparison of one engine. Exceptions, and kernels that the reference engine replaced, count as errors."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantities = compare()
    except Exception as error:  # from a compiler, a driver or a kernel; the other checks still run
        return Result({}, f"{type(error).__name__}: {first_line(error)}")
    if dispatch.failed(impl):
        messages = [str(one.message) for one in caught if str(one.message).startswith("fastgan")]
        return Result(quantities, next(iter(messages), f"kernels of {', '.join(dispatch.failed(impl))} failed before"))
    return Result(quantities)
