"""Training: the step, the trainer that runs it, and what a run leaves behind."""

from fastgan.train.graph import GraphedStep
from fastgan.train.loop import Trainer
from fastgan.train.step import GANStep

__all__ = ["GANStep", "GraphedStep", "Trainer"]
