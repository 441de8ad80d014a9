"""Options that do not go together, whatever the data is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastgan.errors import FastganError

BATCH_NORMS = ("skip-first", "all")  # values of norm_d

if TYPE_CHECKING:
    from fastgan.config import Config


def partners(given: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Values, by field, for options that are not among `given` ones and go better with those: for `config`, which has
    them.

    Penalties on the gradient at single images need a discriminator that treats each by itself, which batch
    normalisation does not; the hinge loss is the partner of spectral normalization (Miyato et al. 2018).
    """
    dcgan = config.model.architecture == "dcgan"
    if dcgan and given.keys() & {"loss", "r1"} and config.train.penalised and not given.keys() & {"norm_d"}:
        return {"norm_d": "none"} if config.model.norm_d in BATCH_NORMS else {}
    if dcgan and given.get("norm_d") == "spectral" and "loss" not in given:
        return {"loss": "hinge"}
    return {}


def check(config: Config) -> None:
    """`FastganError` for the first two options that contradict each other."""
    data, model, train = config.data, config.model, config.train
    if (train.loss == "softmax") != (model.architecture == "tf"):
        raise FastganError(f"--loss {train.loss} with --architecture {model.architecture}: "
                           "softmax and tf, whose discriminator has two outputs, go together")
    if train.label_smoothing and train.loss not in ("bce", "minimax"):
        raise FastganError(f"--label-smoothing {train.label_smoothing} with --loss {train.loss}: "
                           "expected --loss bce or minimax")
    if train.augment and model.architecture == "gaussian":
        raise FastganError(f"--augment {train.augment} with --architecture gaussian: expected images, whose pixels it "
                           "changes")
    if data.batch % train.accumulate:
        raise FastganError(f"--accumulate {train.accumulate} with --batch {data.batch}: expected equal parts of "
                           "a batch")
    if data.batch // train.accumulate == 1 and model.architecture != "gaussian":
        raise FastganError("--batch 1 with batch normalisation: statistics need at least 2 images; expected --batch 2 "
                           "or more")
