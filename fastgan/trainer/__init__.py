"""Training runs: the loop, its checkpoints, logs and measurements, and what a run folder holds."""

from fastgan.trainer.loop import Trainer

__all__ = ["Trainer"]
