"""Callbacks of a training run: `Trainer(config, callbacks=[...])`.

    class Print(fastgan.Callback):
        def on_metrics(self, trainer, record):
            print(record["step"], record.get("loss_g"))

    fastgan.Trainer(config, callbacks=[Print()]).fit()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fastgan.trainer.log import TAGS

if TYPE_CHECKING:
    from fastgan.trainer.trainer import Trainer


class Callback:
    """Base class of callbacks. Its methods do nothing; subclasses override them.

    Callbacks may read the trainer (`config`, `folder`, `step`, `pretrained()`) but must not change it. An exception in
    a callback ends the run. With several processes, only the first calls its callbacks.
    """

    def on_start(self, trainer: Trainer, step: int) -> None:
        """Called before the first step of `fit`. `step` is the number of completed steps, 0 for a new run."""

    def on_metrics(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Called with each new record of stats.jsonl: "step", numbers by name, and, if there are any, "alerts"
        (messages by name)."""

    def on_snapshot(self, trainer: Trainer, step: int, picture: Path) -> None:
        """Called when the picture of the fakes after `step` steps has been written."""

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        """Called when the generator in the run folder and the checkpoint of `step` have been written."""

    def on_end(self, trainer: Trainer, step: int) -> None:
        """Called after the last step, a signal or an error. `step` is the number of completed steps."""


class TensorBoard(Callback):
    """Writes TensorBoard events to the run folder. When a run is resumed, events of later steps are removed."""

    def on_start(self, trainer: Trainer, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._events = SummaryWriter(str(trainer.folder), purge_step=step + 1)
        if step == 0:
            self._picture("generated", trainer.folder / "fakes_init.png", 0)
            self._picture("real", trainer.folder / "reals.png", 0)

    def on_metrics(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            if key in TAGS:
                self._events.add_scalar(TAGS[key], value, record["step"])
        for name, words in record.get("alerts", {}).items():
            self._events.add_text(f"Alerts/{name}", words, record["step"])

    def on_snapshot(self, trainer: Trainer, step: int, picture: Path) -> None:
        self._picture("generated", picture, step)

    def on_end(self, trainer: Trainer, step: int) -> None:
        self._events.close()

    def _picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._events.add_image(f"Samples/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")


@contextmanager
def started(callbacks: Sequence[Callback], trainer: Trainer) -> Iterator[None]:
    """A context manager that starts the callbacks, and at its end ends those that were started, in reverse order."""
    with ExitStack() as ends:
        for callback in callbacks:
            callback.on_start(trainer, trainer.step.steps)
            ends.callback(_end, callback, trainer)
        yield


def _end(callback: Callback, trainer: Trainer) -> None:
    callback.on_end(trainer, trainer.step.steps)
