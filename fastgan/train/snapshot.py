"""Copies of a training step's state for restoring it, and a distance between states."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError


class Snapshot:
    """Copies of all tensors of `state()` and of all random states on the host and the device.

    As a context manager, it restores them at the end. cuda: torch.cuda on a GPU, or a substitute for it.
    """

    def __init__(self, state: Callable[[], list[Tensor]], device: torch.device, cuda: Any = None) -> None:
        self.state, self.device = state, device
        self.cuda = torch.cuda if cuda is None and device.type == "cuda" else cuda
        self.tensors = [t.detach().clone() for t in state()]
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.random_of_device = self.cuda.get_rng_state(device) if self.cuda is not None else None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything in place. Raises `FastganError` if the number or shapes of the tensors have changed."""
        live = self.state()
        if [t.shape for t in live] != [t.shape for t in self.tensors]:
            raise FastganError(f"a run of the step changed the number of state tensors from {len(self.tensors)} to "
                               f"{len(live)}, or their shapes, which cannot be undone; expected all state to exist "
                               "before the first step")
        for tensor, saved in zip(live, self.tensors, strict=True):
            tensor.copy_(saved)
        python, numpy, host = self.random
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        if self.cuda is not None:
            self.cuda.set_rng_state(self.random_of_device, self.device)

    def renew_generator(self) -> None:
        """Repair the device's generator if PyTorch has left it in a capturing state after a failed capture."""
        generator = self.cuda.default_generators[self.device.index or 0]
        try:
            torch.rand((), device=self.device)
        except RuntimeError:
            if hasattr(generator, "graphsafe_set_state"):
                generator.graphsafe_set_state(generator.clone_state())


def distance(start: Sequence[Tensor], left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The distance of `left` and `right` relative to that of `left` and `start`: the RMS over all tensors of their
    relative distances.

    The distance is infinite if integer tensors differ. Needs one transfer to the host.
    """
    parts = [_relative(s, a.detach(), b.detach()) for s, a, b in zip(start, left, right, strict=True) if s.numel()]
    return torch.stack(parts).square().mean().sqrt().item()


def _relative(start: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The relative distance for one tensor, () float32."""
    if not left.is_floating_point():
        return torch.where((left != right).any(), torch.inf, 0.0)
    # NaN is a metric that was not computed in a step
    apart, moved = _rms(left, right), _rms(*(torch.where(t.isnan(), 0, t) for t in (left, start)))
    return torch.where(moved > 0, apart / moved, (apart != 0).float()).float()


def _rms(left: Tensor, right: Tensor) -> Tensor:
    """The root mean square of the differences. Equal infinities, and NaN on both sides, count as equal."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    same = (left == right) | (left.isnan() & right.isnan())
    return torch.where(same, 0.0, left.to(dtype) - right.to(dtype)).square().mean().sqrt()
