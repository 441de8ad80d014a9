"""The registry: every suite with its workloads and contenders, for a device.

A contender's name begins with "fastgan" where it is ours. The first of a suite is what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastgan.bench import modules, operations
from fastgan.bench.contender import USUAL, Contender
from fastgan.bench.entry import Entry
from fastgan.config import Config, nearest
from fastgan.errors import FastganError
from fastgan.ops.native.convolve import TILES
from fastgan.ops.tuning import candidates
from fastgan.presets import PRESETS

NHWC = "textbook, channels_last"
# the first two of dcgan-64 are the preset's own and torchbench's
BATCHES = {"cpu": (64, 32, 128), "cuda": (128, 32, 64, 256, 1024)}
PRECISIONS = ("fp32", "tf32", "bf16")  # float16's first steps are skipped while its loss finds a scale
LARGE, _FEW = 128, (NHWC, "fastgan, native", "fastgan, plan")  # who takes part on a CPU from which batch on
COMPILED = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Suite:
    """Workloads of a kind, and who takes part.

    Args:
        what: one line. weight: of the time it gets, relative to others. alone: each entry has new processes.
        judged: whether there is something to compare with float64. timed: whether there is more than memory to measure.
        usual: on which devices it is part of a run that names no suite.
        parts: of it, apart from the whole. contenders: (device, precision) -> who takes part.
    """

    what: str
    weight: float
    contenders: Callable[[torch.device, str], list[Contender]]
    parts: Callable[[Config, str, torch.device], list[dict[str, Any]]] = lambda *_: [{}]
    alone: bool = True
    judged: bool = True
    timed: bool = True
    usual: tuple[str, ...] = ("cpu", "cuda")


def step(device: torch.device, precision: str) -> list[Contender]:
    """PyTorch as it is used, and ours on each engine; the textbook also with the work saved that it wastes."""
    plain, careful = _textbooks(device, precision)
    saved = careful.named(f"{careful.name}, same work saved", saved=("frozen", "fused_adam"))
    found = [plain, careful, saved, *(saved.named(f"torch.compile {mode}, same work saved", compiled=mode,
                                                  usual=mode == "default" or device.type == "cuda")
                                      for mode in COMPILED)]
    if device.type == "cuda":
        found.append(careful.named(f"{careful.name}, CUDA graph", graph=True, together=False))
    return found + _ours(device, precision)


def ablation(device: torch.device, precision: str) -> list[Contender]:
    """From the textbook to the plan, one gain after another; then ours with each saving left out."""
    return [*chain(device, precision), *_without(device, precision)]


def chain(device: torch.device, precision: str) -> list[Contender]:
    """Each is the one before and what its name adds."""
    gpu = device.type == "cuda"
    plain, careful = _textbooks(device, precision)
    found = [plain, plain.named("+ channels_last", nchw=False)]
    if gpu:
        found.append(careful.named(f"+ {careful.precision}, cudnn.benchmark, losses left on the device"))
    found.append(found[-1].named("+ no gradients of D in G's update", saved=("frozen",)))
    found.append(found[-1].named("+ fused Adam", saved=("frozen", "fused_adam")))
    found.append(Contender("+ fastgan's step", "reference", precision, saved=USUAL, tuned=gpu))
    if gpu:
        found.append(found[-1].named("+ fastgan's CUDA graph", graph=True))
    elif _there("native", device):
        found.append(found[-1].named("+ fastgan's native engine", engine="native"))
    if len(candidates.engines(device)) > 1:
        found.append(found[-1].named("+ fastgan's plan", engine="auto"))
    return found


def imports(device: torch.device, precision: str) -> list[Contender]:
    """Programs, as `engine`: what a process takes before it has done anything."""
    return [Contender("import torch", "import torch"),
            Contender("fastgan: import fastgan.train", "import fastgan.train"),
            Contender("fastgan --help", "from fastgan.cli import main; main(['--help'])")]


def total(device: torch.device, precision: str) -> list[Contender]:
    """The two ends of the chain, to be measured by themselves."""
    whole = chain(device, precision)
    return [whole[0], whole[-1]]


_OF_A_PART = {"total": total, "import": imports}
PARTS = {"ablation": ("total",), "start": ("import",)}  # with contenders of their own


def networks(device: torch.device, precision: str) -> list[Contender]:
    """Eager layers, compiled ones, and ours."""
    nchw, nhwc = (Contender(f"eager, {'NCHW' if nchw else 'channels_last'}", precision=precision, nchw=nchw,
                            tuned=device.type == "cuda") for nchw in (True, False))
    return [nchw, nhwc, *(nhwc.named(f"torch.compile {mode}", compiled=mode,
                                     usual=mode == "default" or device.type == "cuda") for mode in COMPILED),
            *(Contender(f"fastgan, {engine}", engine, precision, tuned=device.type == "cuda")
              for engine in candidates.engines(device))]


def passes(device: torch.device, precision: str) -> list[Contender]:
    """Each engine, and each variant that the plan knows of it."""
    words = ["reference"]
    if _there("native", device):
        words += [f"native/{way}" for way in ("library", "gemm", "patches", *TILES)]
    if _there("triton", device):
        words.append("triton")
    tuned = device.type == "cuda"
    return [Contender("eager, NCHW", "reference", precision, nchw=True, tuned=tuned),
            Contender("eager, channels_last", "reference", precision, tuned=tuned),
            *(Contender(f"fastgan, {word}", word, precision, tuned=tuned) for word in words[1:])]


def training(device: torch.device, precision: str) -> list[Contender]:
    """The best textbook that needs no compiler, and ours, each with its own way to data."""
    plain, careful = _textbooks(device, precision)
    return [plain, careful, *_ours(device, precision)]


def start(device: torch.device, precision: str) -> list[Contender]:
    """A process from its start to the end of the first step."""
    _, careful = _textbooks(device, precision)
    compiled = careful.named("torch.compile", compiled="default")
    own = [one for one in _ours(device, precision) if one.graph == (device.type == "cuda")]
    return [careful, compiled.named(f"{compiled.name}, compiled before"),
            compiled.named(f"{compiled.name}, cold", cold=True, usual=False), *own,
            *(one.named(f"{one.name}, measured anew", cold=True, usual=False) for one in own if one.engine == "auto")]


SUITES = {
    "step": Suite("whole steps, D and G", 5, step),
    "ablation": Suite("what each saving, layout and engine earns, from the textbook to fastgan", 4, ablation,
                      lambda *_: [{}, {"part": "total"}]),
    "training": Suite("images per second with the data that they need", 2, training, judged=False),
    "start": Suite("from a new process to its first step, and what importing takes of it", 1, start,
                   lambda *_: [{}, {"part": "import"}], judged=False),
    "networks": Suite("generator and discriminator, forward and backward", 1, networks,
                      lambda *_: [{"part": name} for name in modules.NETWORKS], alone=False),
    "operations": Suite("single passes: forward, dgrad and wgrad of each convolution", 2, passes,
                        lambda *given: [{"part": operations.name(problem), "problem": problem}
                                        for problem in operations.problems(*given)], alone=False),
    "stages": Suite("single stages, forward and backward", 1, networks,
                    lambda config, *_: [{"part": name} for *_, name in modules.parts(config)], alone=False,
                    usual=("cuda",)),
    "memory": Suite("the peak of a step's memory", 1, step, timed=False, usual=()),
}


def entries(suite: str, preset: str, batch: int, precision: str, device: torch.device,
            changes: dict[str, Any]) -> list[Entry]:
    """What a suite times of a preset, with these changes of its fields."""
    whole = Entry(suite, preset, batch, changes=changes)
    return [replace(whole, **part) for part in SUITES[suite].parts(whole.config, precision, device)]


def contenders(entry: Entry, device: torch.device, precision: str) -> list[Contender]:
    """Who can take part in an entry."""
    if entry.part in _OF_A_PART:
        return _OF_A_PART[entry.part](device, precision)
    found = SUITES[entry.suite].contenders(device, precision)
    if entry.problem is not None:
        able = candidates.of(entry.problem)
        return [one for one in found if one.engine in able]
    if device.type == "cpu" and entry.batch >= LARGE:
        return [one.named(one.name, usual=one.usual and one.name.startswith(_FEW)) for one in found]
    return found


def chosen(found: list[Contender], words: list[str], match: str) -> list[Contender]:
    """Those that are named, or whose name has `match` in it; else the usual ones."""
    if words or match:
        return [one for one in found if one.name in words or (match and match.lower() in one.name.lower())]
    return [one for one in found if one.usual]


def check_names(words: list[str], match: str, known: list[str]) -> None:
    """Raises `FastganError`, with the nearest names, where nobody is called so."""
    for word in words:
        if word not in known:
            raise FastganError(f"unknown contender {word!r}; {nearest(word, known)}")
    if match and not any(match.lower() in name.lower() for name in known):
        raise FastganError(f"--match {match}: no contender has it in its name; {nearest(match, known)}")


def check_suite(name: str) -> None:
    """Raises `FastganError` for a suite that is not there."""
    if name not in SUITES:
        raise FastganError(f"unknown suite {name!r}; {nearest(name, list(SUITES))}")


def check_workload(preset: str) -> None:
    """Raises `FastganError` for a preset that is not there, or is no network of convolutions."""
    known = [name for name in PRESETS if "gaussian" not in name]
    if preset not in known:
        raise FastganError(f"unknown workload {preset!r}; {nearest(preset, known)}")


def _textbooks(device: torch.device, precision: str) -> tuple[Contender, Contender]:
    """PyTorch's example as it stands, and as a careful user has it: channels_last, who waits for no loss; on a GPU also
    in the precision asked for and, as all but the first, with cudnn.benchmark."""
    if device.type != "cuda":
        plain = Contender("textbook, NCHW", precision=precision, nchw=True, reads=True)
        return plain, plain.named(NHWC, nchw=False, reads=False)
    plain = Contender("textbook, NCHW", precision="fp32" if precision == "fp32" else "tf32", nchw=True, reads=True)
    autocast = ", autocast" if precision == "bf16" else ""
    return plain, plain.named(f"{NHWC}{autocast}", nchw=False, reads=False, tuned=True,
                              precision=precision)


def _ours(device: torch.device, precision: str) -> list[Contender]:
    """Each engine, and the plan; on a GPU by hand and as a graph."""
    names = [*candidates.engines(device), *(["auto"] if len(candidates.engines(device)) > 1 else [])]
    gpu = device.type == "cuda"
    found = [Contender(f"fastgan, {'plan' if name == 'auto' else name}", name, precision, saved=USUAL, tuned=gpu)
             for name in names]
    if not gpu:
        return found
    return [each for one in found for each in (one.named(f"{one.name}, no graph"), one.named(one.name, graph=True))]


def _without(device: torch.device, precision: str) -> Iterator[Contender]:
    """Ours on PyTorch's operators, with one saving left out or put in, and with none."""
    gpu = device.type == "cuda"
    ours = Contender("fastgan, reference", "reference", precision, saved=USUAL, tuned=gpu, graph=gpu)
    yield ours
    for name in ("frozen", "fused_adam"):  # these workloads keep no moving average
        yield ours.named(f"fastgan without {name}", saved=tuple(other for other in USUAL if other != name))
    yield ours.named(f"fastgan {'without' if gpu else 'with'} together", together=not gpu)
    yield ours.named("fastgan, no saving", saved=(), together=False)


def _there(engine: str, device: torch.device) -> bool:
    return engine in candidates.engines(device)
