"""Export to netG.pth and netD.pth of PyTorch's DCGAN example, for networks that the example can build."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.models.dcgan import DCGANGenerator
from fastgan.models.pretrained import Pretrained

_SIZE, _BN_EPS = (64, 64), 1e-5  # as in the example's networks


def write(source: Pretrained, discriminator: dict[str, Tensor] | None) -> dict[str, bytes]:
    """netG.pth, and netD.pth if a discriminator is given: state_dicts with the example's names.

    Raises `FastganError` if the example's networks cannot use these weights or would give other results.
    """
    _check(source)
    networks = {"netG.pth": source.generator.state_dict(), "netD.pth": discriminator}
    return {name: _saved(state) for name, state in networks.items() if state is not None}


def _check(source: Pretrained) -> None:
    model, shape = source.model, source.shape
    reasons = {
        f"--architecture {model.architecture}": not isinstance(source.generator, DCGANGenerator),
        f"images of {'x'.join(map(str, shape[1:]))}": shape[1:] != _SIZE,
        "--cond": bool(source.classes),
        f"--norm-d {model.norm_d}": model.norm_d != "skip-first",
        f"--bn-eps {model.bn_eps}": not math.isclose(model.bn_eps, _BN_EPS, rel_tol=1e-6),
        f"--noise {model.noise}": model.noise != "normal",
        f"--noise-mean {model.noise_mean}": model.noise_mean != 0,
    }
    for reason, differs in reasons.items():
        if differs:
            raise FastganError(f"--format pytorch-example: the run was trained with {reason}; expected, as in that "
                               "example, --architecture dcgan, 64x64, no labels, --norm-d skip-first, --bn-eps "
                               f"{_BN_EPS}, --noise normal, --noise-mean 0")


def _saved(state: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, stream)
    return stream.getvalue()
