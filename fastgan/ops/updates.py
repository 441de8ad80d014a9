"""Operators of `torch.library` that gather a batch, fill inputs, update by Adam and end a step. Dispatch modes see what
they modify.

Only Triton computes them; `update.py`, `inputs.py` and `finish.py` in `fastgan/ops/triton` describe the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.register import register

SCHEMAS = {
    "gather": "(Tensor data, Tensor? labels, Tensor queue, Tensor(a!) cursor, Tensor? draws, bool unit_range, "
              "Tensor(b!) images, Tensor(c!)? chosen) -> ()",
    "copy_unless": "(Tensor halted, Tensor[] sources, Tensor(a!)[] targets) -> ()",
    "gradient_norm": "(Tensor[] grads, Tensor loss, Tensor skip, float clip) -> Tensor",
    # copied: indices of the parameters with a 16-bit copy; averages: empty, or one for each parameter
    "adam": "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] first, Tensor(c!)[] second, Tensor(d!) counts, "
            "Tensor add, Tensor rate, int[] places, Tensor norm, float[] betas, float eps, bool hat, float decay, "
            "Tensor(e!)[] copies, int[] copied, Tensor(f!)[] averages, Tensor(g!)? updates) -> ()",
    "finish_step": "(Tensor images, Tensor[] metrics, Tensor skip, Tensor(a!) halted, Tensor(b!) t, Tensor(c!) rows, "
                   "int losses, bool scaled, bool real_first) -> Tensor",
}


def _gather(data: Tensor, labels: Tensor | None, queue: Tensor, cursor: Tensor, draws: Tensor | None, unit_range: bool,
            images: Tensor, chosen: Tensor | None) -> None:
    from fastgan.ops.triton import inputs

    inputs.gather(data, labels, queue, cursor, draws, unit_range, images, chosen)


def _copy_unless(halted: Tensor, sources: list[Tensor], targets: list[Tensor]) -> None:
    from fastgan.ops.triton import inputs

    inputs.copy_unless(halted, sources, targets)


def _gradient_norm(grads: list[Tensor], loss: Tensor, skip: Tensor, clip: float) -> Tensor:
    from fastgan.ops.triton import update

    return update.gradient_norm(grads, loss, skip, clip)


def _adam(params: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], counts: Tensor,
          add: Tensor, rate: Tensor, places: list[int], norm: Tensor, *rest: Any) -> None:
    from fastgan.ops.triton import update

    (beta1, beta2), eps, hat, decay, copies, copied, averages, updates = rest
    moments = update.Moments(tuple(first), tuple(second), counts, add, rate, tuple(places))
    with_copy = dict(zip(copied, copies, strict=True))
    update.adam(params, grads, moments, norm, update.AdamOptions(beta1, beta2, eps, hat, decay),
                [with_copy.get(i) for i in range(len(params))],
                update.Average(tuple(averages), updates) if averages else None)


def _finish_step(images: Tensor, metrics: list[Tensor], skip: Tensor, halted: Tensor, t: Tensor, rows: Tensor,
                 losses: int, scaled: bool, real_first: bool) -> Tensor:
    from fastgan.ops.triton import finish

    state = finish.StepState(skip, halted, t, rows, losses, scaled)
    return finish.finish_step(images, metrics, state, real_first=real_first)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "gather": _gather, "copy_unless": _copy_unless, "gradient_norm": _gradient_norm, "adam": _adam,
    "finish_step": _finish_step}
_FAKES: dict[str, Callable[..., Any]] = {
    "gather": lambda *_: None, "copy_unless": lambda *_: None,
    "gradient_norm": lambda grads, *_: grads[0].new_empty(3), "adam": lambda *_: None,
    "finish_step": lambda images, metrics, skip, halted, t, rows, *_: rows.new_empty(2)}

register(SCHEMAS, IMPLEMENTATIONS, _FAKES)
gather: Callable[..., None] = torch.ops.fastgan.gather
copy_unless: Callable[..., None] = torch.ops.fastgan.copy_unless
gradient_norm: Callable[..., Tensor] = torch.ops.fastgan.gradient_norm
adam: Callable[..., None] = torch.ops.fastgan.adam
finish_step: Callable[..., Tensor] = torch.ops.fastgan.finish_step
