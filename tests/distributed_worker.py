"""The two processes of `test_distributed.py`. torchrun starts them, and each writes its results to a file.

    torchrun --nproc-per-node 2 distributed_worker.py FOLDER      the scenarios, into FOLDER/rank0.pt and rank1.pt
    torchrun ... distributed_worker.py FOLDER kill ARGUMENTS      fastgan ARGUMENTS, with rank 1 killed in step 4
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan import presets
from fastgan.config import Config, ModelConfig, TrainConfig
from fastgan.data.order import Shard
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.nn import use
from fastgan.train.step import GANStep
from fastgan.trainer import Trainer, distributed
from fastgan.trainer.grad_allreduce import GradAllreduce
from fastgan.trainer.loop import TrainingLoop

BATCH, STEPS = 64, 5
SETTINGS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "reference float64": ("reference", torch.float64, {}),
    "reference float64, penalties": ("reference", torch.float64, {"r1": 1.0, "penalty_every": 2, "fakes": "fresh-z"}),
    "reference float64, wgan-gp": ("reference", torch.float64, {"loss": "wgan-gp", "d_steps": 2}),
    "reference float32": ("reference", torch.float32, {}),
    "native float32": ("native", torch.float32, {}),
    "reference float64, unused and frozen": ("reference", torch.float64, {}),
}


def trained(name: str, part: Shard, sync_bn: bool = True) -> dict[str, Tensor]:
    """Parameters, running statistics and the last record after `STEPS` steps with this part of each batch."""
    impl, dtype, options = SETTINGS[name]
    torch.manual_seed(0)
    model = ModelConfig(nz=8, ngf=4, ndf=4, norm_d="all")
    networks = [use(network, impl).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
                for network in build(model, (1, 16, 16))]
    if "unused" in name:
        networks[1].register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=dtype)))
    config = TrainConfig(**{"ema": 0.9, "lr": 1e-3, "sync_bn": sync_bn, **options})
    processes = GradAllreduce(part) if part.of > 1 else None
    step = GANStep(*networks, model, config, precision="fp32", processes=processes)
    batches = torch.rand(STEPS, BATCH, 1, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for number, batch in enumerate(batches):
        if "frozen" in name:
            networks[0].main[0].requires_grad_(number > 1)  # type: ignore[operator]
            networks[1].main[0].requires_grad_(number < 3)  # type: ignore[operator]
        record = step(part.take(batch).contiguous(memory_format=torch.channels_last))
    states = {f"{side}.{key}": tensor for side, network in zip("gd", networks, strict=True)
              for key, tensor in network.state_dict().items()}
    assert step.ema is not None
    averaged = {f"ema.{key}": tensor for key, tensor in step.ema.module.state_dict().items()}
    return {**states, **averaged, **{key: value for key, value in record.items() if key != "diversity"}}


def experiment(outdir: Path, **values: Any) -> Config:
    """6 steps on flipped 16x16 digits in float32."""
    small = {"image_size": "16", "ngf": 4, "ndf": 4, "nz": 8, "batch": 64, "steps": 6, "snap": 3, "log_every": 1,
             "grid": 4, "tensorboard": False, "device": "cpu", "plan": "default", "impl": "reference", "flip": True,
             "sync_bn": True, "outdir": str(outdir)}
    return presets.get("digits", **{**small, **values})


def refused(resumed: Path | None = None, **values: Any) -> str:
    config = experiment(Path("refused"), **values)
    try:
        Trainer(config) if resumed is None else Trainer.resume(resumed, config)
    except FastganError as error:
        return str(error)
    return ""


def unlike(folder: Path, rank: int) -> dict[str, str]:
    """The error messages of processes with different arguments."""
    data = {}
    for kind, count, grey in (("other images", 64, rank), ("more images", 64 + rank, 0)):
        images = np.full((count, 16, 16), grey, np.uint8)
        np.savez(folder / f"{kind}{rank}.npz", images=images)
        data[kind] = refused(source=f"npz:{folder}/{kind}{rank}.npz")
    return {**data, "options": refused(batch=64 >> rank, lr=0.5), "resumed": refused(
        folder / "one" / "00000-digits", snap=3 + rank)}


def seen(config: Config) -> list[Tensor]:
    """The images of an epoch, as indices."""
    trainer = Trainer(config)
    feed, found = trainer.feed, []
    for _ in range(feed.steps_per_epoch):
        feed.prepare()
        found.append(feed._queue[feed._cursor[0]].clone())  # type: ignore[attr-defined]
        feed.fetch()
        feed.done()
    return found


def stopped(outdir: Path) -> int:
    """The number of steps of a run in which only process 1 gets a stop signal, in step 3."""
    trainer = Trainer(experiment(outdir, steps=50, snap=50))
    fetch = trainer.feed.fetch

    def told() -> Any:
        if distributed.world().rank == 1 and trainer.step.steps == 2:
            signal.raise_signal(signal.SIGTERM)
        return fetch()

    trainer.feed.fetch = told  # type: ignore[method-assign]
    trainer.fit()
    return trainer.step.steps


def broken() -> list[float]:
    """`finite` of a step in which only process 1 has NaN."""
    part = Shard(distributed.world().rank, 2)
    networks = build(ModelConfig(nz=8, ngf=4, ndf=4), (1, 16, 16))
    step = GANStep(*networks, ModelConfig(nz=8), TrainConfig(), precision="fp32", processes=GradAllreduce(part))
    before = [p.clone() for p in networks[0].parameters()]
    record = step(torch.full((4, 1, 16, 16), torch.nan if part.rank else 0.5))
    assert all(map(torch.equal, before, networks[0].parameters()))
    return [float(record["finite"])]


def scenarios(folder: Path) -> None:
    with distributed.group() as world:
        part = Shard(world.rank, world.size)
        found: dict[str, Any] = {name: trained(name, part) for name in SETTINGS}
        found["local"] = trained("reference float64", part, sync_bn=False)
        found["seen"] = seen(experiment(folder / "seen"))
        found["seen balanced"] = seen(experiment(folder / "balanced", balanced=True))
        found["indivisible"] = refused(batch=63)
        found["batch normalization outside"] = refused(architecture="tf", loss="softmax",
                                                       image_size="28")
        found["folder"] = str(Trainer(experiment(folder / "two", steps=3)).fit())
        found["resumed"] = str(Trainer.resume(folder / "one" / "00000-digits", experiment(folder / "one")).fit())
        found["steps when stopped"] = stopped(folder / "stopped")
        found["unlike"] = unlike(folder, world.rank)
        found["finite"] = broken()
        found["rank 0 fails"] = failing()
    found["threads left"] = sorted(name for path in Path("/proc/self/task").glob("*/comm")
                                   if (name := path.read_text().strip()).startswith("pt_"))
    torch.save(found, folder / f"rank{world.rank}.pt")


def failing() -> str:
    def fail() -> None:
        raise FastganError("no room")

    try:
        distributed.on_rank_0(fail)
    except FastganError as error:
        return str(error)
    return ""


def killed(arguments: list[str]) -> int:
    from fastgan.cli import main

    make_step = TrainingLoop.make_step

    def once(self: TrainingLoop) -> None:
        rank, restarts = distributed.world().rank, os.environ["TORCHELASTIC_RESTART_COUNT"]
        if (self.step.steps, rank, restarts) == (4, 1, "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        make_step(self)

    TrainingLoop.make_step = once  # type: ignore[method-assign]
    return main(arguments)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # shows where a process hangs
    torch.set_num_threads(1)
    if sys.argv[2:3] == ["kill"]:
        sys.exit(killed(sys.argv[3:]))
    scenarios(Path(sys.argv[1]))
