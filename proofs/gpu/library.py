"""The interface of `proofs.gpu` to fastgan (engines, passes, steps and launches, by name) and to the device.

Other modules of this package do not depend on how the library computes a pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import steps
from benchmarks.implementation import SAVINGS, Implementation
from benchmarks.workload import Expected, Job, Workload
from fastgan import presets
from fastgan.config import Config, data_shape
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops import tuning as plan
from fastgan.ops.engines import why_not
from fastgan.ops.numerics import products
from fastgan.ops.tuning import Problem, check, measure
from fastgan.ops.tuning.example import caller, draw
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep, Savings
from fastgan.trainer import plan_setup

cuda: Any = torch.cuda  # this package uses the device only through these names
DEVICE = torch.device("cuda")
ARCH = 0  # 90 for sm_90; 0: ask the device
PRESET: tuple[str, dict[str, Any]] = ("dcgan-64", {})
REPEATS = 200
TOGETHER = True  # D gets real and fake images in one call, as in a step on a GPU
FEW = 2  # batch size with which a step is recorded


def architecture() -> int:
    if ARCH:
        return ARCH
    major, minor = cuda.get_device_capability(DEVICE)
    return int(10 * major + minor)


def torch_ptxas() -> Path | None:
    """PyTorch's ptxas, which is newer than Triton's."""
    path = Path(torch.__file__).parent / "bin" / "ptxas"
    return path if path.exists() else None


def config(batch: int) -> Config:
    name, changes = PRESET
    return presets.get(name, **changes, batch=batch)


def missing(engine: str) -> str:
    """The reason why an engine cannot run here; "" if it can."""
    return why_not(engine, DEVICE)


def engines() -> list[str]:
    return [name for name in ("reference", "native", "triton") if not missing(name)]


class Pass:
    """One pass of a training step at full width, with random inputs that are the same in each process."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.example = problem, draw(problem, DEVICE)
        self.reference, self.exact = (self._outputs("reference", given) for given in (
            self.example, self.example.double()))

    def __call__(self, engine: str) -> tuple[Tensor, ...]:
        """The results of an engine."""
        return self._outputs(engine, self.example)

    def used(self, outputs: tuple[Tensor, ...]) -> tuple[float, str]:
        """The largest error relative to the allowed one, correct up to 1, and the name of the tensor."""
        return check.used(self.problem, outputs, self.reference, self.exact)

    def _outputs(self, engine: str, example: Any) -> tuple[Tensor, ...]:
        with _settings(self.problem):
            return caller(engine, example)()


@contextmanager
def _settings(problem: Problem) -> Iterator[None]:
    with (products("tf32" if problem.tf32 else "fp32"), torch.no_grad(), torch.autocast(DEVICE.type, enabled=False)):
        yield


