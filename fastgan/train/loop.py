"""The trainer: feeds the step, and writes down what it does in a run folder.

    runs/00000-digits/  training_options.json  stats.jsonl  events.out.tfevents...  losses.png
                        reals.png  fakes_init.png  fakes000500.png ...
                        checkpoints/step000500.pt ...  generator.safetensors  config.json
"""

from __future__ import annotations

import math
import platform
import signal
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastgan import __version__, pictures
from fastgan.config import Config
from fastgan.data import Loader, open_dataset, to_model_range, to_uint8
from fastgan.errors import FastganError, first_line
from fastgan.files import reason
from fastgan.models import build
from fastgan.models.pretrained import Pretrained
from fastgan.nn import use
from fastgan.ops.engines import check_device
from fastgan.train import checkpoint, runs
from fastgan.train.diagnose import first_non_finite
from fastgan.train.host import peak_memory_gb, pick_device, say, signals
from fastgan.train.log import RunLog
from fastgan.train.step import GANStep


class Trainer:
    """`Trainer(config).fit()` trains in a new run folder; `Trainer.resume(folder).fit()` goes on in an old one.

    Raises `FastganError` for data, options or checkpoints that cannot be used.
    """

    def __init__(self, config: Config, folder: Path | None = None) -> None:
        self.config = config.validate()
        self.device = pick_device(config.run.device)
        check_device(config.run.impl, self.device)
        torch.manual_seed(config.run.seed)
        self.dataset = open_dataset(config.data, config.run.seed)
        if config.data.cond and self.dataset.labels is None:
            raise FastganError(f"--cond: {self.dataset.name} has no labels; expected class subfolders or labelled data")
        self.classes = self.dataset.classes if config.data.cond else []
        generator, discriminator = (
            use(network, config.run.impl).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in build(config.model, self.dataset.shape, len(self.classes)))
        self.loader = Loader(self.dataset, config.data, config.run.seed, self.device)
        if config.data.last_batch == "keep" and len(self.dataset) % config.data.batch == 1:
            raise FastganError(f"--last-batch keep --batch {config.data.batch}: the last batch of {len(self.dataset)} "
                               "would be 1 image, too few for statistics; expected drop, pad or rollover")
        self.step = GANStep(generator, discriminator, config.model, config.train)
        self.total = length(config, self.loader)
        self.folder = folder or runs.create(Path(config.run.outdir), config.preset)
        self.stopped_by: signal.Signals | None = None

    @classmethod
    def resume(cls, folder: Path, config: Config | None = None) -> Trainer:
        """The run in `folder` where its newest readable checkpoint left it; `config` may prolong it.

        Raises `FastganError` with a difference per key for options that would change what is computed.
        """
        before = runs.read_options(folder)
        runs.check_resume(folder, before, config or before)
        state, path, problems = checkpoint.read_newest(folder / "checkpoints")
        for problem in problems:
            say(f"{problem}; going back to {path.name}")
        trainer = cls(config or before, folder)
        try:
            trainer.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, FastganError):
                raise
            raise FastganError(f"{path} does not fit the run's own options: {first_line(error)}") from error
        return trainer

    def fit(self) -> Path:
        """Train to the end, or to Ctrl-C or SIGTERM, which save first; returns the run folder."""
        if self.step.steps == 0:
            self._write_facts()
        log = RunLog(self.folder, self.step.steps, self.config.run.tensorboard)
        bar = tqdm(total=self.total, initial=self.step.steps, unit="step", dynamic_ncols=True, desc=self.folder.name)
        try:
            with signals(self._stop):
                self._train(log, bar)
        except OSError as error:
            raise FastganError(f"cannot write to {self.folder}: {reason(error)}") from error
        finally:
            bar.close()
            log.close()
            self.loader.close()
        return self.folder

    def _train(self, log: RunLog, bar: tqdm) -> None:
        run, clock = self.config.run, _Clock(self.step.steps)
        while self.step.steps < self.total and self.stopped_by is None:
            real, labels = self._next_batch()
            values = _to_host(self.step(real, labels))
            done = self.step.steps
            if not all(map(math.isfinite, values.values())):
                self._stop_at_non_finite(values, real, labels)
            bar.update()
            if done % run.log_every == 0 or done == self.total:
                seconds = clock.lap(done)
                log.write({"step": done, **values, **self._facts(seconds)})
                bar.set_postfix_str(" ".join(f"{key} {values[key]:.3f}" for key in ("loss_d", "loss_g")
                                             if key in values), refresh=False)
            if done % run.snap == 0 or done == self.total or self.stopped_by is not None:
                self._snapshot(log, real)

    def _next_batch(self) -> tuple[Tensor, Tensor | None]:
        raw, labels = self.loader.next_batch()
        data = self.config.data
        real = to_model_range(raw, flip=data.flip, unit_range=data.unit_range, dtype=torch.float32)
        return real, labels if self.classes else None

    def _facts(self, seconds: float) -> dict[str, float]:
        batch, loader = self.config.data.batch, self.loader.state_dict()
        facts = {"epoch": loader["epoch"] + loader["cursor"] / len(self.dataset), "sec_per_step": seconds,
                 "images_per_sec": batch / seconds, "cpu_peak_gb": peak_memory_gb()}
        if self.device.type == "cuda":
            facts["gpu_peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return facts

    def _write_facts(self) -> None:
        """Before the first step: options, real data, and what the untrained generator makes."""
        runs.write_options(self.folder, self.config, {
            "device": str(self.device), "steps": self.total, "shape": list(self.dataset.shape),
            "data": self.dataset.summary(), "fingerprint": self.dataset.fingerprint, "classes": self.classes,
            "skipped": self.dataset.skipped, "parameters": self.step.parameter_counts(),
            "engine": "triton" if self.config.run.impl == "triton" else "reference (eager PyTorch)",
            "versions": {"fastgan": __version__, "torch": torch.__version__, "python": platform.python_version()}})
        self._picture("fakes_init.png")
        if self.dataset.shape == (2,):
            pictures.scatter(self.folder / "reals.png", real=self.examples)
        else:
            pictures.save(pictures.grid(self.examples), self.folder / "reals.png")

    @cached_property
    def examples(self) -> Tensor:
        """As much real data as a picture shows, (grid, C, H, W) uint8 or (grid, 2), in an order of its own."""
        loader = Loader(self.dataset, self.config.data, self.config.run.seed, torch.device("cpu"))
        count = min(self.config.run.grid, len(self.dataset))
        batches = [loader.next_batch()[0] for _ in range(math.ceil(count / self.config.data.batch))]
        loader.close()
        return torch.cat(batches)[:count]

    def _snapshot(self, log: RunLog, real: Tensor) -> None:
        """Pictures, curves, the generator for use elsewhere and, last, the checkpoint that stands for all of it."""
        self._picture(f"fakes{self.step.steps:06d}.png", real)
        pictures.loss_curves(log.records, self.folder / "losses.png")
        self.pretrained().save(self.folder)
        checkpoint.save(self.folder / "checkpoints", self.step.steps, self.state_dict(), self.config.run.keep)

    def pretrained(self) -> Pretrained:
        """What pictures are drawn from: the moving average where there is one, else the generator itself."""
        generator = self.step.ema.module if self.step.ema is not None else self.step.generator
        return Pretrained(generator, self.config.model, self.dataset.shape, self.classes, self.config.data.unit_range)

    def _picture(self, name: str, real: Tensor | None = None) -> None:
        run, path, unit = self.config.run, self.folder / name, self.config.data.unit_range
        if run.pictures == "side-by-side" and real is not None and self.step.fake is not None:
            halves = (to_uint8(x[: run.grid].float().cpu(), unit) for x in (self.step.fake, real))
            pictures.save(pictures.side_by_side(*halves), path)
            return
        source = self.pretrained()
        images = source.draw(source.noise.from_seeds(range(run.grid)), source.labels_in_turn(run.grid))
        if self.dataset.shape == (2,):
            pictures.scatter(path, real=self.examples, generated=images)
        else:
            pictures.save(pictures.grid(to_uint8(images, unit), _columns(run.grid, len(self.classes))), path)

    def _stop(self, received: signal.Signals) -> None:
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = received
        say(f"{received.name}: saving after this step (once more to stop at once)")

    def _stop_at_non_finite(self, values: dict[str, float], real: Tensor, labels: Tensor | None) -> None:
        """Save the state, which is the last good one, with the batch, and say which tensor broke first."""
        wrong = next(key for key, value in values.items() if not math.isfinite(value))
        path = self.folder / f"nonfinite{self.step.steps:06d}.pt"
        checkpoint.write(path, {**self.state_dict(), "real": real.cpu(), "labels": None if labels is None else
                                labels.cpu(), "z": None if self.step.z is None else self.step.z.cpu()})
        raise FastganError(f"{wrong} is {values[wrong]} at step {self.step.steps}; first non-finite tensor: "
                           f"{first_non_finite(self.step, real, labels)}; state and batch are in {path}")

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on as if it had not stopped."""
        state = {"step": self.step.state_dict(), "loader": self.loader.state_dict(), "rng": torch.get_rng_state(),
                 "fingerprint": self.dataset.fingerprint}
        if self.device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `FastganError` when the data is not what the run was trained on."""
        if state["fingerprint"] != self.dataset.fingerprint:
            raise FastganError(f"{self.dataset.name} has changed since {self.folder} was trained on it; "
                               "expected the same images, or a new run")
        self.step.load_state_dict(state["step"])
        self.loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


def length(config: Config, loader: Loader) -> int:
    """Steps of a whole run."""
    return config.train.steps or math.ceil(config.train.epochs * loader.steps_per_epoch)


class _Clock:
    """Seconds per step since the last lap."""

    def __init__(self, step: int) -> None:
        self.time, self.step = time.perf_counter(), step

    def lap(self, step: int) -> float:
        now = time.perf_counter()
        seconds = (now - self.time) / max(step - self.step, 1)
        self.time, self.step = now, step
        return seconds


def _to_host(record: dict[str, Tensor]) -> dict[str, float]:
    """All values in one transfer."""
    return dict(zip(record, torch.stack([value.float() for value in record.values()]).tolist(), strict=True))


def _columns(count: int, classes: int) -> int | None:
    """A column for each class where that fits the page."""
    return classes if 1 < classes <= min(count, 16) else None
