"""Quality of a generator's images, in numbers, relative to real images: `Metrics`."""

from fastgan.metrics.metrics import Metrics

__all__ = ["Metrics"]
