"""The training step as a library: networks, losses, optimizers, and the step in one CUDA graph."""

from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep

__all__ = ["GANStep", "GraphedStep"]
