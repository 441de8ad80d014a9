"""What a training step must cost at least on a device: a model, counted from the step itself (docs/cost.md)."""

from fastgan.verify.cost.model import count, limit

__all__ = ["count", "limit"]
