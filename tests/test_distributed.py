"""Two processes on the CPU with gloo, started by torchrun: one launch for their results, one with a kill."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgan.config import DataConfig
from fastgan.data import open_dataset
from fastgan.data.order import Order, Position, Shard
from fastgan.nn import Chain
from fastgan.nn.groups import outside_of_stages
from fastgan.trainer import Trainer, checkpoint, distributed
from tests import distributed_worker as worker

# Maximum difference of parameters, statistics and losses from those of one process, after steps that change parameters
# by up to 1e-3 each. Sums in another order differ by rounding, which Adam amplifies if it divides by a small gradient.
ALLOWED = {"float64": 1e-9, "float32": 1e-5}
ROOT = Path(__file__).parent.parent


def launch(folder: Path, *arguments: object, restarts: int = 0, log: str = "log") -> str:
    """The output of two processes of the worker, which must succeed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts",
               str(restarts), str(Path(worker.__file__)), *map(str, arguments)]
    path = folder / log
    with path.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=300, cwd=folder, env={
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    said = path.read_text()
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a launch. It contains `one`, a run of 3 steps in one process, which the two processes continue."""
    folder = tmp_path_factory.mktemp("distributed")
    Trainer(worker.experiment(folder / "one", steps=3)).fit()
    launch(folder, folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """The results of each process."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def furthest(left: dict[str, Any], right: dict[str, Any]) -> float:
    assert left.keys() == right.keys()
    return max((left[key].double() - right[key].double()).abs().max().item() for key in left)


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_two_processes_compute_what_one_computes(found, name):
    one = worker.trained(name, Shard())
    assert furthest(found[0][name], one) < ALLOWED[name.split()[1].strip(",")]


def test_with_statistics_of_their_own_they_do_not(found):
    """The test above can fail."""
    assert furthest(found[0]["local"], worker.trained("reference float64", Shard())) > 1e-4


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_processes_stay_the_same_to_the_last_bit(found, name):
    assert furthest(found[0][name], found[1][name]) == 0


def test_images_of_an_epoch_are_disjoint_and_complete(found):
    mine, theirs = (torch.cat(each["seen"]) for each in found)
    assert len(mine) == len(theirs) == 1797 // 64 * 32
    assert len(torch.cat([mine, theirs]).unique()) == 1797 // 64 * 64
    whole = Order(1797, 64, "drop", 0)
    assert torch.equal(torch.cat([found[0]["seen"][0], found[1]["seen"][0]]), whole.indices(Position(0, 0)))


def test_processes_share_the_batches_of_class_balance(found):
    digits = open_dataset(DataConfig(image_size="16"))
    whole = Order(1797, 64, "drop", 0, labels=digits.labels)
    batches = [torch.cat(shards) for shards in zip(*(each["seen balanced"] for each in found), strict=True)]
    assert [batch.tolist() for batch in batches] == list(itertools.islice(whole.walk(Position(0, 0)), len(batches)))


def final(folder: Path) -> dict[str, Any]:
    state = checkpoint.read_newest(folder / "checkpoints")[0]
    return {**state["step"]["generator"], **state["step"]["discriminator"], "rng": state["rng"]}


def test_checkpoints_go_from_one_process_to_two_and_back(folder, found):
    whole = Trainer(worker.experiment(folder / "whole")).fit()
    assert furthest(final(Path(found[0]["resumed"])), final(whole)) < ALLOWED["float32"]
    by_two = Path(found[0]["folder"])
    assert json.loads((by_two / "training_options.json").read_text())["resolved"]["processes"] == 2
    Trainer.resume(by_two, worker.experiment(folder / "two")).fit()
    assert furthest(final(by_two), final(whole)) < ALLOWED["float32"]


def test_batch_that_cannot_be_divided(found):
    assert found[0]["indivisible"] == ("--batch 63 with 2 processes: each would have 31 1/2 images; "
                                       "expected a multiple of 2, and 1 or more for each")


def test_sync_bn_names_the_normalization_that_it_cannot_merge(found):
    assert found[0]["batch normalization outside"].startswith("--sync-bn: generator.bn0 (BatchNorm1d) does not follow")


def test_normalizations_outside_of_stages():
    network = nn.Sequential(Chain(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.BatchNorm2d(2)),
                            nn.BatchNorm1d(3))
    assert outside_of_stages(network) == ["network.0.3 (BatchNorm2d)", "network.1 (BatchNorm1d)"]


def test_stop_of_one_process_stops_all_after_the_same_step(found):
    assert 3 <= found[0]["steps when stopped"] == found[1]["steps when stopped"] <= 5


@pytest.mark.parametrize(("kind", "other"), [
    ("other images", r"data 64 images of fingerprint \w{12} instead of 64 images of fingerprint \w{12}"),
    ("more images", r"data 65 images of fingerprint \w{12} instead of 64 images of fingerprint \w{12}"),
    ("options", "--batch 32 instead of 64"), ("resumed", "--snap 4 instead of 3"),
])
def test_processes_with_other_data_or_options_are_refused(found, kind, other):
    said = [each["unlike"][kind] for each in found]
    assert said[0] == said[1]
    assert re.fullmatch(f"process 1 of 2 has other options or data than process 0: {other}; "
                        "expected the same in all processes", said[0])


def test_nan_of_one_process_stops_all(found):
    assert [each["finite"] for each in found] == [[0.0], [0.0]]


def test_error_on_rank_0_is_raised_by_all(found):
    assert [each["rank 0 fails"] for each in found] == ["no room", "no room"]


def test_no_thread_of_the_group_is_left(found):
    """A thread that uses the interpreter while it ends aborts the process after its work."""
    assert [each["threads left"] for each in found] == [[], []]


def test_killed_worker_is_started_again_and_the_run_goes_on(tmp_path):
    options = {"preset": "digits", "image-size": 16, "ngf": 4, "ndf": 4, "nz": 8, "batch": 16, "steps": 7, "snap": 2,
               "log-every": 1, "device": "cpu", "plan": "default", "grid": 4}
    said = launch(tmp_path, tmp_path, "kill", "train", *(f"--{key}={value}" for key, value in options.items()),
                  "--no-tensorboard", restarts=1)
    assert "restarted: continuing in runs/00000-digits" in said
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["00000-digits"]
    lines = (tmp_path / "runs/00000-digits/stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]


def test_launch_without_partners_is_none(monkeypatch):
    assert not distributed.launched()
    with distributed.group() as world:
        assert world == (0, 1, 0)
