"""Part one: chains of one and two blocks in every tile configuration, on each architecture, under every schedule."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastgan.ops.triton.tiles as tiles
from fastgan.nn import Chain, stat_groups
from proofs.cases import results
from proofs.ptx import networks, rule
from proofs.ptx.simulator import Schedule, executing, schedules

ARCHITECTURES, WARPS, STAGES = (80, 90), (2, 4, 8), (1, 2, 3, 4)
FEW = 8  # elements of a tensor whose error depends on chance


class Outcome(NamedTuple):
    """The launched kernels, the largest error relative to the allowed one, and messages for what failed."""

    kernels: list[str]
    used: float
    failures: list[str]


class Draw(NamedTuple):
    """Results for one random input: ours, eager, exact, and exact with the kinks moved to either side."""

    kernels: list[str]
    ours: dict[str, Tensor]
    eager: dict[str, Tensor]
    exact: dict[str, Tensor]
    moved: tuple[dict[str, Tensor], dict[str, Tensor]]


class Fault(Exception):
    """A kernel failed, or its results depend on the schedule."""


def execute(ptxsim: Any, case: networks.Case, precision: rule.Precision, arch: int,
            rules: list[dict[str, Any]]) -> Outcome:
    """One case, forward and backward, under every schedule, compared with float64.

    In tensors of few elements, eager results may be exact by chance. Then three more random inputs are drawn, and the
    results of all four are judged as one tensor.
    """
    start, draws = build_seeded(case, precision), []
    for seed in (1, 2, 3, 4):
        try:
            draws.append(run_case(ptxsim, case, precision, arch, rules, start, seed))
        except Fault as fault:
            return Outcome([], float("inf"), [str(fault)])
        parts = judge(draws, precision, start)
        wrong = {key: part for key, part in parts.items() if not part <= 1}
        if seed == 1 and (not wrong or any(draws[0].exact[key].numel() > FEW for key in wrong)):
            break
    words = [f"{key}: {part:.2f} of the allowed error" for key, part in wrong.items()]
    return Outcome(draws[0].kernels, max(parts.values()), words)


def build_seeded(case: networks.Case, precision: rule.Precision) -> nn.Sequential:
    torch.manual_seed(1)
    torch.randn(case.shape)  # unused; keeps the weights of earlier versions
    return networks.cast(networks.build(case), precision.dtype)


def run_case(ptxsim: Any, case: networks.Case, precision: rule.Precision, arch: int, rules: list[dict[str, Any]],
             start: nn.Sequential, seed: int) -> Draw:
    """Raises `Fault`."""
    torch.manual_seed(seed)
    x = torch.randn(case.shape).to(precision.dtype)
    exact_network, eager_network = copy.deepcopy(start).double(), copy.deepcopy(start)

    def in_groups(network: nn.Module) -> Any:
        return lambda x: torch.cat([network(part) for part in x.chunk(case.groups)])

    below, above = (results(in_groups(moved), x.double(), moved) for moved in rule.doubted(exact_network, precision))
    exact = results(in_groups(exact_network), x.double(), exact_network)
    with rule.eagerly(precision):
        eager = results(in_groups(eager_network), x, eager_network)
    first: dict[str, Tensor] = {}
    kernels: list[str] = []

    def simulated(schedule: Schedule, unwritten: bool) -> dict[str, Tensor]:
        nonlocal kernels
        network = Chain(*copy.deepcopy(start), impl="triton")
        network.train(case.training)
        with (rule.products("tf32" if precision.tf32 else "fp32"), taking(rules), stat_groups(network, case.groups),
              executing(ptxsim, arch, schedule, unwritten=unwritten) as kernels):
            return results(network, x, network)

    for schedule in schedules(arch):
        try:
            try:
                found = simulated(schedule, True)
            except Exception as error:
                if precision.dtype != torch.float16 or "never-written" not in str(error):
                    raise
                # the float16 -15.305 has the bits with which the simulator marks unwritten memory; without this check,
                # unwritten memory is -15.305, far from the float64 result
                found = simulated(schedule, False)
        except Exception as error:  # the simulator's message has the location
            raise Fault(f"{schedule.name}: {type(error).__name__}: {error}") from error
        if not kernels:
            raise Fault("no kernel was launched")
        first = first or found
        different = [key for key in first if not torch.equal(first[key], found[key])]
        if different:
            raise Fault(f"{schedule.name}: different bits in {', '.join(different)}")
    return Draw(kernels, first, eager, exact, (below, above))


def judge(draws: list[Draw], precision: rule.Precision, network: nn.Sequential) -> dict[str, float]:
    """`compare` with the tensors of all draws concatenated."""
    def together(tensors: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        parts = list(tensors)
        return {key: torch.cat([part[key].flatten() for part in parts]) for key in parts[0]}

    return compare(together(p.ours for p in draws), together(p.eager for p in draws),
                   together(p.exact for p in draws), [together(p.moved[i] for p in draws) for i in (0, 1)],
                   precision.unit, network)


def compare(ours: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor],
            moved: list[dict[str, Tensor]], unit: float, network: nn.Sequential) -> dict[str, float]:
    """The error of each tensor relative to the allowed one."""
    parts = {}
    for key, value in exact.items():
        cancelled = 0.0
        index, _, what = key.partition(".")
        if what == "bias" and network.training and int(index) + 1 < len(network):
            after = network[int(index) + 1]
            if isinstance(network[int(index)], (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(after, nn.BatchNorm2d):
                # zero, because the mean cancels the bias; the terms that cancel have the size of beta's gradient
                cancelled = unit * float(exact[f"{int(index) + 1}.bias"].abs().max())
        own = rule.FLOAT32 if "running" in key else unit
        parts[key] = rule.used(ours[key], eager[key], value, own, cancelled, [other[key] for other in moved])
    return parts


def shipped() -> list[dict[str, Any]]:
    """The distinct rules of all architectures except the interpreter; registers are allocated after PTX."""
    found: list[dict[str, Any]] = []
    for file in sorted(Path(tiles.__file__).parent.glob("tiles/sm_*.json")):
        for given in json.loads(file.read_text())["rules"] if file.stem != "sm_0" else ():
            one = {key: value for key, value in given.items() if key not in ("tiles", "registers")}
            found += [one] if one not in found else []
    return found


@contextmanager
def taking(rules: list[dict[str, Any]]) -> Iterator[None]:
    """Within the block, these rules select the tiles on every architecture; an empty list keeps the shipped rules."""
    before = tiles._file
    if rules:
        tiles._file = lambda arch: {**before(arch), "rules": rules}  # type: ignore[assignment]
    tiles._by_rule.cache_clear()
    try:
        yield
    finally:
        tiles._file = before
        tiles._by_rule.cache_clear()


class Run(NamedTuple):
    precision: str
    arch: int
    case: networks.Case
    rules: list[dict[str, Any]]

    def __str__(self) -> str:
        words = [f"{one['kernel']} {'x'.join(map(str, one['tile']))}" for one in self.rules
                 if one["kernel"].split()[0] in ("convolve", "wgrad") and "bytes" not in one]
        if words:
            words.append(f"{self.rules[0]['warps']} warps {self.rules[0]['stages']} stages")
        return f"sm_{self.arch} {self.precision} {self.case.name}: {', '.join(words) or 'as shipped'}"


def configurations(each: list[tuple[int, int]] | None = None) -> Iterator[Run]:
    """Every shipped tile in every precision, on both architectures, with each number of warps and stages.

    A run uses one tile for GEMMs and one for weight gradients, of all sizes, and narrow tiles by their conditions. The
    runs with one (warps, stages) alternate between the generator's, the discriminator's and an odd case, so that all
    kernels run with it. With `each` None, tiles have their own warps and stages.
    """
    found = shipped()
    fixed = [one for one in found if one["kernel"] in ("narrow", "rows")]
    for (precision, kind), arch in itertools.product(rule.PRECISIONS.items(), ARCHITECTURES):
        gemms, wgrads = ([one for one in found if one["kernel"] == kernel and one["bytes"] == kind.dtype.itemsize]
                         for kernel in ("convolve", "wgrad"))
        for turn, pair in enumerate(each or [None]):
            for row in range(max(len(gemms), len(wgrads))):
                odd = networks.ODD[turn % len(networks.ODD)]
                case = (networks.GENERATOR, networks.DISCRIMINATOR, odd)[(row + turn) % 3]
                taken = [{key: one[key] for key in ("kernel", "tile", "warps", "stages")}
                         for one in (gemms[row % len(gemms)], wgrads[row % len(wgrads)])]
                rules = [*taken, *fixed]
                if pair:
                    rules = [{**one, "warps": pair[0], "stages": pair[1]} for one in rules]
                yield Run(precision, arch, case, rules)


def on_descriptors(each: list[tuple[int, int]] | None = None) -> Iterator[Run]:
    """Every shipped tile for tensor descriptors in every precision that has one, on sm_90. `each` as above."""
    found = shipped()
    pairs: Sequence[tuple[int, int] | None] = each or [None]
    for (precision, kind), pair in itertools.product(rule.PRECISIONS.items(), pairs):
        pointers = [one for one in found if not one["kernel"].endswith(" tma")
                    and one.get("bytes", kind.dtype.itemsize) == kind.dtype.itemsize]
        gemms, wgrads = ([one for one in found if one["kernel"] == kernel and one["bytes"] == kind.dtype.itemsize]
                         for kernel in ("convolve tma", "wgrad tma"))
        if precision == "fp32" or (pair and pair[0] == 2):
            continue  # float32 runs on pointers, and wgmma needs four warps
        for row in range(max(len(gemms), len(wgrads))):
            taken = [{key: one[key] for key in ("kernel", "tile", "warps", "stages")}
                     for one in (gemms[row % len(gemms)], wgrads[row % len(wgrads)])]
            if pair:
                taken = [{**one, "warps": pair[0], "stages": pair[1]} for one in taken]
            yield from (Run(precision, 90, case, [*taken, *pointers]) for case in networks.DESCRIBED)


def runs(quick: bool) -> Iterator[Run]:
    """All runs; quick: every tile with its own warps and stages, and each case in one precision on one architecture."""
    cases = [*networks.from_tests(), *networks.HEADS]
    cases += [other for case in (networks.HEADS[1], networks.ODD[0], cases[2])
              for other in networks.without_statistics(case)]
    pairs = list(itertools.product(rule.PRECISIONS, ARCHITECTURES))
    for i, case in enumerate(cases):
        for precision, arch in [pairs[i % len(pairs)]] if quick else pairs:
            yield Run(precision, arch, case, [])
    each = None if quick else list(itertools.product(WARPS, STAGES))
    yield from configurations(each)
    yield from on_descriptors(each)


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all runs, print a line for each, and return the failures."""
    torch.set_num_threads(1)
    failures = []
    for run in runs(quick):
        if match not in str(run):
            continue
        begin = time.perf_counter()
        outcome = execute(ptxsim, run.case, rule.PRECISIONS[run.precision], run.arch, run.rules)
        print(f"{run}: {len(outcome.kernels)} launches, {outcome.used:.2f} of the allowed error, "
              f"{time.perf_counter() - begin:.1f} s", *outcome.failures, sep="\n    ", flush=True)
        failures += [f"{run}: {failure}" for failure in outcome.failures]
    return failures
