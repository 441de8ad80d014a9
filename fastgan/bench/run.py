"""A whole run: suite by suite, within a budget of minutes, each entry's rows on the disk as soon as they are there."""

from __future__ import annotations

import datetime
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastgan import presets
from fastgan.bench import results, suites
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.limit import limit_seconds
from fastgan.bench.results import Row
from fastgan.bench.rounds import Failed, Fresh, Player, Taken, Worker, command, play
from fastgan.bench.suites import SUITES
from fastgan.ops.tuning import stored
from fastgan.verify import machine

PRESET = "dcgan-64"
PRINTS = "d2l-dcgan-pokemon"  # the preset whose document prints images per second
ROUNDS = 9


@dataclass(frozen=True)
class Order:
    """What to measure.

    Args:
        suites: names; the device's usual ones where there are none. preset: "" for dcgan-64, and in the suite
            "training" also the preset whose document prints images per second. batches: none for the device's own.
        names, match: contenders; the usual ones where none are given. minutes: in which to end, or nearly.
        changes: of the preset's fields. commit: of the code, where there is no git to ask.
    """

    device: torch.device
    suites: Sequence[str] = ()
    preset: str = ""
    batches: Sequence[int] = ()
    precision: str = "fp32"
    rounds: int = ROUNDS
    names: Sequence[str] = ()
    match: str = ""
    minutes: float = math.inf
    changes: dict[str, Any] = field(default_factory=dict)
    commit: str = ""

    @classmethod
    def without_compilers(cls, device: torch.device, precision: str, **values: Any) -> Order:
        """Steps of those who are ready in seconds: no torch.compile, and no plan that is to be measured first."""
        names = [one.name for one in suites.step(device, precision) if not one.compiled and one.engine != "auto"]
        return cls(device, ("step",), precision=precision, names=names, **values)

    def contenders(self, entry: Entry) -> list[Contender]:
        found = suites.contenders(entry, self.device, self.precision)
        return suites.chosen(found, list(self.names), self.match)


@dataclass(frozen=True)
class Group:
    """Entries whose contenders live in the same processes. weight: its part of the time."""

    entries: list[Entry]
    weight: float


