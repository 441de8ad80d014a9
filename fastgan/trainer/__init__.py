"""Training runs: the loop, its checkpoints, logs and metrics, and the files of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgan.trainer.callbacks import Callback
    from fastgan.trainer.trainer import Trainer

__all__ = ["Callback", "Trainer"]

if not TYPE_CHECKING:  # a type checker sees the import above, and unknown names as errors

    def __getattr__(name: str) -> object:
        """Each name on first use: the command line reads run folders without importing torch."""
        if name == "Trainer":
            from fastgan.trainer.trainer import Trainer

            return Trainer
        if name == "Callback":
            from fastgan.trainer.callbacks import Callback

            return Callback
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
