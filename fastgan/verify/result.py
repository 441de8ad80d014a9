"""The result of a check of the certificate: distances from float64, or the error that ended it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from fastgan.errors import first_line
from fastgan.ops import dispatch
from fastgan.ops.numerics import Nearness


class Result(NamedTuple):
    """The nearness of each quantity by name, and an error message, "" without one."""

    quantities: dict[str, Nearness]
    error: str = ""

    @property
    def worst(self) -> str:
        """The quantity that uses most of its allowance; "" without any."""
        return max(self.quantities, key=lambda name: self.quantities[name].used, default="")

    @property
    def passed(self) -> bool:
        return not self.error and all(one.used <= 1 for one in self.quantities.values())


def run(compare: Callable[[], dict[str, Nearness]], impl: str) -> Result:
    """The result of a comparison of one engine. Exceptions, and kernels that the reference replaced, are errors."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantities = compare()
    except Exception as error:  # of a compiler, a driver or a kernel: the other checks still run
        return Result({}, f"{type(error).__name__}: {first_line(error)}")
    if dispatch.failed(impl):
        messages = [str(one.message) for one in caught if str(one.message).startswith("fastgan")]
        return Result(quantities, next(iter(messages), f"kernels of {', '.join(dispatch.failed(impl))} failed before"))
    return Result(quantities)