@dataclass
class Done:
    """What came of a run. late: workloads for which no time was left."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Row]:
        return [row for row in self.rows if row.error]


def groups(order: Order) -> list[Group]:
    """All that is asked for, what matters most first."""
    found = [(name, order.preset or PRESET, batch) for name in _suites(order) for batch in _batches(order, name)]
    if not order.preset and not order.batches and "training" in _suites(order):
        found.append(("training", PRINTS, presets.get(PRINTS).data.batch))
    first = _batches(order, "step")[0]
    found.sort(key=lambda one: (one[1] == PRINTS, one[2] != first and not order.batches))
    made = []
    for name, preset, batch in found:
        entries = [entry for entry in suites.entries(name, preset, batch, order.precision, order.device, order.changes)
                   if order.contenders(entry)]
        parts = [[entry] for entry in entries] if SUITES[name].alone else [entries] if entries else []
        made += [Group(part, SUITES[name].weight / len(parts)) for part in parts]
    return made


def check(order: Order) -> None:
    """Raises `FastganError` for a name that nobody has, before anything is measured."""
    for name in order.suites:
        suites.check_suite(name)
    if order.preset:
        suites.check_workload(order.preset)
    known = {one.name for name in _suites(order) for batch in _batches(order, name)
             for part in ("", *suites.PARTS.get(name, ()))
             for one in suites.contenders(Entry(name, order.preset or PRESET, batch, part), order.device,
                                          order.precision)}
    suites.check_names(list(order.names), order.match, sorted(known))


def lines(order: Order) -> Iterator[str]:
    """What could be measured: suites, below each its workloads and contenders, * for who takes part unasked."""
    for name in order.suites or SUITES:
        yield f"{name}: {SUITES[name].what}"
        unasked: dict[str, bool] = {}
        for batch in _batches(order, name):
            for entry in suites.entries(name, order.preset or PRESET, batch, order.precision, order.device,
                                        order.changes):
                yield f"    {_at(entry)}"
                for one in suites.contenders(entry, order.device, order.precision):
                    unasked[one.name] = unasked.get(one.name, False) or one.usual
        yield from (f"        {'*' if usual else ' '} {name}" for name, usual in unasked.items())


def measure(order: Order, done: Done) -> None:
    """Fill `done`, and its file, as it goes: what is there when this is interrupted counts."""
    found, facts = groups(order), _facts(order)
    begin, draw = time.monotonic(), random.Random(0)
    end = begin + 60 * order.minutes
    bar = tqdm(total=sum(len(group.entries) for group in found), unit="entry", dynamic_ncols=True, disable=None)
    with tempfile.TemporaryDirectory() as scratch, bar:
        for number, group in enumerate(found):
            now, left = time.monotonic(), sum(one.weight for one in found[number:])
            share = now + (end - now) * group.weight / left if math.isfinite(end) else math.inf
            for entry, taken, cost in _group(order, group, share, draw, Path(scratch), bar, done.late):
                rows = _rows(order, entry, taken, cost, facts)
                results.append(done.path, rows)
                done.rows += rows
                bar.update()


Cost = tuple[float | None, float | None]  # (operations, bytes) of a call


def _group(order: Order, group: Group, deadline: float, draw: random.Random, scratch: Path, bar: tqdm,
           late: list[str]) -> Iterator[tuple[Entry, dict[str, Taken], Cost]]:
    """Each entry that there was time for, also the one at which this is interrupted."""
    suite = SUITES[group.entries[0].suite]
    if time.monotonic() > deadline:
        late += [_at(entry) for entry in group.entries]
        return
    with _workers(order, group) as workers, _judge(order, group) as judge:
        for number, entry in enumerate(group.entries):
            now = time.monotonic()
            if now > deadline:
                late += [_at(one) for one in group.entries[number:]]
                return
            share = now + (deadline - now) / (len(group.entries) - number) if math.isfinite(deadline) else deadline
            bar.set_description(_at(entry))
            contenders, taken = order.contenders(entry), dict[str, Taken]()
            cost: Cost = (None, None)
            try:
                bar.set_postfix_str("what is right?")
                judged, cost = _judged(judge, entry, contenders, scratch) if suite.judged else ("", cost)
                play(entry, {one.name: workers(entry, one) for one in contenders}, judged, taken, deadline=share,
                     rounds=order.rounds if suite.timed else 0, order=draw, progress=bar.set_postfix_str)
            except Failed as error:
                taken.update({one.name: Taken(error=f"nothing to compare with: {error}") for one in contenders})
            except KeyboardInterrupt:
                yield entry, {name: one for name, one in taken.items() if one.seconds or one.error}, cost
                raise
            yield entry, taken, cost


@contextmanager
def _workers(order: Order, group: Group) -> Iterator[Any]:
    """(entry, contender) -> who takes its turns. Processes start together, and end with the block."""
    threads = torch.get_num_threads()
    if group.entries[0].suite == "start":
        yield lambda entry, one: _fresh(entry, one, order.device, threads)
        return
    with ExitStack() as stack:
        started: dict[str, Worker] = {}
        for one in {one.name: one for entry in group.entries for one in order.contenders(entry)}.values():
            started[one.name] = Worker(one, str(order.device), threads)
            stack.callback(started[one.name].close)
        yield lambda entry, one: started[one.name]


def _fresh(entry: Entry, contender: Contender, device: torch.device, threads: int) -> Player:
    if entry.part == "import":
        return Fresh(["-c", contender.engine])
    return Fresh(command(contender, str(device), threads), json.dumps({"do": "first", "entry": entry.as_json()}) + "\n",
                 contender.cold)


@contextmanager
def _judge(order: Order, group: Group) -> Iterator[Callable[..., Cost]]:
    """`Worker.judge` of a process that starts when it is asked, and ends when it has no more to do."""
    found: list[Worker] = []

    def ask(*given: Any) -> Cost:
        if not found:
            found.append(Worker(Contender("judge"), str(order.device), torch.get_num_threads()))
        cost = found[0].judge(*given)
        if len(group.entries) == 1:
            found.pop().close()
        return cost

    try:
        yield ask
    finally:
        for one in found:
            one.close()


def _judged(judge: Callable[..., Cost], entry: Entry, contenders: list[Contender], scratch: Path) -> tuple[str, Cost]:
    """A file with what is right, and the cost of a call; suites that train the same steps share it."""
    precisions = sorted({one.precision for one in contenders})
    whole = entry.suite in ("step", "ablation", "memory")
    key = ("step", entry.preset, entry.batch) if whole else (entry.workload, entry.batch)
    path, costs = scratch / f"{abs(hash((key, *precisions)))}.pt", scratch / f"{abs(hash((key, *precisions)))}.json"
    if not path.exists():
        costs.write_text(json.dumps(judge(entry, precisions, str(path))))
    flops, moved = json.loads(costs.read_text())
    return str(path), (flops, moved)


def _rows(order: Order, entry: Entry, taken: dict[str, Taken], cost: Cost, facts: dict[str, Any]) -> list[Row]:
    precisions = {one.name: one.precision for one in order.contenders(entry)}
    rows = []
    for name, one in taken.items():
        row = Row(**facts, workload=entry.workload, contender=name, precision=precisions[name], batch=entry.batch,
                  peak_mb=one.peak_mb, error=one.error)
        if one.seconds:
            limit = limit_seconds(entry, precisions[name], order.device)
            row = row.timed(one.seconds, one.images, *cost, limit)
        rows.append(row)
    return rows


def _facts(order: Order) -> dict[str, Any]:
    """What every row of a run says about it."""
    found, versions = stored.machine(order.device), machine.versions()
    name = found["device"]
    if order.device.type == "cpu":
        name += f", {found['threads']} threads, {found['instructions']}"
    return {"commit": order.commit or machine.commit() or "", "device": name,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "driver": (machine.driver() or "") if order.device.type == "cuda" else "",
            "torch": str(versions["torch"]), "triton": versions["triton"] or ""}


def _suites(order: Order) -> list[str]:
    return list(order.suites) or [name for name, suite in SUITES.items() if order.device.type in suite.usual]


def _batches(order: Order, suite: str) -> list[int]:
    """A suite's sizes; only steps are timed at more than one unless more are asked for."""
    own = suites.BATCHES[order.device.type]
    return list(order.batches or (own if suite in ("step", "memory") else own[:1]))


def _at(entry: Entry) -> str:
    return f"{entry.workload}, batch {entry.batch}"
