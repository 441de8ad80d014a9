"""Options of the command line: their names, aliases and accepted values."""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, TypeVar

from fastgan.errors import FastganError

try:
    from tyro.conf import Suppress, arg
except ImportError:  # only the command line needs tyro and uses these annotations
    Suppress = Annotated[TypeVar("T"), None]  # type: ignore[misc]

    def arg(**_: Any) -> None:  # type: ignore[no-redef]
        """Stand-in for `tyro.conf.arg`."""

# alternative names of fields, from PyTorch's DCGAN example and from papers
ALIASES = {"source": ("data", "dataset"), "data_root": ("dataroot",), "image_size": ("imageSize",),
           "batch": ("batch_size", "batchSize"), "epochs": ("niter",), "net_g": ("netG",), "net_d": ("netD",),
           "outdir": ("outf",), "seed": ("manualSeed",), "d_steps": ("n_critic",)}
METRICS = ("fid", "kid", "is", "score")
AUGMENTATIONS = ("color", "translation", "cutout")


def option(key: str) -> str:
    """The option of a field."""
    return "--data" if key == "source" else "--" + key.replace("_", "-")


def also(field: str) -> list[str]:
    """The other options of a field. The main option of "source" is --data."""
    return [option(name) for name in ALIASES[field] if name != "data"]


def field_of(key: str) -> str:
    """The field with this name, alias, or option without leading dashes."""
    key = key.replace("-", "_")
    return next((field for field, others in ALIASES.items() if key in others), key)


def nearest(given: str, known: list[str]) -> str:
    """A suggestion for an unknown name."""
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"


def metric_names(text: str) -> list[str]:
    """Parse "fid,kid" as ["fid", "kid"], and "" as []."""
    return _names("--metrics", text, METRICS, "fid,kid")


def augmentation_names(text: str) -> list[str]:
    """Parse "color,cutout" as ["color", "cutout"], and "" as []."""
    return _names("--augment", text, AUGMENTATIONS, "color,translation,cutout")


def _names(option: str, text: str, known: tuple[str, ...], example: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise FastganError(f"{option} {text}: unknown {name!r}; expected some of {', '.join(known)}, as in "
                               f"{option} {example}" + (f"; did you mean {close[0]}?" if close else ""))
    return list(dict.fromkeys(names))


def parse_size(text: str) -> tuple[int, int]:
    """Parse "64" or "64x96" as (height, width)."""
    parts = str(text).lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise FastganError(f"--image-size {text}: expected a side such as 64 or HEIGHTxWIDTH such as 64x96, up to 4096")
    return int(parts[0]), int(parts[-1])


# for each field, a description of the accepted values and the check
_POSITIVE = ("a number above 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = ("0 or more", lambda value: 0 <= value < math.inf)
_FRACTION = ("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
_COUNT = ("a whole number from 1 to 2^31 - 1", lambda value: 1 <= value < 2**31)
RULES: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(["lr", "lr_g", "lr_d", "bn_eps", "adam_eps", "epochs", "cache_gb", "d_loss_weight"], _POSITIVE),
    **dict.fromkeys(["holdout", "gpu_data_gb", "workers", "snap_minutes", "gp", "r1", "gamma_std", "lr_warmup",
                     "grad_clip", "weight_clip"], _NOT_NEGATIVE),
    **dict.fromkeys(["beta1", "beta2", "ema", "label_smoothing"], _FRACTION),
    **dict.fromkeys(["batch", "nz", "ngf", "ndf", "d_steps", "penalty_every", "accumulate", "steps", "snap",
                     "log_every", "keep", "grid"], _COUNT),
    "metrics_images": ("a whole number of at least 100", lambda value: value >= 100),
    "seed": ("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    "noise_mean": ("a finite number", math.isfinite),
    "bn_momentum": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
}
