"""Images and how they become batches: `open_dataset` reads a source, `make_feed` brings its batches to a training step.

`Loader` hands out the same batches one by one, as they come from the source.
"""

from fastgan.data.dataset import Dataset
from fastgan.data.feed import Feed, make_feed
from fastgan.data.loader import Loader
from fastgan.data.pixels import to_model_range, to_uint8
from fastgan.data.sources import open_dataset

__all__ = ["Dataset", "Feed", "Loader", "make_feed", "open_dataset", "to_model_range", "to_uint8"]
