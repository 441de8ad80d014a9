"""Logging to Weights & Biases by a callback (`pip install wandb`). WANDB_MODE=offline needs no account.

    python examples/weights_and_biases.py [STEPS]
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

import fastgan
from fastgan import presets


class WeightsAndBiases(fastgan.Callback):
    """Logs the records of each step, alerts, and the picture of each snapshot."""

    def on_start(self, trainer: fastgan.Trainer, step: int) -> None:
        self.run = wandb.init(project="fastgan", name=trainer.folder.name, dir=trainer.folder,
                              config=trainer.config.flat())

    def on_metrics(self, trainer: fastgan.Trainer, record: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in record.items() if key not in ("step", "alerts")}
        self.run.log(numbers, step=record["step"])
        for name, words in record.get("alerts", {}).items():
            self.run.alert(title=name, text=words)

    def on_snapshot(self, trainer: fastgan.Trainer, step: int, picture: Path) -> None:
        self.run.log({"generated": wandb.Image(str(picture))}, step=step)

    def on_end(self, trainer: fastgan.Trainer, step: int) -> None:
        self.run.finish()


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 600
config = presets.get("digits", cond=True, steps=steps, lr=1e-3, tensorboard=False)
folder = fastgan.Trainer(config, callbacks=[WeightsAndBiases()]).fit()
print(f"run: {folder}")
