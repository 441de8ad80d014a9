"""Plans as JSON: a file for a user, and the cache of measurements of a machine.

    a plan     {"format", "machine", "engine", "step": {engine: seconds}, "problems": [{"problem", "choice", "trials"}]}
    the cache  {"format", "machine", "steps": {workload: {engine: seconds}}, "problems": [...]}, a file for each machine

The machine is everything, other than the problem, that determines which engine is fastest. If a file cannot be read,
problems are measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastgan
from fastgan import validation
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, cache_folder, read_json, replacing
from fastgan.ops.dispatch import ENGINES
from fastgan.ops.tuning import Choice, Plan, Problem, Trial, candidates

FORMAT = 4


class Known(NamedTuple):
    """Measurements of a machine: choices, and seconds of whole workloads."""

    choices: dict[Problem, Choice]
    steps: dict[str, dict[str, float]]


def folder() -> Path:
    """The folder of the cache files."""
    return cache_folder() / "plans"


def machine(device: torch.device) -> dict[str, str]:
    """The device, its driver, and installed versions."""
    facts = {"device": _cpu(), "threads": str(torch.get_num_threads()),
             "instructions": torch.backends.cpu.get_cpu_capability()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")()
        facts = {"device": f"{properties.name}, sm_{properties.major}{properties.minor}", "driver": str(driver),
                 "cuDNN": str(torch.backends.cudnn.version())}
    return {**facts, "fastgan": f"{fastgan.__version__}, kernels {_kernels()}", "torch": torch.__version__,
            "triton": _version("triton"), "engines": ", ".join(candidates.engines(device))}


@functools.cache
def _kernels() -> str:
    """A digest of the engines' sources and modules: after a change, problems are measured again."""
    package = Path(fastgan.__file__).parent
    sources = [path for path in package.glob("ops/**/*") if path.suffix in (".py", ".json")]
    compiled = [path for path in package.glob("_c*") if path.suffix in (".so", ".pyd")]
    digest = hashlib.sha256()
    for path in sorted(sources + compiled):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def place(facts: dict[str, str]) -> Path:
    """The cache file of a machine."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:16]}.json"


def workload(problems: Iterable[Problem]) -> str:
    """A name for a set of problems."""
    words = "\n".join(sorted(repr(tuple(problem)) for problem in problems))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def recall(facts: dict[str, str]) -> tuple[Known, str]:
    """The measurements of a machine, and the reason why its file cannot be used, or ""."""
    path = place(facts)
    try:
        found = read_json(path)
        if found["format"] != FORMAT or found["machine"] != facts:
            raise ValueError("made by another version, or on another machine")
        steps = {name: _seconds(step) for name, step in found["steps"].items()}
        return Known(_choices(found["problems"]), steps), ""
    except FileNotFoundError:
        return Known({}, {}), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return Known({}, {}), f"{path} cannot be used: {_reason(error)}"


def remember(facts: dict[str, str], plan: Plan) -> str:
    """Add a plan's measurements to the machine's file. Returns the reason why that failed, or ""."""
    before, _ = recall(facts)  # read again, because other processes may have added to it
    took = {workload(plan.choices): plan.step} if plan.step else {}
    known = Known({**before.choices, **plan.choices}, {**before.steps, **took})
    if known == before:
        return ""
    path = place(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {"format": FORMAT, "machine": facts, "steps": known.steps, "problems": _rows(known.choices)})
    except (OSError, FastganError) as error:
        return f"measurements are not stored: {first_line(error)}"
    return ""


def export(path: StrPath, plan: Plan, facts: dict[str, str]) -> None:
    """Write a plan to a file. Raises `FastganError` if that fails."""
    _write(path, {"format": FORMAT, "machine": facts, "engine": plan.engine, "step": plan.step,
                  "problems": _rows(plan.choices)})


def read(path: StrPath, device: torch.device) -> tuple[Plan, dict[str, str]]:
    """A plan from a file, and the machine on which it was made. Raises `FastganError` for other files, and for a plan
    with an engine that cannot run on the device."""
    try:
        found = read_json(Path(path))
        if found["format"] != FORMAT:
            raise ValueError("its format is not that of this version")
        plan = Plan(_choices(found["problems"]), engine=found["engine"], step=_seconds(found["step"]))
        facts = dict(found["machine"])
        of_problems = {choice.candidate.partition("/")[0] for problem, choice in plan.choices.items()
                       if problem.device == device.type}
        named = sorted(of_problems | {plan.engine} - {"plan"})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FastganError(f"{path} is not a plan ({_reason(error)}); expected auto, default, or a file that "
                           "`fastgan tune --export FILE` wrote") from error
    for engine in named:
        reason = candidates.why_not(engine, device) if engine in ENGINES else f"expected {', '.join(ENGINES)}"
        if reason:
            raise FastganError(f"{path} names the engine {engine!r}: {reason}")
    return plan, facts


def _seconds(step: dict[str, float]) -> dict[str, float]:
    """Raises TypeError, among others, for wrong types."""
    return {str(name): float(seconds) for name, seconds in step.items()}


def _rows(choices: dict[Problem, Choice]) -> list[dict[str, Any]]:
    return [{"problem": problem._asdict(), "choice": choice.candidate,
             "trials": {name: trial._asdict() for name, trial in choice.trials.items()}}
            for problem, choice in choices.items()]


def _choices(rows: list[dict[str, Any]]) -> dict[Problem, Choice]:
    """Raises TypeError, among others, for wrong contents."""
    found = {}
    for row in rows:
        trials, choice = {name: Trial(**trial) for name, trial in row["trials"].items()}, row["choice"]
        trouble = "".join(validation.first_error(trial._asdict(), Trial) for trial in trials.values())
        if trouble or not isinstance(choice, str):
            raise TypeError(trouble or f"choice {choice!r:.80}: expected a candidate's name")
        found[Problem.from_json(row["problem"])] = Choice(choice, trials)
    return found


def _write(path: StrPath, content: dict[str, Any]) -> None:
    with replacing(path) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return f"no {error}" if isinstance(error, KeyError) else first_line(error)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    """The name of the processor, if the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
