"""Feeds: the batches of the loader, fetched only by device operations, from buffers at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastgan.config import Config, DataConfig
from fastgan.data import Feed, Loader, make_feed, open_dataset, resident, streamed, to_model_range
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.order import Order, Position
from fastgan.data.resident import Resident
from fastgan.data.streamed import Streamed
from fastgan.errors import FastganError
from tests.streams import Machine
from tests.test_data import decoding_threads, noise, write_images

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
POLICIES = ["drop", "keep", "pad", "rollover"]
GRAPHED = ["drop", "pad", "rollover"]  # the short batches of "keep" cannot be replayed
SEED = 3

Batch = tuple[Tensor, Tensor | None]


def in_memory(kind: str) -> MemoryDataset:
    """Ten images of 3x8x8, or ten points, with labels or without."""
    labels = None if "unlabelled" in kind or "points" in kind else torch.arange(10) * 7 % 10
    data = torch.arange(20.0).view(10, 2) if "points" in kind else torch.from_numpy(noise(10, 3, 8, 8))
    return MemoryDataset(name="ten", labels=labels, data=data)


def kinds(*names: str) -> Callable:
    return pytest.mark.parametrize("kind", names)


class Case:
    """A data set and a configuration, with its feed and its loader."""

    def __init__(self, kind: str, folder: Path, last_batch: str, **values: Any) -> None:
        kind, _, workers = kind.partition("-workers-")
        config = {"batch": 4, "last_batch": last_batch, "flip": True, "unit_range": "unit" in kind, **values}
        self.make: type[Resident | Streamed] = Resident if kind.startswith("resident") else Streamed
        if kind == "files":
            write_images(folder / "a", 6)
            write_images(folder / "b", 4, start=6)
            config |= {"source": f"folder:{folder}", "image_size": "8", "cache_gb": 1e-9, "workers": int(workers)}
        self.config = DataConfig(**config)
        self.dataset: Dataset = open_dataset(self.config) if kind == "files" else in_memory(kind)

    def feed(self, device: torch.device = CPU) -> Feed:
        return self.make(self.dataset, self.config, SEED, device)

    def expected(self, count: int) -> list[tuple[int, Batch, dict]]:
        """(size, batch, position after it) by the loader, which advances the random state."""
        loader = Loader(self.dataset, self.config, SEED)
        steps = []
        for _ in range(count):
            raw, labels = loader.next_batch()
            images = to_model_range(raw, flip=self.config.flip, unit_range=self.config.unit_range, dtype=torch.float32)
            steps.append((len(raw), (images, labels), loader.state_dict()))
        loader.close()
        return steps


@pytest.fixture
def case(kind: str, last_batch: str, tmp_path: Path) -> Case:
    return Case(kind, tmp_path, last_batch)


def step(feed: Feed) -> tuple[int, Batch, dict]:
    size = feed.prepare()
    images, labels = feed.fetch()
    batch = images.clone(), None if labels is None else labels.clone()
    feed.done()
    return size, batch, feed.state_dict()


def assert_same_batch(given: Batch, expected: Batch) -> None:
    (images, labels), (expected_images, expected_labels) = given, expected
    assert torch.equal(images, expected_images)
    assert images.dtype == torch.float32
    assert images.stride() == expected_images.stride()
    assert (labels is None) == (expected_labels is None)
    assert labels is None or torch.equal(labels, expected_labels)


def assert_same(given: list[tuple[int, Batch, dict]], expected: list[tuple[int, Batch, dict]]) -> None:
    assert [(size, position) for size, _, position in given] == [(size, position) for size, _, position in expected]
    for (_, batch, _), (_, expected_batch, _) in zip(given, expected, strict=True):
        assert_same_batch(batch, expected_batch)


@pytest.mark.parametrize("last_batch", POLICIES)
@kinds("resident", "resident-unlabelled-unit", "resident-points", "pinned", "pinned-unlabelled-unit", "pinned-points",
       "files-workers-0", "files-workers-2")
def test_batches_are_the_loaders(case):
    """Nine batches, over three epochs or more, with the same draws from the global generator."""
    torch.manual_seed(0)
    expected, random_state = case.expected(9), torch.get_rng_state()
    torch.manual_seed(0)
    feed = case.feed()
    assert_same([step(feed) for _ in range(9)], expected)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert feed.steps_per_epoch == Loader(case.dataset, case.config, SEED).steps_per_epoch
    feed.close()


@pytest.mark.parametrize("queued, rows", [(3, 1), (8, 2)], ids=["less-than-a-batch", "two-batches"])
@pytest.mark.parametrize("last_batch", POLICIES)
@kinds("resident")
def test_a_queue_shorter_than_an_epoch(case, queued, rows, monkeypatch):
    monkeypatch.setattr(resident, "MAX_QUEUED", queued)
    torch.manual_seed(0)
    expected = case.expected(9)
    torch.manual_seed(0)
    feed = case.feed()
    assert len(feed._queue) == rows
    assert_same([step(feed) for _ in range(9)], expected)


class Tape(TorchDispatchMode):
    """The operations in the block, as a graph would record them: decisions of Python are frozen in `replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self, results: Any) -> Any:
        now: dict[int, Tensor] = {}

        def current(value: Any) -> Any:
            return now.get(id(value), value)

        for func, args, kwargs, out in self.calls:
            again = func(*tree_map(current, args), **tree_map(current, kwargs))
            now |= {id(a): b for a, b in zip(tree_leaves(out), tree_leaves(again), strict=True)}
        return tree_map(current, results)


@pytest.mark.parametrize("last_batch", GRAPHED)
@kinds("resident", "resident-points", "pinned", "files-workers-0")
def test_one_fetch_recorded_replays_them_all(case):
    """Through refills, epochs and resuming: it does not depend on the host, and no tensor that it reads has moved."""
    torch.manual_seed(0)
    expected = case.expected(9)
    feed = case.feed()
    feed.prepare()
    before = [tensor.clone() for tensor in feed.state()]
    with Tape() as tape:
        results = feed.fetch()
    for tensor, value in zip(feed.state(), before, strict=True):
        tensor.copy_(value)

    for steps in (5, 9):
        torch.manual_seed(0)
        feed.load_state_dict({"epoch": 0, "cursor": 0})
        for size, batch, position in expected[:steps]:
            assert feed.prepare() == size
            assert_same_batch(tape.replay(results), batch)
            feed.done()
            assert feed.state_dict() == position


@pytest.mark.parametrize("last_batch", GRAPHED)
@kinds("resident", "resident-points", "pinned", "pinned-points")
def test_fetch_asks_no_tensor_for_its_value(case):
    """On the meta device there are no values, and a tensor on the host would raise an error."""
    feed = case.feed(META)
    feed.prepare()
    images, labels = feed.fetch()
    assert images.is_meta and (labels is None or labels.is_meta)
    assert images.shape == (4, *case.dataset.shape)


@kinds("resident")
def test_a_resident_fetch_moves_its_own_cursor(kind, tmp_path):
    case = Case(kind, tmp_path, "pad", flip=False)
    feed, expected = case.feed(), case.expected(3)
    feed.prepare()
    [cursor] = feed.state()
    first = cursor.clone()
    for _ in range(2):
        for _, batch, _ in expected:
            assert_same_batch(feed.fetch(), batch)
        cursor.copy_(first)
    for _ in range(20):  # a warm-up without restoring: it may read anything within the queue
        feed.fetch()
    cursor.copy_(first)
    assert_same([step(feed) for _ in range(3)], expected)


@kinds("pinned", "files-workers-0")
def test_a_streamed_fetch_changes_nothing(kind, tmp_path):
    feed = Case(kind, tmp_path, "drop", flip=False).feed()
    [(_, batch, _)] = Case(kind, tmp_path, "drop", flip=False).expected(1)
    for _ in range(3):
        assert feed.prepare() == 4
        assert_same_batch(feed.fetch(), batch)
    assert feed.state() == []


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("last_batch", POLICIES)
@kinds("resident", "pinned", "files-workers-0", "files-workers-2")
def test_resuming_exactly(kind, last_batch, steps, tmp_path):
    """In the middle of an epoch and of the queue; batches that were prepared or sent ahead do not count."""
    case = Case(kind, tmp_path, last_batch, flip=False)
    expected, feed = case.expected(9), case.feed()
    assert feed.state_dict() == {"epoch": 0, "cursor": 0}
    assert_same([step(feed) for _ in range(steps)], expected[:steps])
    state = feed.state_dict()
    assert all(type(value) is int for value in state.values())
    feed.prepare()
    assert feed.state_dict() == state
    feed.done()
    feed.prepare()

    for other in (case.feed(), feed):
        other.load_state_dict(state)
        assert other.state_dict() == state
        assert_same([step(other) for _ in range(9 - steps)], expected[steps:])
        other.close()


@pytest.mark.parametrize("last_batch", ["drop"])
@kinds("resident", "pinned", "files-workers-0")
class TestErrors:
    def test_batch_larger_than_the_data(self, kind, last_batch, tmp_path):
        with pytest.raises(FastganError, match=r"--batch 11: .* 10 "):
            Case(kind, tmp_path, last_batch, batch=11).feed()

    @pytest.mark.parametrize("state", [{"epoch": 0, "cursor": 10}, {"epoch": -1, "cursor": 0},
                                       {"epoch": 0, "cursor": -1}], ids=str)
    def test_resuming_beyond_the_data(self, case, state):
        with pytest.raises(FastganError, match="expected an index below 10"):
            case.feed().load_state_dict(state)

    def test_resuming_where_no_batch_is_left_starts_the_next_epoch(self, case):
        feed = case.feed()
        feed.load_state_dict({"epoch": 3, "cursor": 9})
        assert feed.state_dict() == {"epoch": 4, "cursor": 0}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unusable_image_is_said_when_its_batch_is_needed(tmp_path, workers):
    """Not one step earlier, because the previous step may be the last of the run."""
    case = Case(f"files-workers-{workers}", tmp_path, "drop", strict=True, flip=False)
    expected, feed = case.expected(1), case.feed()
    second = Order(10, 4, "drop", SEED).indices(Position(0, 4))
    path = case.dataset.paths[second[0]]
    path.write_bytes(b"not a picture")
    assert_same([step(feed)], expected)
    with pytest.raises(FastganError, match=path.name):
        feed.prepare()
    assert feed.state_dict() == {"epoch": 0, "cursor": 4}
    feed.close()


def test_close_ends_the_threads(tmp_path):
    case = Case("files-workers-2", tmp_path, "drop", flip=False)
    feed, expected = case.feed(), case.expected(5)
    given = [step(feed)]
    assert decoding_threads() == 2
    feed.close()
    assert decoding_threads() == 0
    assert_same(given + [step(feed) for _ in range(4)], expected)
    feed.close()


BYTES = 10 * 3 * 8 * 8


@pytest.mark.parametrize("device, gb, kind", [
    (META, 8.0, Resident),
    (META, BYTES / 1e9, Resident),
    (META, (BYTES - 1) / 1e9, Streamed),
    (META, 0.0, Streamed),
    (CPU, 0.0, Resident),
], ids=["fits", "just-fits", "a-byte-short", "never", "cpu"])
def test_what_stays_on_the_device(device, gb, kind):
    feed = make_feed(in_memory(""), DataConfig(batch=4, gpu_data_gb=gb), SEED, device)
    assert type(feed) is kind


def test_image_files_never_stay_on_the_device(tmp_path):
    case = Case("files-workers-0", tmp_path, "drop")
    assert type(make_feed(case.dataset, case.config, SEED, CPU)) is Streamed


def test_a_negative_budget_is_refused():
    with pytest.raises(FastganError, match=r"--gpu-data-gb -1\.0: expected 0 or more"):
        Config(data=DataConfig(gpu_data_gb=-1.0)).validate()


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(streamed, "cuda", machine)
    return machine


ORDERS = pytest.mark.parametrize("main_first", [True, False], ids=["main-first", "copies-first"])


def run(machine: Machine, main_first: bool) -> None:
    machine.run([machine.main, *machine.side] if main_first else [*machine.side, machine.main])


@ORDERS
@pytest.mark.parametrize("last_batch", GRAPHED)
@kinds("resident", "resident-points", "pinned", "pinned-points", "files-workers-0")
def test_no_batch_is_overwritten_or_read_too_early(case, machine, main_first):
    """The host is seven steps ahead of a device that executes everything in the worst order that the waits allow."""
    torch.manual_seed(0)
    expected = [batch for _, batch, _ in case.expected(7)]
    given: list[Batch] = []

    def fetch() -> None:
        images, labels = feed.fetch()
        given.append((images.clone(), None if labels is None else labels.clone()))

    with machine:
        feed = case.feed(CUDA)
        for _ in range(7):
            feed.prepare()
            machine.launch(fetch)
            feed.done()
    torch.manual_seed(0)
    run(machine, main_first)
    for batch, expected_batch in zip(given, expected, strict=True):
        assert_same_batch(batch, expected_batch)


@ORDERS
def test_the_next_batch_may_travel_while_a_step_computes(machine, main_first):
    with machine:
        feed = Streamed(in_memory("unlabelled"), DataConfig(batch=4), SEED, CUDA)
        for _ in range(3):
            feed.prepare()
            machine.launch(lambda: None)
            feed.done()
    run(machine, main_first)
    meanwhile = ["launch", "send"] if main_first else ["send", "launch"]
    assert machine.trace == ["send", "copy", *meanwhile, "copy", *meanwhile, "copy", *meanwhile]


def test_what_was_on_its_way_when_another_position_was_loaded(machine):
    given: list[Tensor] = []
    case = Case("pinned", Path(), "pad", flip=False)
    with machine:
        feed = case.feed(CUDA)
        for _ in range(2):
            feed.prepare()
            feed.done()
        feed.load_state_dict({"epoch": 0, "cursor": 4})
        feed.prepare()
        machine.launch(lambda: given.append(feed.fetch()[0].clone()))
    run(machine, main_first=False)
    assert torch.equal(given[0], case.expected(2)[1][1][0])
