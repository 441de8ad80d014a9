"""Metrics of the quality of generated images, relative to real images: `Metrics`."""

from fastgan.metrics.metrics import Metrics

__all__ = ["Metrics"]
