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
from contextlib import closing, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastgan import __version__, pictures
from fastgan.config import Config, option
from fastgan.data import Dataset, Loader, make_feed, open_dataset, to_uint8
from fastgan.data.order import Shard
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, reason, remove_leftovers
from fastgan.metrics import Metrics
from fastgan.models import build, weights
from fastgan.models.pretrained import Pretrained
from fastgan.nn import use
from fastgan.ops.engines import check_device
from fastgan.ops.tuning import Plan, table
from fastgan.ops.tuning import use as use_plan
from fastgan.train import distributed
from fastgan.train.graph import GraphedStep
from fastgan.train.host import peak_memory_gb, say, signals
from fastgan.train.precision import choose
from fastgan.train.step import GANStep
from fastgan.trainer import checkpoint, plan_setup, run_files
from fastgan.trainer.alerts import Alerts
from fastgan.trainer.diagnose import first_non_finite
from fastgan.trainer.fetch_step import FedStep
from fastgan.trainer.lock import Lock
from fastgan.trainer.log import RunLog

# what may differ between processes on several machines: devices, and where files lie
MACHINES_OWN = {"device", "gpu_data_gb", "source", "data_root", "workers", "outdir", "plan", "net_g", "net_d",
                "metrics_weights"}


class Trainer:
    """`Trainer(config).fit()` trains in a new run folder; `Trainer.resume(folder).fit()` goes on in an old one.

    Raises `FastganError` for data, options or checkpoints that cannot be used.
    """

    def __init__(self, config: Config, lock: Lock | None = None) -> None:
        self.config = config = run_files.absolute(config.validate())
        self.world = distributed.world()
        part = Shard(self.world.rank, self.world.size)
        _check_parts(config, part.of)
        self.device = distributed.pick_device(config.run.device)
        check_device(config.run.impl, self.device)
        self.plan: Plan | None = plan_setup.pinned(config.run, self.device)
        precision = choose(config.run.precision, self.device)
        if config.run.graph == "on" and self.device.type != "cuda":
            raise FastganError(f"--graph on: CUDA graphs need a CUDA device, this run is on {self.device}; expected "
                               "auto or off")
        torch.manual_seed(config.run.seed)
        self.dataset = distributed.local_first(lambda: open_dataset(config.data, config.run.seed))
        if part.of > 1:
            distributed.compare(_in_common(config, self.dataset, precision))
        if config.data.cond and self.dataset.labels is None:
            raise FastganError(f"--cond: {self.dataset.name} has no labels; expected class subfolders or labelled data")
        self.classes = self.dataset.classes if config.data.cond else []
        self.metrics = open_metrics(config, self.dataset, self.device) if self.world.first else None
        networks = build(config.model, self.dataset.shape, len(self.classes))
        if lock is None or not checkpoint.newest_first(lock.folder / "checkpoints"):  # which has what became of them
            for network, given in zip(networks, (config.train.net_g, config.train.net_d), strict=True):
                if given is not None:
                    weights.put(weights.read(Path(given).expanduser()), network, Path(given))
        generator, discriminator = (
            use(network, config.run.impl).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in networks)
        self.feed = make_feed(self.dataset, config.data, config.run.seed, self.device, part)
        rest = len(self.dataset) % config.data.batch if config.data.last_batch == "keep" else 0
        if rest == 1 or rest % part.of or (rest == part.of and not config.train.sync_bn):
            raise FastganError(f"--last-batch keep --batch {config.data.batch}: the last batch of {len(self.dataset)} "
                               f"would be {_images(rest, part.of)}, too few for statistics; expected drop, pad or "
                               "rollover")
        self.step = GANStep(generator, discriminator, config.model, config.train, precision=precision,
                            history=config.run.log_every, part=part)
        self.total = length(config, self.feed.steps_per_epoch)
        self.step.total.fill_(self.total)
        sizes = [size // part.of for size in (config.data.batch, rest) if size]
        self.eager = FedStep(self.feed, self.step, self.dataset.shape, sizes, bool(self.classes))
        wanted = config.run.graph == "on" or (config.run.graph == "auto" and self.device.type == "cuda")
        self.graphed = GraphedStep(self.eager) if wanted else None
        self.lock = lock or _locked(distributed.agree(self._new_folder))
        self.folder = self.lock.folder
        self._stopping = distributed.Stop()
        self.stopped_by: signal.Signals | None = None

    def _new_folder(self) -> Path:
        folder = run_files.create(Path(self.config.run.outdir), self.config)
        run_files.mark_launch(folder, distributed.launch_names())
        return folder

    @classmethod
    def launched(cls, config: Config) -> Trainer:
        """A new run; or, where `torchrun` has started its processes again after it lost one, the run that they began,
        from its last checkpoint."""
        names = distributed.launch_names()[: None if distributed.restarted() else 1]
        folder = distributed.agree(lambda: run_files.of_launch(Path(config.run.outdir), names))
        if folder is None:
            return cls(config)
        say(f"started again: going on in {folder}")
        return cls.resume(folder, config)

    @classmethod
    def resume(cls, folder: StrPath, config: Config | None = None) -> Trainer:
        """The run in `folder` where its newest readable checkpoint left it; `config` may prolong it.

        One that was stopped before its first checkpoint begins again. Raises `FastganError` where another process
        trains in the folder, and with a difference per key for options that would change what is computed.
        """
        folder = Path(folder)
        before = run_files.read_options(folder)
        run_files.check_resume(folder, before, config or before)
        lock = _locked(folder)
        try:
            distributed.agree(lambda: remove_leftovers(folder))
            trainer = cls(config or before, lock)
            trainer._go_on(run_files.read_resolved(folder))
        except BaseException:
            lock.release()
            raise
        return trainer

    def _go_on(self, was: dict[str, Any]) -> None:
        """From the newest readable checkpoint, or from the start where the run has come to none."""
        now = {"device": str(self.device), "precision": self.step.precision}
        changed = [f"{key} {was[key]} -> {value}" for key, value in now.items() if was.get(key, value) != value]
        if changed:
            say(f"not as it was: {', '.join(changed)}; the run goes on, rounded differently")
        folder = self.folder / "checkpoints"
        found = distributed.agree(lambda: checkpoint.read_newest(folder) if checkpoint.newest_first(folder) else None)
        if found is None:
            say(f"no checkpoint in {folder}: the run was stopped before its first one, and begins again")
            return
        state, path, problems = found
        for problem in problems:
            say(f"{problem}; going back to {path.name}")
        try:
            self.load_state_dict(state)
        except FastganError:
            raise
        except Exception as error:  # of what somebody else has put there, PyTorch says nearly anything
            raise FastganError(f"{path} does not fit the run's own options: {first_line(error)}") from error

    def fit(self) -> Path:
        """Train to the end, or to Ctrl-C or SIGTERM, which save first; returns the run folder.

        Of a run that has come to its end, nothing is written.
        """
        self.lock.take()
        try:
            if self.step.steps < self.total:
                self._begin()
                with use_plan(self.plan):
                    self._fit()
            else:
                on = (f"to go on: fastgan resume {self.folder} --steps {2 * self.step.steps}"
                      if self.config.train.lr_schedule == "constant" else
                      "its learning rate has fallen to 0; expected a new run by `fastgan train`")
                say(f"nothing to do: the run has made {self.step.steps} of {self.total} steps; {on}")
        except OSError as error:
            raise FastganError(f"cannot read or write {error.filename or self.folder}: {reason(error)}") from error
        finally:
            self.feed.close()
            if self.graphed is not None:
                self.graphed.close()
            self.lock.release()
        return self.folder

    def _begin(self) -> None:
        """What is found out before the first step: the measures' reals, and the plan."""
        if self.metrics is not None:
            self.metrics.learn()
            for words in self.metrics.doubts():
                say(words)
        self.plan = distributed.agree(lambda: plan_setup.decide(self.config.run, self.plan, self.step, self.folder,
                                                             self._like_a_batch()))
        distributed.same(self.step.state())

    def _fit(self) -> None:
        self._write_options()
        if self.step.steps == 0:
            distributed.agree(self._first_pictures)
        log = RunLog(self.folder, self.step.steps, self.config.run.tensorboard) if self.world.first else None
        with (closing(log) if log is not None else nullcontext(),
              tqdm(total=self.total, initial=self.step.steps, unit="step", dynamic_ncols=True, desc=self.folder.name,
                   disable=log is None) as bar, signals(self._stop)):
            self._train(log, bar)

    def _train(self, log: RunLog | None, bar: tqdm) -> None:
        if self.step.steps == 0 and log is not None:
            log.picture("generated", self.folder / "fakes_init.png", 0)
            log.picture("real", self.folder / "reals.png", 0)
        run, clock, looked = self.config.run, _Clock(self.step.steps), self.step.steps
        saved, alerts = self.step.steps or None, Alerts(self.config.train.loss, [] if log is None else log.records)
        while self.step.steps < self.total and not self._told_to_stop():
            self._play()
            bar.update()
            done = self.step.steps
            if done % run.log_every and done % run.snap and done != self.total:
                continue
            # the one place where the host waits for the device
            values, looked = self._look(looked), done
            if log is not None and (done % run.log_every == 0 or done == self.total):
                record = {"step": done, **values, **self._facts(clock.lap(done))}
                found = alerts.look(record, saved is not None)
                log.write(record | {"alerts": found} if found else record)
                for words in found.values():
                    say(words)
                bar.set_postfix_str(" ".join(f"{key} {values[key]:.3f}" for key in ("loss_d", "loss_g")
                                             if key in values), refresh=False)
            if done % run.snap == 0 or done == self.total:
                self._snapshot(log)
                saved = done
                if log is not None and self.metrics is not None and self.stopped_by is None:
                    log.write({"step": done, **self.metrics.of(self.pretrained())})
                    clock.lap(done)  # measuring is not training
        # not in the loop: a signal may come at any line of it
        if saved != self.step.steps:
            if looked != self.step.steps:
                self._look(looked)
            self._snapshot(log)

    def _like_a_batch(self) -> tuple[Tensor, ...]:
        """Noise in the shape of a batch, and labels where the networks take them."""
        size, shape = self.config.data.batch // self.world.size, self.dataset.shape
        return plan_setup.like_a_batch(size, shape, bool(self.classes), self.device)

    def _play(self) -> None:
        """One step: the graph, or where it cannot (a short last batch), the same by hand."""
        size = self.eager.prepare()
        if self.graphed is None or size < self.config.data.batch // self.world.size:
            self.eager()
            return
        before = self.graphed.description
        self.graphed()
        if self.graphed.description != before:
            self._write_options()

    def _look(self, since: int) -> dict[str, float]:
        """What the last step told; `FastganError` if one since `since` was not finite."""
        rows = self.step.ring.read(since, self.step.steps)
        for step, row in enumerate(rows, self.step.steps - len(rows)):
            if row["finite"] != 1:
                self._stop_at_non_finite(step, row)
        return {key: value for key, value in rows[-1].items() if math.isfinite(value) and key != "finite"}

    def _facts(self, seconds: float) -> dict[str, float]:
        batch, position = self.config.data.batch, self.feed.state_dict()
        facts = {"epoch": position["epoch"] + position["cursor"] / len(self.dataset), "sec_per_step": seconds,
                 "images_per_sec": batch / seconds, "cpu_peak_gb": peak_memory_gb()}
        if self.device.type == "cuda":
            facts["gpu_peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return facts

    def _write_options(self) -> None:
        """Every option, and what was found out: again whenever what runs has changed."""
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
        """Before the first step: real data, and what the untrained generator makes."""
        self._picture("fakes_init.png")
        if self.dataset.shape == (2,):
            pictures.scatter(self.folder / "reals.png", real=self.examples)
        else:
            pictures.save(pictures.grid(self.examples), self.folder / "reals.png")

    @cached_property
    def examples(self) -> Tensor:
        """As much real data as a picture shows, (grid, C, H, W) uint8 or (grid, 2), in an order of its own."""
        loader = Loader(self.dataset, self.config.data, self.config.run.seed)
        count = min(self.config.run.grid, len(self.dataset))
        batches = [loader.next_batch()[0] for _ in range(math.ceil(count / self.config.data.batch))]
        loader.close()
        return torch.cat(batches)[:count]

    def _snapshot(self, log: RunLog | None) -> None:
        """Pictures, curves, the generator for use elsewhere and, last, the checkpoint that stands for all of it."""
        distributed.agree(lambda: self._save(log))

    def _save(self, log: RunLog | None) -> None:
        assert log is not None
        name = f"fakes{self.step.steps:06d}.png"
        self._picture(name)
        log.picture("generated", self.folder / name, self.step.steps)
        pictures.loss_curves(log.records, self.folder / "losses.png")
        self.pretrained().save(self.folder)
        checkpoint.save(self.folder / "checkpoints", self.step.steps, self.state_dict(), self.config.run.keep)

    def pretrained(self) -> Pretrained:
        """What pictures are drawn from: the moving average where there is one, else the generator itself."""
        generator = self.step.ema.module if self.step.ema is not None else self.step.generator
        return Pretrained(generator, self.config.model, self.dataset.shape, self.classes, self.config.data.unit_range)

    def _picture(self, name: str) -> None:
        run, path, unit, held = self.config.run, self.folder / name, self.config.data.unit_range, self.step.held
        if run.pictures == "side-by-side" and held is not None:
            halves = (to_uint8(x[: run.grid].float().cpu(), unit) for x in (held.fake, held.real))
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
            if self.world.size > 1:
                return  # torchrun may say it twice, and ends who does not listen
            raise KeyboardInterrupt
        self.stopped_by = received
        say(f"{received.name}: saving after this step" + " (once more to stop at once)" * (self.world.size == 1))

    def _told_to_stop(self) -> bool:
        """Whether this process, or any other, has been, so that all end after the same step."""
        number = self._stopping.number(0 if self.stopped_by is None else self.stopped_by)
        if number:
            self.stopped_by = signal.Signals(number)
        return number > 0

    def _stop_at_non_finite(self, step: int, row: dict[str, float]) -> None:
        """Save the state, which is the last good one, with the batch, and say which tensor broke first."""
        self.step.steps = step
        held = self.step.held
        assert held is not None
        wrong = next((key for key, value in row.items() if key != "diversity" and not math.isfinite(value)), "a loss")
        mark = "" if self.world.first else f"-{self.world.rank}"
        path = self.folder / f"nonfinite{step + 1:06d}{mark}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)  # of another machine
        tensors = {"real": held.real, "z": held.z, "labels": held.labels}
        checkpoint.write(path, {**self.state_dict(), **{name: None if tensor is None else tensor.cpu()
                                                        for name, tensor in tensors.items()}})
        raise FastganError(f"{wrong} is {row.get(wrong)} at step {step + 1}; first non-finite tensor: "
                           f"{first_non_finite(self.step)}; state and batch are in {path}")

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on as if it had not stopped."""
        state = {"step": self.step.state_dict(), "loader": self.feed.state_dict(), "rng": torch.get_rng_state(),
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
        self.feed.load_state_dict(state["loader"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


def open_metrics(config: Config, dataset: Dataset, device: torch.device) -> Metrics | None:
    """The measures that --metrics names, None for none. Raises `FastganError` where one cannot be computed."""
    run = config.run
    return Metrics(run.metrics, dataset, config.data, images=run.metrics_images, weights=run.metrics_weights,
                   device=device) if run.metrics else None


def length(config: Config, steps_per_epoch: int) -> int:
    """Steps of a whole run."""
    return config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)


def _locked(folder: Path) -> Lock:
    """The lock of a run folder, which rank 0 holds for all."""
    held: list[Lock] = []
    distributed.agree(lambda: held.append(Lock(folder)))
    return held[0] if held else Lock(folder, another=True)


def _in_common(config: Config, dataset: Dataset, precision: str) -> dict[str, Any]:
    """What must be the same in all processes, by the words of the command line."""
    values = {option(key): value for key, value in config.flat().items() if key not in MACHINES_OWN}
    return {"fastgan": __version__, "torch": torch.__version__, **values, "--precision": precision,
            "data": f"{len(dataset)} images of fingerprint {dataset.fingerprint[:12]}"}


def _check_parts(config: Config, processes: int) -> None:
    """`FastganError` for a batch that cannot be divided among so many processes."""
    batch, least = config.data.batch, 1 if config.train.sync_bn or config.model.architecture == "gaussian" else 2
    if batch % processes or (processes > 1 and batch // processes < least):
        raise FastganError(f"--batch {batch} with {processes} processes: each would have {_images(batch, processes)}; "
                           f"expected a multiple of {processes}, and {least} or more for each")


def _images(batch: int, processes: int) -> str:
    whole, rest = divmod(batch, processes)
    return f"{whole} {f'{rest}/{processes} ' * (rest > 0)}image{'s' * (batch != processes)}"


class _Clock:
    """Seconds per step since the last lap."""

    def __init__(self, step: int) -> None:
        self.time, self.step = time.perf_counter(), step

    def lap(self, step: int) -> float:
        now = time.perf_counter()
        seconds = max(now - self.time, 1e-9) / max(step - self.step, 1)  # clocks may tick seldom
        self.time, self.step = now, step
        return seconds


def _columns(count: int, classes: int) -> int | None:
    """The same number of columns for each class, near a square, where that fits the page."""
    return classes * max(1, round(math.sqrt(count) / classes)) if 1 < classes <= min(count, 16) else None
