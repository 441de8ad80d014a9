"""Callbacks of a run: order and arguments of the calls, and that each start has an end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fastgan
from fastgan.train.step import GANStep, Savings
from fastgan.trainer import Trainer
from fastgan.trainer.log import read_stats
from tests.test_train import final_state, same


class Recorder(fastgan.Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.records: list[Mapping[str, Any]] = []

    def on_start(self, trainer: Trainer, step: int) -> None:
        assert (trainer.folder / "training_options.json").exists()
        self.calls.append(("start", step))

    def on_metrics(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        self.records.append(record)
        self.calls.append(("metrics", record["step"]))

    def on_snapshot(self, trainer: Trainer, step: int, picture: Path) -> None:
        assert picture.stat().st_size > 0
        self.calls.append(("snapshot", step))

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        assert path.exists() and (trainer.folder / "generator.safetensors").exists()
        self.calls.append(("checkpoint", step))

    def on_end(self, trainer: Trainer, step: int) -> None:
        self.calls.append(("end", step))


def test_order_of_calls_in_a_run_and_a_resumed_one(tiny):
    recorder = Recorder()
    folder = Trainer(tiny(steps=3, snap=2), callbacks=[recorder]).fit()
    assert recorder.calls == [("start", 0), ("metrics", 1), ("metrics", 2), ("snapshot", 2), ("checkpoint", 2),
                              ("metrics", 3), ("snapshot", 3), ("checkpoint", 3), ("end", 3)]
    assert recorder.records == read_stats(folder / "stats.jsonl")
    again = Recorder()
    Trainer.resume(folder, tiny(steps=4, snap=2), callbacks=[again]).fit()
    assert again.calls == [("start", 3), ("metrics", 4), ("snapshot", 4), ("checkpoint", 4), ("end", 4)]
    finished = Recorder()
    Trainer.resume(folder, tiny(steps=4, snap=2), callbacks=[finished]).fit()
    assert finished.calls == [], "nothing is trained"


def test_callbacks_that_were_started_are_ended_after_an_error(tiny):
    class Failing(Recorder):
        def on_metrics(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
            raise ValueError("of the callback")

    class NotStarting(Recorder):
        def on_start(self, trainer: Trainer, step: int) -> None:
            raise ValueError("at the start")

    first, second = Recorder(), Failing()
    with pytest.raises(ValueError, match="of the callback"):
        Trainer(tiny(), callbacks=[first, second]).fit()
    assert first.calls == [("start", 0), ("metrics", 1), ("end", 1)] and second.calls == [("start", 0), ("end", 1)]
    first = Recorder()
    with pytest.raises(ValueError, match="at the start"):
        Trainer(tiny(), callbacks=[first, NotStarting()]).fit()
    assert first.calls == [("start", 0), ("end", 0)]


class Clamping(fastgan.Callback):
    """Clamps the parameters of both networks at the start, and after two steps."""

    def on_start(self, trainer: Trainer, step: int) -> None:
        for network in (trainer.step.generator, trainer.step.discriminator):
            for parameter in network.parameters():
                parameter.data.clamp_(-0.02, 0.02)

    def on_metrics(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        if record["step"] == 2:
            self.on_start(trainer, 2)


def test_parameters_that_callbacks_change_take_effect(tiny, monkeypatch):
    """The trainer keeps 16-bit copies of weights from step to step; the runs are those without."""
    def run(savings: Savings | None = None) -> dict[str, Any]:
        trainer = Trainer(tiny(precision="bf16", impl="native", log_every=2, snap=6), callbacks=[Clamping()])
        trainer.step.savings = savings or trainer.step.savings
        return final_state(trainer.fit())

    expected = run(Savings())
    assert same(run(), expected)
    monkeypatch.setattr(GANStep, "refresh", lambda step: None)
    assert not same(run(), expected), "copies are not kept"


def test_parameters_of_a_resumed_run_take_effect(tiny):
    config = tiny(precision="bf16", impl="native", log_every=4, snap=6)
    whole, part = Trainer(config).fit(), Trainer(config.replace(steps=3)).fit()
    Trainer.resume(part, config).fit()
    assert same(final_state(part), final_state(whole))
