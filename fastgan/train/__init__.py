"""The training step as a library: losses, optimizers, and the whole step as one CUDA graph."""

from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep

__all__ = ["GANStep", "GraphedStep"]
