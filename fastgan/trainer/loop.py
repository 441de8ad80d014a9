"""The training loop of `Trainer.fit`: runs the steps, reads their metrics every --log-every steps, logs and saves."""

from __future__ import annotations

import math
import signal
import time
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from fastgan.metrics.merit import best
from fastgan.trainer import checkpoint, diagnose, distributed
from fastgan.trainer.alerts import Alerts
from fastgan.trainer.host import logger, peak_memory_gb
from fastgan.trainer.log import RunLog

if TYPE_CHECKING:
    from fastgan.trainer.trainer import Trainer


class TrainingLoop:
    """Trains from the trainer's current step to the last step, or until a stop signal. log: None except on rank 0."""

    def __init__(self, trainer: Trainer, log: RunLog | None, bar: tqdm) -> None:
        self.trainer, self.step, self.log, self.bar = trainer, trainer.step, log, bar
        self._read = self._timed = trainer.step.steps  # last step with known metrics, and with known time
        self._time, self._snapped = time.perf_counter(), time.monotonic()
        self._saved = trainer.step.steps or None
        self._alerts = Alerts(trainer.config.train.loss, [] if log is None else log.records,
                              conditional=bool(trainer.classes))

    def run(self) -> None:
        trainer, run = self.trainer, self.trainer.config.run
        snap = run.snapshot_steps(trainer.total)
        while self.step.steps < trainer.total and not self._must_stop():
            if self._read == self.step.steps:  # before the first step, and after callbacks, which may change parameters
                self.step.refresh()
            self.make_step()
            self.bar.update()
            done, last = self.step.steps, self.step.steps == trainer.total
            if done % run.log_every and done % snap and not last:
                continue
            metrics = self._read_metrics()
            if done % run.log_every == 0 or last:
                self._log_step(metrics)
            if done % snap == 0 or last:
                self._snapshot()
                self._measure()
            elif run.snap_minutes and distributed.on_rank_0(self._is_due):
                self._snapshot()
        # after the loop, because a signal may arrive anywhere in it
        if self._saved != self.step.steps:
            if self._read != self.step.steps:
                self._read_metrics()
            self._snapshot()

    def make_step(self) -> None:
        """Run one step, by the graph if there is one, and eagerly for a short last batch."""
        trainer = self.trainer
        size = trainer.eager.prepare()
        if trainer.graphed is None or size < trainer.config.data.batch // trainer.world.size:
            trainer.eager()
            return
        before = trainer.graphed.description
        trainer.graphed()
        if trainer.graphed.description != before:
            trainer.write_options()

    def _must_stop(self) -> bool:
        """Whether any process received a stop signal. The answer is the same in all processes, so that they stop after
        the same step."""
        trainer = self.trainer
        number = trainer.stop_signal.number(0 if trainer.stopped_by is None else trainer.stopped_by)
        if number:
            trainer.stopped_by = signal.Signals(number)
        return number > 0

    def _read_metrics(self) -> dict[str, float]:
        """The metrics of the last step. Raises `FastganError` if any step since the last call was not finite.

        This is the only place where the host waits for the device.
        """
        rows = self.step.metrics_buffer.read(self._read, self.step.steps)
        for number, row in enumerate(rows, self.step.steps - len(rows)):
            if row["finite"] != 1:
                self._stop_at_non_finite(number, row)
        self._read = self.step.steps
        return {key: value for key, value in rows[-1].items() if math.isfinite(value) and key != "finite"}

    def _stop_at_non_finite(self, number: int, metrics: dict[str, float]) -> None:
        """Save the last finite state and the inputs of the failed step, and raise `FastganError`."""
        self.step.steps = number
        suffix = "" if self.trainer.world.first else f"-{self.trainer.world.rank}"
        path = self.trainer.folder / f"nonfinite{number + 1:06d}{suffix}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)  # it may not exist on another machine
        assert self.step.buffers is not None
        inputs = {name: getattr(self.step.buffers, name) for name in ("real", "z", "labels")}
        checkpoint.write(path, {**self.trainer.state_dict(), **{
            name: None if tensor is None else tensor.cpu() for name, tensor in inputs.items()}})
        raise diagnose.error(self.step, metrics, path)

    def _log_step(self, metrics: dict[str, float]) -> None:
        if self.log is None:
            return
        self._write({"step": self.step.steps, **metrics, **self._resources()})
        losses = {"D": "loss_d", "G": "loss_g"}
        self.bar.set_postfix_str(" ".join(f"{name} {metrics[key]:.2f}" for name, key in losses.items()
                                          if key in metrics), refresh=False)

    def _write(self, record: dict[str, Any]) -> None:
        """Write a record to the log, with its alerts, and pass it to the callbacks."""
        assert self.log is not None
        alerts = self._alerts.look(record, self._saved is not None)
        record = record | {"alerts": alerts} if alerts else record
        self.log.write(record)
        for callback in self.trainer.callbacks:
            callback.on_metrics(self.trainer, record)
        for message in alerts.values():
            logger.warning(message)

    def _resources(self) -> dict[str, float]:
        trainer, position, seconds = self.trainer, self.trainer.feed.state_dict(), self._seconds_per_step()
        resources = {"epoch": position["epoch"] + position["cursor"] / len(trainer.dataset), "sec_per_step": seconds,
                     "images_per_sec": trainer.config.data.batch / seconds, "cpu_peak_gb": peak_memory_gb()}
        if trainer.device.type == "cuda":
            resources["gpu_peak_gb"] = torch.cuda.max_memory_allocated(trainer.device) / 2**30
        return resources

    def _seconds_per_step(self) -> float:
        """Mean time of a step since the last call."""
        now, step = time.perf_counter(), self.step.steps
        seconds = max(now - self._time, 1e-9) / max(step - self._timed, 1)  # the clock may have a low resolution
        self._time, self._timed = now, step
        return seconds

    def _is_due(self) -> bool:
        """Whether --snap-minutes have passed since the last snapshot or the start."""
        return time.monotonic() - self._snapped > 60 * self.trainer.config.run.snap_minutes

    def _snapshot(self) -> None:
        """Save pictures, curves, the generator, and finally the checkpoint."""
        distributed.on_rank_0(self._save)
        self._saved, self._snapped = self.step.steps, time.monotonic()

    def _save(self) -> None:
        assert self.log is not None
        trainer, step = self.trainer, self.step.steps
        picture = trainer.folder / f"fakes{step:06d}.png"
        trainer.save_generated(picture.name)
        for callback in trainer.callbacks:
            callback.on_snapshot(trainer, step, picture)
        self.log.plot(trainer.folder / "losses.png")
        trainer.pretrained().save(trainer.folder)
        path = checkpoint.save(trainer.folder / "checkpoints", step, trainer.state_dict(), trainer.config.run.keep)
        for callback in trainer.callbacks:
            callback.on_checkpoint(trainer, step, path)

    def _measure(self) -> None:
        """Compute the metrics of --metrics, log them, and keep the best checkpoint. Not counted as time of steps."""
        trainer = self.trainer
        if self.log is not None and trainer.metrics is not None and trainer.stopped_by is None:
            self._write({"step": self.step.steps, **trainer.metrics.of(trainer.pretrained())})
            if best(self.log.records) is self.log.records[-1]:
                checkpoint.keep_best(trainer.folder / "checkpoints", self.step.steps)
                (trainer.folder / "best").mkdir(exist_ok=True)
                trainer.pretrained().save(trainer.folder / "best")
            self._seconds_per_step()
