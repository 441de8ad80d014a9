"""The engine "plan": each pass by the candidate that the plan in use names for it, when it is called."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops import library
from fastgan.ops.layers import Convolution, Measurement, Owed
from fastgan.ops.plan import candidates, current, problem


def stage(x: Tensor, owed: Owed, convolution: Convolution, groups: int, measurement: Measurement | None,
          fuse: bool) -> tuple[Tensor, Tensor]:
    chosen = current().choose(problem.of_forward(x, owed, convolution, groups, measurement))
    return candidates.stage(library.run, chosen, x, owed, convolution, groups, measurement, fuse)


def stage_backward(gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor, owed: Owed,
                   convolution: Convolution, spread: str, fuse: bool, needs: tuple[bool, bool, bool, bool],
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    asked = needs[0] or needs[3], needs[1] or needs[2]
    dgrad, wgrad = (current().choose(problem.of_backward(kind, gstatistics, x, owed, convolution, spread)) if wanted
                    else "" for kind, wanted in zip(("dgrad", "wgrad"), asked, strict=True))
    return candidates.stage_backward(library.run, dgrad, wgrad, gy, gstatistics, y, statistics, x, owed, convolution,
                                     spread, fuse, needs)


def normalise_activate(x: Tensor, owed: Owed) -> Tensor:
    chosen = current().choose(problem.of_apply("apply", x, owed))
    out: Tensor = library.run(chosen, "normalise_activate", x, owed)
    return out


def normalise_activate_backward(gout: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    chosen = current().choose(problem.of_apply("apply_backward", x, owed))
    out: tuple[Tensor, Tensor] = library.run(chosen, "normalise_activate_backward", gout, x, owed)
    return out
