"""The trainer with its step in a graph, replayed by a simulated CUDA (proofs/simulated)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgan.errors import FastganError
from fastgan.train import GraphedStep, graph
from fastgan.trainer import Trainer, checkpoint
from proofs.simulated import SimulatedCuda
from tests.test_train import final_state, same


@pytest.fixture
def cuda(monkeypatch, one_thread) -> SimulatedCuda:
    stand_in = SimulatedCuda()
    monkeypatch.setattr(graph, "cuda", stand_in)
    return stand_in


def graphed(config: Any) -> Trainer:
    """A trainer that treats the CPU as a CUDA device."""
    trainer = Trainer(config)
    trainer.graphed = GraphedStep(trainer.eager)
    return trainer


def resolved(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_options.json").read_text())["resolved"]


@pytest.mark.parametrize("values", [
    {}, {"flip": True, "last_batch": "rollover", "batch": 500}, {"last_batch": "keep", "batch": 700, "steps": 7},
    {"loss": "wgan-gp", "d_steps": 2, "norm_d": "none", "penalty_every": 3}, {"cond": True}, {"precision": "fp16"},
    {"lr_schedule": "cosine", "lr_warmup": 2},
], ids=["digits", "flip-rollover", "short last batch by hand", "wgan-gp", "conditional", "fp16", "schedule"])
def test_run_in_graphs_is_the_run_without(tiny, cuda, values):
    """The same checkpoint, bit for bit, and the same log."""
    config = tiny(**values)
    by_hand, in_graphs = Trainer(config).fit(), graphed(config).fit()
    assert same(final_state(in_graphs), final_state(by_hand))
    assert sum(event.startswith("replay") for event in cuda.events) > 3
    logs = [[{key: value for key, value in json.loads(line).items() if key.startswith(("loss", "d_", "div", "step"))}
             for line in (folder / "stats.jsonl").read_text().splitlines()] for folder in (by_hand, in_graphs)]
    assert logs[0] == logs[1]
    assert (in_graphs / "fakes000006.png").read_bytes() == (by_hand / "fakes000006.png").read_bytes()


def test_run_says_what_runs(tiny, cuda, capsys):
    config = tiny()
    assert resolved(Trainer(config).fit())["graph"] == "off"
    assert resolved(graphed(config).fit())["graph"] == "one CUDA graph a step"
    cuda.refusal = "no memory for a graph"
    folder = graphed(config).fit()
    assert "no memory for a graph" in resolved(folder)["graph"] and resolved(folder)["graph"].startswith("eager")
    assert "training continues without CUDA graphs: no memory for a graph" in capsys.readouterr().err
    assert same(final_state(folder), final_state(Trainer(config).fit()))


def test_resumed_run_in_graphs(tiny, cuda):
    config = tiny()
    whole, part = graphed(config).fit(), graphed(config.replace(steps=3)).fit()
    trainer = Trainer.resume(part, config)
    trainer.graphed = GraphedStep(trainer.eager)
    trainer.fit()
    assert same(final_state(part), final_state(whole))


def test_host_looks_only_every_k_steps(tiny, cuda, monkeypatch):
    trainer, looks = graphed(tiny(steps=12, log_every=5, snap=6)), []
    buffer, read = trainer.step.metrics_buffer, trainer.step.metrics_buffer.read
    monkeypatch.setattr(buffer, "read", lambda start, stop: looks.append((start, stop)) or read(start, stop))
    folder = trainer.fit()
    assert looks == [(0, 5), (5, 6), (6, 10), (10, 12)]
    assert [json.loads(line)["step"] for line in (folder / "stats.jsonl").read_text().splitlines()] == [5, 10, 12]


def test_fault_between_two_looks(tiny, cuda):
    """Step 3 fails, the host checks after step 5: parameters, batch and noise are those of step 3."""
    config = tiny(steps=10, log_every=5, snap=100)
    good = Trainer(config.replace(steps=2)).fit()
    trainer = graphed(config)
    prepare = trainer.feed.prepare

    def breaking() -> int:
        size = prepare()
        if trainer.step.steps == 2:
            trainer.feed._data[trainer.feed._queue[2]] = 0  # type: ignore[attr-defined]
            trainer.step.halted.fill_(1)  # as a step that is not finite leaves it
        return size

    trainer.feed.prepare = breaking  # type: ignore[method-assign]
    with pytest.raises(FastganError, match="at step 3; first non-finite tensor: none when the step was repeated"):
        trainer.fit()
    saved = checkpoint.read(trainer.folder / "nonfinite000003.pt")
    assert saved["step"]["steps"] == 2
    for network in ("generator", "discriminator"):
        before, after = final_state(good)["step"][network], saved["step"][network]
        assert all(same(before[key], after[key]) for key in before if "running" not in key and "tracked" not in key)


def test_graph_where_there_is_none(tiny):
    with pytest.raises(FastganError, match="--graph on: CUDA graphs need a CUDA device, but this run is on cpu"):
        Trainer(tiny(graph="on"))


def test_precision_where_there_is_none(tiny):
    with pytest.raises(FastganError, match="precision tf32 on cpu: expected an NVIDIA GPU"):
        Trainer(tiny(precision="tf32"))


def test_falling_learning_rate_binds_the_length(tiny):
    folder = Trainer(tiny(steps=3, lr_schedule="linear")).fit()
    with pytest.raises(FastganError, match="steps 3 -> 6"):
        Trainer.resume(folder, tiny(steps=6, lr_schedule="linear"))


@pytest.mark.parametrize(("values", "message"), [
    ({"label_smoothing": 0.1, "loss": "hinge"}, "--label-smoothing 0.1 with --loss hinge: expected --loss bce"),
    ({"label_smoothing": 1.0}, "--label-smoothing 1.0"), ({"penalty_every": 0}, "--penalty-every 0"),
    ({"lr_warmup": -1}, "--lr-warmup -1")], ids=["loss", "all", "never", "negative"])
def test_options_that_cannot_be(tiny, values, message):
    with pytest.raises(FastganError) as caught:
        Trainer(tiny(**values))
    assert message in str(caught.value)
