"""Every preset's step replayed like a graph: ten replays equal ten eager steps, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import presets
from fastgan.config import DataConfig
from fastgan.data import make_feed
from fastgan.data.dataset import MemoryDataset
from fastgan.models import build
from fastgan.train import schedule
from fastgan.train.losses import LOSSES
from fastgan.train.step import GANStep, Savings
from fastgan.trainer.fetch_step import FetchStep
from proofs.simulated import CaptureRefused, assert_replays_equal_eager
from tests.small_step import Asking

SHAPES = {"digits": (1, 16, 16), "mxnet-dcgan-mnist": (3, 16, 16), "oreilly-gan-mnist": (1, 28, 28),
          "d2l-gan-gaussian": (2,), "d2l-dcgan-pokemon": (3, 16, 16), "tf-dcgan-mnist": (1, 28, 28),
          "dcgan-64": (3, 16, 16), "dcgan-32": (3, 16, 16), "dcgan-128": (3, 32, 32),
          "own-images": (3, 16, 16)}
SMALL = {"ngf": 2, "ndf": 2}  # as many layers as widths do not matter to a tape
COUNT = 4  # images


def make(preset: str, resumed: bool = False, precision: str = "fp32", num_classes: int = 0,
         keep_casts: bool = False, **fields: Any) -> Callable[[], GANStep]:
    """A function that creates a small step of a preset, new or after two steps."""
    def step() -> GANStep:
        torch.manual_seed(0)
        config = presets.get(preset, **{**SMALL, "steps": 16, **fields})
        networks = build(config.model, SHAPES[preset], num_classes)
        made = GANStep(*networks, config.model, config.train, precision=precision, history=3,
                       savings=Savings(together=True, keep_casts=keep_casts))
        first = inputs(preset, num_classes)[0]
        made.allocate(*first)
        for _ in range(2 if resumed else 0):
            made(*first)
        return made

    return step


def inputs(preset: str, num_classes: int = 0) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    reals = [torch.rand(COUNT, *SHAPES[preset]) * 2 - 1 for _ in range(3)]
    return [(real, torch.randint(num_classes, (COUNT,))) if num_classes else (real,) for real in reals]


def losses_of(preset: str) -> list[str]:
    return [loss for loss in LOSSES if (loss == "softmax") == (preset == "tf-dcgan-mnist")]


@pytest.mark.parametrize("ema", [0.0, 0.9], ids=["no average", "average"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize(("preset", "loss"), [(p, loss) for p in presets.PRESETS for loss in losses_of(p)])
def test_preset(preset, loss, resumed, schedule, ema):
    step = make(preset, resumed, loss=loss, lr_schedule=schedule, lr_warmup=3 * (schedule != "constant"), ema=ema)
    assert_replays_equal_eager(step, inputs(preset))


def test_no_preset_is_left_out():
    assert SHAPES.keys() == presets.PRESETS.keys()


@pytest.mark.parametrize("fields", [
    {"loss": "wgan-gp", "d_steps": 3, "norm_d": "none"}, {"r1": 1.0, "penalty_every": 3, "norm_d": "none"},
    {"loss": "wgan-gp", "d_steps": 2, "penalty_every": 3, "norm_d": "none"}, {"label_smoothing": 0.1},
    {"fakes": "same-z"}, {"fakes": "fresh-z"}, {"adam_eps_hat": True, "beta1": 0.0}, {"num_classes": 3},
    {"augment": "color,translation,cutout"}, {"precision": "bf16"}, {"precision": "fp16"},
    {"precision": "fp16", "loss": "wgan-gp", "norm_d": "none"}, {"precision": "fp16", "keep_casts": True, "d_steps": 2},
    {"precision": "bf16", "keep_casts": True, "resumed": True},
], ids=lambda fields: " ".join(f"{key} {value}" for key, value in fields.items()))
def test_option(fields):
    assert_replays_equal_eager(make("dcgan-64", ema=0.9, **fields), inputs("dcgan-64", fields.get("num_classes", 0)),
                               count=12)


@pytest.mark.parametrize(("last_batch", "flip"), list(itertools.product(["drop", "rollover", "pad"], [False, True])))
def test_with_data_on_the_device(last_batch, flip):
    """Fetching is part of the replay, across the end of an epoch, with a refill by the host in between."""
    def fed() -> FetchStep:
        generator = torch.Generator().manual_seed(3)
        data = torch.randint(256, (18, 3, 16, 16), dtype=torch.uint8, generator=generator)
        dataset = MemoryDataset(name="noise", data=data)
        feed = make_feed(dataset, DataConfig(batch=COUNT, last_batch=last_batch, flip=flip), 0, torch.device("cpu"))
        return Prepared(feed, make("dcgan-64")(), (3, 16, 16), [COUNT], False)

    assert_replays_equal_eager(fed, [()], count=12)


class Prepared(FetchStep):
    """The host's work before each step, as in the trainer."""

    def phase(self) -> Any:
        self.prepare()
        return super().phase()


def test_halted_step_is_repeated():
    """After a batch that is not finite, replays halt like eager steps, whatever the next batches are."""
    broken = [(real.clone(),) for (real,) in inputs("dcgan-64")]
    broken[1][0][0, 0, 0, 0] = torch.nan
    assert_replays_equal_eager(make("dcgan-64", ema=0.9), broken)


def test_module_that_asks_for_a_value_is_refused():
    """The matrix above can fail."""
    def asking() -> GANStep:
        step = make("dcgan-64")()
        step.discriminator = Asking(step.discriminator)
        step.savings = Savings(together=False)
        return step

    with pytest.raises(CaptureRefused, match="local_scalar_dense"):
        assert_replays_equal_eager(asking, inputs("dcgan-64"))


@pytest.mark.parametrize("freeze", ["learning rate", "step count"])
def test_frozen_number_is_found(monkeypatch, freeze):
    """It would also fail if the schedule or Adam's count were Python numbers."""
    steps: dict[int, GANStep] = {}
    if freeze == "learning rate":
        monkeypatch.setattr(schedule, "apply", lambda config, t, total, optimizers: [
            step.optimizer_d.rate.fill_(1e-3 / (step.steps + 1)) for step in steps.values()
            if step.optimizer_d is optimizers[1]])

    def frozen() -> GANStep:
        step = steps[len(steps)] = make("dcgan-64", lr_schedule="linear")()
        if freeze != "learning rate":
            step._finish = lambda held, record, skip, finish=step._finish: (
                step.t.fill_(step.steps), finish(held, record, skip))[1]
        return step

    with pytest.raises(AssertionError, match="call 2: state"):
        assert_replays_equal_eager(frozen, inputs("dcgan-64"))
