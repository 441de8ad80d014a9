"""Images and their batches: `open_dataset` reads a source, `make_feed` provides its batches to a training step.

`Loader` returns the same batches one by one, as bytes.
"""

from fastgan.data.dataset import Dataset
from fastgan.data.feed import Feed, make_feed
from fastgan.data.loader import Loader
from fastgan.data.pixels import to_model_range, to_uint8
from fastgan.data.sources import open_dataset

__all__ = ["Dataset", "Feed", "Loader", "make_feed", "open_dataset", "to_model_range", "to_uint8"]
