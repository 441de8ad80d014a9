"""The trainer: sets up networks, data, step and run folder, and runs the training loop.

    runs/00000-digits/  training_options.json  stats.jsonl  events.out.tfevents...  losses.png
                        reals.png  fakes_init.png  fakes000500.png ...
                        checkpoints/step000500.pt ...  generator.safetensors  config.json
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fastgan import __version__
from fastgan.combinations import BATCH_NORMS
from fastgan.config import Config
from fastgan.data import make_feed, open_dataset
from fastgan.data.order import Shard
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, reason, remove_leftovers
from fastgan.models import build, weights
from fastgan.models.pretrained import Pretrained
from fastgan.nn import use
from fastgan.ops.engines import check_device
from fastgan.ops.tuning import Plan, table
from fastgan.ops.tuning import use as use_plan
from fastgan.train.graph import GraphedStep
from fastgan.train.precision import choose
from fastgan.train.step import GANStep, Savings
from fastgan.trainer import checkpoint, distributed, plan_setup, process_checks, run_files
from fastgan.trainer.callbacks import Callback, TensorBoard, started
from fastgan.trainer.evaluate import open_metrics
from fastgan.trainer.fetch_step import FetchStep
from fastgan.trainer.grad_allreduce import GradAllreduce
from fastgan.trainer.host import logger, signals
from fastgan.trainer.lock import Lock
from fastgan.trainer.log import RunLog, can_load
from fastgan.trainer.loop import TrainingLoop
from fastgan.trainer.run_pictures import RunPictures


class Trainer:
    """A run: `Trainer(config).fit()` trains in a new run folder, `Trainer.resume(folder).fit()` continues a run.

    Args:
        config: data, networks, training and output of the run.
        lock: the lock of an existing run folder; used by `resume`.
        callbacks: instances of `fastgan.Callback`, called after the built-in callback for TensorBoard.

    Raises:
        FastganError: for data, options or checkpoints that cannot be used.
    """

    def __init__(self, config: Config, lock: Lock | None = None, *, callbacks: Sequence[Callback] = ()) -> None:
        self.config = config = run_files.absolute(config.validate())
        self.world = distributed.world()
        shard = Shard(self.world.rank, self.world.size)
        process_checks.check_batch(config, shard.of)
        self.device = distributed.pick_device(config.run.device)
        check_device(config.run.impl, self.device)
        self.plan: Plan | None = plan_setup.pinned(config.run, self.device)
        precision = choose(config.run.precision, self.device)
        if config.run.graph == "on" and self.device.type != "cuda":
            raise FastganError(f"--graph on: CUDA graphs need a CUDA device, but this run is on {self.device}; "
                               "expected auto or off")
        if config.train.penalised and config.model.architecture == "dcgan" and config.model.norm_d in BATCH_NORMS:
            logger.warning(f"gradient penalty with --norm-d {config.model.norm_d}: the penalty is defined for single "
                           "images, but batch normalization mixes images; --norm-d none or spectral avoids this")
        torch.manual_seed(config.run.seed)
        data = config.data if lock is None else run_files.with_channels(config.data, lock.folder)
        self.dataset = distributed.local_first(lambda: open_dataset(data, config.run.seed))
        if shard.of > 1:
            distributed.check_equal(process_checks.common_values(config, self.dataset, precision))
        if config.data.cond and self.dataset.labels is None:
            raise FastganError(f"--cond: {self.dataset.name} has no labels; expected class subfolders or labeled data")
        self.classes = self.dataset.classes if config.data.cond else []
        self.metrics = open_metrics(config, self.dataset, self.device) if self.world.first else None
        resumed = lock is not None and bool(checkpoint.newest_first(lock.folder / "checkpoints"))
        generator, discriminator = self._build(with_given_weights=not resumed)
        rest = process_checks.check_last_batch(config, len(self.dataset), shard.of)
        if config.train.sync_bn and shard.of > 1:
            process_checks.check_statistics(generator, discriminator)
        processes = GradAllreduce(shard) if shard.of > 1 else None
        self.step = GANStep(generator, discriminator, config.model, config.train, precision=precision,
                            history=config.run.log_every, processes=processes, savings=Savings(keep_casts=True))
        self.feed = make_feed(self.dataset, config.data, config.run.seed, self.device, shard, self.step.kernels.gather)
        self.total = config.train.total_steps(self.feed.steps_per_epoch)
        self.step.total.fill_(self.total)
        sizes = [size // shard.of for size in (config.data.batch, rest) if size]
        self.eager = FetchStep(self.feed, self.step, self.dataset.shape, sizes, bool(self.classes))
        wanted = config.run.graph == "on" or (config.run.graph == "auto" and self.device.type == "cuda")
        self.graphed = GraphedStep(self.eager, processes) if wanted else None
        self.pictures = RunPictures(config, self.dataset)
        self.lock = lock or _locked(distributed.on_rank_0(self._new_folder))
        self.folder = self.lock.folder
        with_events = self.world.first and config.run.tensorboard
        events = [TensorBoard()] if with_events and can_load("tensorboard", "tensorboard", "TensorBoard curves") else []
        self.callbacks: list[Callback] = [*events, *callbacks] if self.world.first else []
        self.stop_signal = distributed.StopSignal()
        self.stopped_by: signal.Signals | None = None

    def _build(self, with_given_weights: bool) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator on the device, with the weights of --netG and --netD unless a checkpoint is
        loaded afterwards."""
        networks = build(self.config.model, self.dataset.shape, len(self.classes))
        files = (self.config.train.net_g, self.config.train.net_d)
        for network, file in zip(networks, files, strict=True) if with_given_weights else ():
            if file is not None:
                weights.put(weights.read(Path(file).expanduser()), network, Path(file))
        generator, discriminator = (
            use(network, self.config.run.impl).to(
                self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in networks)
        return generator, discriminator

    def _new_folder(self) -> Path:
        folder = run_files.create(Path(self.config.run.outdir), self.config)
        distributed.set_run_folder(folder)
        return folder

    @classmethod
    def launched(cls, config: Config, *, callbacks: Sequence[Callback] = ()) -> Trainer:
        """A new run; or, after a restart by `torchrun --max-restarts`, the run from before the restart, continued from
        its last checkpoint."""
        folder = distributed.on_rank_0(distributed.run_folder)
        if folder is None:
            return cls(config, callbacks=callbacks)
        logger.info(f"restarted: continuing in {folder}")
        return cls.resume(folder, config, callbacks=callbacks)

    @classmethod
    def resume(cls, folder: StrPath, config: Config | None = None, *,
               callbacks: Sequence[Callback] = ()) -> Trainer:
        """Continue the run in `folder` from its newest readable checkpoint, or from the start if it has none.

        Args:
            folder: the run folder.
            config: the configuration of the run with changed options, such as more steps; by default unchanged.
            callbacks: as in `Trainer`.

        Raises:
            FastganError: if another process trains in the folder, or if `config` changes options that a resumed run
                must not change; the message lists them.
        """
        folder = Path(folder)
        before = run_files.read_options(folder)
        run_files.check_resume(folder, before, config or before)
        lock = _locked(folder)
        try:
            distributed.on_rank_0(lambda: remove_leftovers(folder))
            trainer = cls(config or before, lock, callbacks=callbacks)
            trainer._load_newest(run_files.read_resolved(folder))
        except BaseException:
            lock.release()
            raise
        return trainer

    def _load_newest(self, was: dict[str, Any]) -> None:
        """Load the newest readable checkpoint, or start from the beginning if there is none."""
        now = {"device": str(self.device), "precision": self.step.precision}
        changed = [f"{key} {was[key]} -> {value}" for key, value in now.items() if was.get(key, value) != value]
        if changed:
            logger.warning(f"resumed with changes: {', '.join(changed)}; results are rounded differently from now on")
        folder = self.folder / "checkpoints"
        newest = distributed.on_rank_0(
            lambda: checkpoint.read_newest(folder) if checkpoint.newest_first(folder) else None)
        if newest is None:
            logger.warning(f"no checkpoint in {folder}: the run was stopped before its first checkpoint and starts "
                           "from the beginning")
            return
        state, path, problems = newest
        for problem in problems:
            logger.warning(f"{problem}; using {path.name} instead")
        try:
            self.load_state_dict(state)
        except FastganError:
            raise
        except Exception as error:  # PyTorch raises many types for files of another origin
            raise FastganError(f"{path} does not match the options of the run: {first_line(error)}") from error

    def fit(self) -> Path:
        """Train until the last step, or until Ctrl-C or SIGTERM, save, and return the run folder. Writes nothing if all
        steps of the run were already completed."""
        self.lock.take()
        try:
            if self.step.steps < self.total:
                self._begin()
                with use_plan(self.plan):
                    self._fit()
            else:
                made, constant = self.step.steps, self.config.train.lr_schedule == "constant"
                on = (f"to continue: fastgan resume {self.folder} --steps {2 * made}" if constant else
                      "its learning rate has fallen to 0; expected a new run by `fastgan train`")
                logger.info(f"nothing to do: the run has completed {made} steps, and its length is {self.total}; {on}")
        except OSError as error:
            raise FastganError(f"cannot read or write {error.filename or self.folder}: {reason(error)}") from error
        finally:
            self.feed.close()
            if self.graphed is not None:
                self.graphed.close()
            self.lock.release()
        return self.folder

    def _begin(self) -> None:
        """Before the first step: prepare the metrics, and measure the plan."""
        if self.metrics is not None:
            self.metrics.learn()
            for message in self.metrics.doubts():
                logger.warning(message)
        self.plan = distributed.on_rank_0(self._decide_plan)
        distributed.broadcast(self.step.state())

    def _decide_plan(self) -> Plan | None:
        batch = plan_setup.like_a_batch(self.config.data.batch // self.world.size, self.dataset.shape,
                                        bool(self.classes), self.device)
        return plan_setup.decide(self.config.run, self.plan, self.step, self.folder, batch)

    def _fit(self) -> None:
        self.write_options()
        if self.step.steps == 0:
            distributed.on_rank_0(self._first_pictures)
        log = RunLog(self.folder, self.step.steps) if self.world.first else None
        with (closing(log) if log is not None else nullcontext(), started(self.callbacks, self),
              tqdm(total=self.total, initial=self.step.steps, unit="step", dynamic_ncols=True, desc=self.folder.name,
                   disable=log is None) as bar, signals(self._stop)):
            TrainingLoop(self, log, bar).run()

    def write_options(self) -> None:
        # called again when the graphs are replaced by eager steps
        if not self.world.first:
            return
        graph = "off" if self.graphed is None else self.graphed.description
        run_files.write_options(self.folder, self.config, {
            "device": str(self.device), "steps": self.total, "shape": list(self.dataset.shape),
            "data": self.dataset.summary(), "fingerprint": self.dataset.fingerprint, "classes": self.classes,
            "skipped": self.dataset.skipped, "parameters": self.step.parameter_counts(),
            "engine": table.engine(self.plan, self.device) if self.config.run.impl == "auto" else self.config.run.impl,
            "plan": table.choices(self.plan),
            "precision": self.step.precision, "graph": graph, "processes": self.world.size,
            "discriminator": "real and fake together" if self.step.together else "real and fake one after the other",
            "versions": {"fastgan": __version__, "torch": torch.__version__, "python": platform.python_version()}})

    def _first_pictures(self) -> None:
        """Before the first step, save pictures of real data and of the untrained generator."""
        self.save_generated("fakes_init.png")
        self.pictures.save_real(self.folder / "reals.png")

    def save_generated(self, name: str) -> None:
        self.pictures.save_generated(self.folder / name, self.pretrained(), self.step.buffers)

    def pretrained(self) -> Pretrained:
        """The generator for sampling: its moving average, with measured running statistics, if the run has one,
        otherwise the generator itself."""
        generator = self.step.ema.module if self.step.ema is not None else self.step.generator
        source = Pretrained(generator, self.config.model, self.dataset.shape, self.classes, self.config.data.unit_range)
        if self.step.ema is not None:
            source.measure_statistics()
        return source

    def _stop(self, received: signal.Signals) -> None:
        if self.stopped_by is not None:
            if self.world.size > 1:
                return  # torchrun may send the signal twice; it kills a process that does not end
            raise KeyboardInterrupt
        self.stopped_by = received
        again = " (repeat to stop immediately)" * (self.world.size == 1)
        logger.info(f"{received.name}: saving after this step{again}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to continue the run exactly."""
        state = {"step": self.step.state_dict(), "loader": self.feed.state_dict(), "rng": torch.get_rng_state(),
                 "fingerprint": self.dataset.fingerprint}
        if self.device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict`. Raises `FastganError` if the data has changed since it was saved."""
        if state["fingerprint"] != self.dataset.fingerprint:
            raise FastganError(f"{self.dataset.name} has changed since {self.folder} was trained on it; "
                               "expected the same images, or a new run")
        self.step.load_state_dict(state["step"])
        self.feed.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


def _locked(folder: Path) -> Lock:
    """The lock of a run folder, which rank 0 holds for all processes."""
    locks: list[Lock] = []
    distributed.on_rank_0(lambda: locks.append(Lock(folder)))
    return locks[0] if locks else Lock(folder, by_rank_0=True)
