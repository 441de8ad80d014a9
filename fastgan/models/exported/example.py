"""netG.pth and netD.pth as PyTorch's DCGAN example saves them, for networks which that example can build."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.models.dcgan import DCGANGenerator
from fastgan.models.pretrained import Pretrained

_SIZE, _BN_EPS = (64, 64), 1e-5  # those of the example's networks


def write(source: Pretrained, discriminator: dict[str, Tensor] | None) -> dict[str, bytes]:
    """netG.pth, and netD.pth where a discriminator is given: state_dicts under their own names.

    Raises `FastganError` where the example's networks cannot take these weights, or would make something else of them.
    """
    _check(source)
    networks = {"netG.pth": source.generator.state_dict(), "netD.pth": discriminator}
    return {name: _saved(state) for name, state in networks.items() if state is not None}


def _check(source: Pretrained) -> None:
    model, shape, reason = source.model, source.shape, ""
    if not isinstance(source.generator, DCGANGenerator):
        reason = f"--architecture {model.architecture}"
    elif shape[1:] != _SIZE:
        reason = f"images of {shape[1]}x{shape[2]}"
    elif source.classes:
        reason = "--cond"
    elif model.norm_d != "skip-first":
        reason = f"--norm-d {model.norm_d}"
    elif not math.isclose(model.bn_eps, _BN_EPS, rel_tol=1e-6):
        reason = f"--bn-eps {model.bn_eps}"
    elif model.noise != "normal":
        reason = f"--noise {model.noise}"
    elif model.noise_mean != 0:
        reason = f"--noise-mean {model.noise_mean}"
    if reason:
        raise FastganError(f"--format pytorch-example: this was trained with {reason}; that example's networks have "
                           f"--architecture dcgan, 64x64, no labels, --norm-d skip-first, --bn-eps {_BN_EPS}, "
                           "--noise normal, --noise-mean 0")


def _saved(state: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, stream)
    return stream.getvalue()
