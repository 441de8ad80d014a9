"""Combinations of options: those that are invalid for all data, and defaults that depend on other options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastgan.errors import FastganError

BATCH_NORMS = ("skip-first", "all")  # values of norm_d

if TYPE_CHECKING:
    from fastgan.config import Config


def partners(given: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Values, by field, of options that were not given and whose default depends on the `given` ones.

    `config` contains the given values. A gradient penalty is defined for a discriminator that treats each image
    independently, which excludes batch normalization. Spectral normalization is used with the hinge loss (Miyato et
    al. 2018).
    """
    dcgan = config.model.architecture == "dcgan"
    if dcgan and given.keys() & {"loss", "r1"} and config.train.penalised and not given.keys() & {"norm_d"}:
        return {"norm_d": "none"} if config.model.norm_d in BATCH_NORMS else {}
    if dcgan and given.get("norm_d") == "spectral" and "loss" not in given:
        return {"loss": "hinge"}
    return {}


def check(config: Config) -> None:
    """Raise `FastganError` for the first invalid combination."""
    data, model, train = config.data, config.model, config.train
    if (train.loss == "softmax") != (model.architecture == "tf"):
        raise FastganError(f"--loss {train.loss} with --architecture {model.architecture}: "
                           "expected softmax with tf, whose discriminator has two outputs, or neither of them")
    if train.label_smoothing and train.loss not in ("bce", "minimax"):
        raise FastganError(f"--label-smoothing {train.label_smoothing} with --loss {train.loss}: "
                           "expected --loss bce or minimax")
    if train.augment and model.architecture == "gaussian":
        raise FastganError(f"--augment {train.augment} with --architecture gaussian: expected an architecture that "
                           "generates images")
    if data.batch % train.accumulate:
        raise FastganError(f"--accumulate {train.accumulate} with --batch {data.batch}: expected a batch size that is "
                           "a multiple of it")
    if data.batch // train.accumulate == 1 and model.architecture != "gaussian":
        raise FastganError("--batch 1 with batch normalization: statistics need at least 2 images; expected --batch 2 "
                           "or more")
