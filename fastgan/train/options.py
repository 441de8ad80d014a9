"""The keyword arguments of a `GANStep`: fields of `ModelConfig` and `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict

from torch import Tensor

from fastgan.config import Config, ModelConfig, TrainConfig, group_of
from fastgan.errors import FastganError

LossOption = (str | Callable[[Tensor, Tensor], Tensor]
              | tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]] | None)


class StepOptions(TypedDict, total=False):
    """Options with the types and names of the fields. `n_critic` is an alias of `d_steps`."""

    nz: int
    noise: Literal["normal", "uniform"]
    noise_mean: float
    gp: float
    r1: float
    penalty_every: int
    label_smoothing: float
    augment: str
    d_loss_weight: float
    d_steps: int
    n_critic: int
    real_first: bool
    fakes: Literal["reuse", "same-z", "fresh-z"]
    lr: float
    lr_g: float | None
    lr_d: float | None
    lr_schedule: Literal["constant", "linear", "cosine"]
    lr_warmup: int
    beta1: float
    beta2: float
    adam_eps: float
    adam_eps_hat: bool
    grad_clip: float
    weight_clip: float
    accumulate: int
    ema: float
    steps: int | None


_OF_ADAM = ("lr", "lr_g", "lr_d", "lr_schedule", "lr_warmup", "beta1", "beta2", "adam_eps", "adam_eps_hat")


def configure(model: ModelConfig | None, train: TrainConfig | None, loss: LossOption, optimizers: Any,
              options: StepOptions) -> tuple[ModelConfig, TrainConfig]:
    """The configuration of a step. Raises `FastganError` for an option that does not exist or does not apply."""
    values = dict(options)
    for key in values:
        if key not in StepOptions.__annotations__:
            group_of(key)  # raises for unknown names
            raise FastganError(f"{key} is not an option of GANStep; expected {', '.join(StepOptions.__annotations__)}")
    if isinstance(loss, str):
        values["loss"] = loss
    config = Config("", model=model or ModelConfig(), train=train or TrainConfig()).replace(**values)
    set_for_adam = [key for key in _OF_ADAM if getattr(config.train, key) != getattr(TrainConfig(), key)]
    if optimizers is not None and set_for_adam:
        raise FastganError(f"{set_for_adam[0]} with optimizers: expected this option to be set in the optimizers, and "
                           "schedules by torch.optim.lr_scheduler")
    config.check_values()
    return config.model, config.train
