"""Images and how they become batches: `open_dataset` reads a source, `Loader` hands out its batches."""

from fastgan.data.dataset import Dataset
from fastgan.data.loader import Loader
from fastgan.data.pixels import to_model_range, to_uint8
from fastgan.data.sources import open_dataset

__all__ = ["Dataset", "Loader", "open_dataset", "to_model_range", "to_uint8"]
