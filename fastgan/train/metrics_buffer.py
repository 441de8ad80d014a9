"""A device buffer for the metrics of the last K steps, one row for each step."""

from __future__ import annotations

import torch
from torch import Tensor

FIELDS = ("loss_d", "loss_g", "d_real", "d_fake", "grad_norm_d", "grad_norm_g", "diversity", "finite")


class MetricsBuffer:
    """Rows of `FIELDS`, float32 (K, F). Step t, counted from 0, writes row t mod K. NaN: not computed in that step."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = torch.full((rows, len(FIELDS)), torch.nan, dtype=torch.float32, device=device)
        self.nan = torch.full((), torch.nan, dtype=torch.float32, device=device)

    def write(self, t: Tensor, metrics: dict[str, Tensor]) -> None:
        """Write the scalars of step t (), an int64 tensor on the device."""
        row = torch.stack([metrics.get(name, self.nan).float() for name in FIELDS])
        self.rows.index_copy_(0, (t % len(self.rows)).view(1), row[None])

    def read(self, start: int, stop: int) -> list[dict[str, float]]:
        """The rows of steps [start, stop), at most the last K, oldest first. Waits for the device."""
        rows, size = self.rows.tolist(), len(self.rows)
        return [dict(zip(FIELDS, rows[t % size], strict=True)) for t in range(max(start, stop - size), stop)]
