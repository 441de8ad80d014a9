"""Training runs: the loop, checkpoints, logs and metrics, and the files of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgan.trainer.callbacks import Callback
    from fastgan.trainer.trainer import Trainer

__all__ = ["Callback", "Trainer"]

if not TYPE_CHECKING:  # hidden from type checkers, which then report unknown names as errors

    def __getattr__(name: str) -> object:
        """Import each name on first use, so that the command line can read run folders without importing torch."""
        if name == "Trainer":
            from fastgan.trainer.trainer import Trainer

            return Trainer
        if name == "Callback":
            from fastgan.trainer.callbacks import Callback

            return Callback
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
