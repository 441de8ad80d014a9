"""How good a generator's images are, in numbers, against the real ones: `Metrics`."""

from fastgan.metrics.measured import Metrics

__all__ = ["Metrics"]