def passes(precision: str, batch: int, device: torch.device | None = None) -> dict[str, Problem]:
    """The distinct passes of a step, by description, in order."""
    cfg, device = config(batch), device or DEVICE
    generator, discriminator = steps.networks(cfg, device)
    step = GANStep(generator, discriminator, cfg.model, cfg.train, precision=precision,
                   savings=Savings(together=TOGETHER))
    few = plan_setup.like_a_batch(FEW, data_shape(cfg), False, device)
    with products(precision):
        found = measure.record(lambda: step(*few))
    wide = [problem._replace(x=(problem.x[0] * batch // FEW, *problem.x[1:])) for problem in found]
    return {" ".join(problem.words().split()): problem for problem in wide}


@contextmanager
def poisoned() -> Iterator[None]:
    """Within the block, new memory is filled with NaN, which shows elements that no kernel writes."""
    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def full(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() and out.device.type == DEVICE.type else out
        return full

    places = [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")]
    before = [getattr(place, name) for place, name in places]
    try:
        for (place, name), allocate in zip(places, before, strict=True):
            setattr(place, name, poisoning(allocate))
        yield
    finally:
        for (place, name), allocate in zip(places, before, strict=True):
            setattr(place, name, allocate)


def one_stage() -> None:
    """Disable pipelining in Triton's kernels: without it, Triton 3.6 omits no fence."""
    from fastgan.ops.triton import gemm_pointer, wgrad_pointer

    for module in (gemm_pointer, wgrad_pointer):
        module.choose = partial(_with_one_stage, module.choose)  # type: ignore[attr-defined]


def _with_one_stage(choose: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return choose(*args, **kwargs)._replace(stages=1)


def step(engine: str, precision: str, batch: int) -> GANStep:
    """A seeded step."""
    torch.manual_seed(0)
    cfg = config(batch).replace(ema=0.9)
    generator, discriminator = (
        use(network, engine).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in build(cfg.model, data_shape(cfg)))
    return GANStep(generator, discriminator, cfg.model, cfg.train, precision=precision, history=4)


def images(batch: int, seed: int) -> Tensor:
    """[N, C, H, W] in [-1, 1], channels_last."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(batch, *data_shape(config(batch)), generator=generator) * 2 - 1
    return made.to(DEVICE).contiguous(memory_format=torch.channels_last)


def graphed(step: GANStep) -> GraphedStep:
    return GraphedStep(step)


def implementations(modes: tuple[str, ...] = ()) -> list[Implementation]:
    """The implementations whose whole steps are timed: PyTorch's loops, and each engine without and with a CUDA graph;
    with `modes`, one loop of PyTorch and torch.compile in each mode."""
    plain = Implementation("PyTorch, NCHW", precision="tf32" if DEVICE.type == "cuda" else "fp32", nchw=True,
                           reads_losses=True)
    careful = Implementation("PyTorch, channels_last, autocast", precision="bf16", cudnn_benchmark=True)
    if modes:
        return [careful, *(careful.but(f"torch.compile {mode}", compiled=mode) for mode in modes)]
    ours = [Implementation(f"fastgan, {engine}", engine, "bf16", savings=SAVINGS, cudnn_benchmark=True)
            for engine in engines()]
    graphs = [one.but(f"{one.name}, CUDA graph", graph=True) for one in ours]
    dependent = [one.but(f"{one.name}, dependent launch", dependent_launch=True)
                 for one in graphs if one.engine == "triton" and architecture() >= 90]
    return [plain, careful, careful.but(f"{careful.name}, CUDA graph", graph=True), *ours, *graphs, *dependent]


def training(implementation: Implementation, batch: int) -> Job:
    """Steps of an implementation with images on the device."""
    return steps.Steps(_workload(batch), implementation, DEVICE)


def expect(batch: int) -> Expected:
    """The expected updates of the first steps, for `Job.check`."""
    return steps.expect(_workload(batch), ["tf32" if DEVICE.type == "cuda" else "fp32", "bf16"], DEVICE)


def _workload(batch: int) -> Workload:
    name, changes = PRESET
    return Workload("step", name, batch, changes=changes)


def tune(batch: int, path: Path) -> tuple[GANStep, Any]:
    """A step with impl "auto", tuned on this device, and its plan, which is put in use and exported to `path`."""
    from fastgan.ops.tuning import stored

    made = step("auto", "bf16", batch)
    facts = stored.machine(DEVICE)
    found = plan_setup.make(made, (images(batch, 1),), facts, anew=True)
    stored.export(path, found, facts)
    plan.use(found)
    return made, found


def train(folder: Path, data: Path, batch: int, count: int) -> tuple[str, list[float]]:
    """A training run of `count` steps on the images in an .npz file. Returns a description of its steps, and the images
    per second in its log."""
    from fastgan.trainer import Trainer

    trainer = Trainer(config(batch).replace(
        source=f"npz:{data}", steps=count, epochs=10**6, snap=count, log_every=max(count // 8, 1), outdir=str(folder),
        device=DEVICE.type, tensorboard=False))
    run = trainer.fit()
    log = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return (trainer.graphed.description if trainer.graphed else "eager",
            [float(record["images_per_sec"]) for record in log if "images_per_sec" in record])
