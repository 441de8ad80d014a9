"""The loss of logits with its gradient, in one launch: a program reads one part of the batch once.

For a part of M logits l with target t, and sigma = sigmoid,

    kind        loss                                                    gradient * M                       score
    logistic    E[-t log sigma(l) - (1 - t) log(1 - sigma(l))]          (1 - t) sigma(l) - t sigma(-l)     E[sigma(l)]
                = E[w |l| + log(1 + u)]
    hinge       E[t max(0, 1 - l) + (1 - t) max(0, 1 + l)]              (1 - t) [l > -1] - t [l < 1]       E[sigma(l)]
    wgan        E[(1 - t) l - t l]                                      1 - 2 t                            E[l]

    u = exp(-|l|),   w = 1 - t where l > 0, else t

There is no cancellation between terms of the logistic loss, so the relative error is a few rounding units of float32,
also if D is certain and the result is exp(-|l|). Eager PyTorch needs about twenty launches on a few hundred numbers:
softplus or relu, mean and sigmoid of each part, and their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import GAN_LOSSES
from fastgan.ops.triton.launch import begin, launch
from fastgan.ops.triton.tiles import Tile

_TILE = Tile(rows=1024, columns=1, depth=1, warps=4, stages=1)  # logits at a time


@triton.jit
def exp_of_minus(a):
    """exp(-a) for a >= 0: 2^-n * exp(r) with r = n ln 2 - a, |r| < 0.35. tl.exp rounds a / ln 2, an error of a / 2."""
    a = tl.where(a > 128.0, 128.0, a)  # exp(-128) is 0 in float32; inf - inf would be NaN; keeps NaN
    n = tl.floor(a * 1.4426950408889634 + 0.5)
    r = (n * 0.693145751953125 - a) + n * 1.4286068203094172e-06  # ln 2 in two parts: the first product is exact
    return tl.exp2(-n) * tl.exp(r)


@triton.jit
def log_of_one_plus(u):
    """log(1 + u) for u in [0, 1], with a first-order correction of the rounding error of 1 + u."""
    w = 1.0 + u
    return tl.log(w) + (u - (w - 1.0)) / w


@triton.jit
def sigmoids(value):
    """sigmoid(l), sigmoid(-l) and log(1 + u)."""
    u = exp_of_minus(tl.abs(value))
    large, small = 1.0 / (1.0 + u), u / (1.0 + u)  # sigma(|l|), sigma(-|l|)
    up = value > 0
    return tl.where(up, large, small), tl.where(up, small, large), log_of_one_plus(u)


@triton.jit
def times(weight, term):
    """weight * term, also for weight 0 and an infinite term."""
    return weight * tl.where(weight == 0, 0.0, term)


@triton.jit(do_not_specialize=["size"])
def gan_loss_kernel(logits, gradient,  # [G * M] each
                    loss, score,  # [G]
                    ones, zeros,  # G floats each: t and 1 - t
                    size,  # M
                    KIND: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """Grid (G,). A program computes the loss, score and gradient of a part, BM logits at a time.

    KIND: the index of the kind of loss in GAN_LOSSES.
    """
    begin(PDL)
    part = tl.program_id(0)
    one, zero = 0.0, 0.0
    for other in tl.static_range(len(ones)):
        is_ours = (part == other).to(tl.float32)  # with tl.where, the compiler would select the address of a parameter
        one += is_ours * ones[other]
        zero += is_ours * zeros[other]
    first = part.to(tl.int64) * size
    losses = tl.zeros((BM,), tl.float32)
    scores = tl.zeros((BM,), tl.float32)
    for start in range(0, size, BM):
        at = start + tl.arange(0, BM)  # [BM]
        inside = at < size
        value = tl.load(logits + first + at, mask=inside, other=0.0).to(tl.float32)
        yes, no, log = sigmoids(value)
        if KIND == 0:
            term = times(tl.where(value > 0, zero, one), tl.abs(value)) + log
            slope = zero * yes - one * no
        elif KIND == 1:
            below, above = 1.0 - value, 1.0 + value  # not tl.maximum, which drops NaN
            term = times(one, tl.where(below <= 0, 0.0, below)) + times(zero, tl.where(above <= 0, 0.0, above))
            slope = tl.where(above <= 0, 0.0, zero) - tl.where(below <= 0, 0.0, one)
        else:
            yes = value
            term = times(zero, value) - times(one, value)
            slope = tl.zeros((BM,), tl.float32) + (zero - one)
        losses += tl.where(inside, term, 0.0)
        scores += tl.where(inside, yes, 0.0)
        tl.store(gradient + first + at, slope / size, mask=inside)
    tl.store(loss + part, tl.sum(losses, 0) / size)
    tl.store(score + part, tl.sum(scores, 0) / size)


def gan_loss(logits: Tensor, targets: Sequence[float], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and score [G] of equal parts of `logits` [G * M], and the gradient [G * M] of each part's loss.

    All are float32: gradients of 16-bit logits are rounded after they are multiplied by the incoming gradient.
    """
    parts = len(targets)
    loss, score = (torch.empty((parts,), dtype=torch.float32, device=logits.device) for _ in range(2))
    gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    launch(gan_loss_kernel, (parts,), _TILE, logits=logits.contiguous(), gradient=gradient, loss=loss, score=score,
           ones=tuple(targets), zeros=tuple(1.0 - target for target in targets), size=len(logits) // parts,
           KIND=GAN_LOSSES.index(kind), BM=_TILE.rows)
    return loss, score, gradient
