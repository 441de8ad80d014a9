"""Part two of the certificate: whole training steps, and how far they move parameters and running statistics.

Networks that start from the same weights and see the same images and noise play the same steps: fastgan's engine,
eager PyTorch in the same precision, and float64. What is judged is the distance moved, of all parameters of a network
at once: an early step of Adam is lr times little more than a sign, so one parameter whose gradient is nearly zero goes
either way, by rounding, and takes others with it. How far rounding alone leads is the floor, the largest distance from
float64 of four others:

    eager
    eager with another order of summation: the batch reversed, in channels_last
    float64, twice, from parameters that are off by one rounding unit of the precision

    |moved(ours) - moved(exact)| <= 1.5 c x floor + one rounding unit of float32 sums,  c as in `rule`

Adam hides a gradient's size, so a wrong factor shows in part one; what shows here is what steps do with engines: order
of calls, frozen networks, running statistics, everything that a graph would freeze.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import numerics
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep
from fastgan.verify.found import Found, find
from fastgan.verify.game import Game, eager, fused, moved, nudged

# not float16, whose first steps are skipped until the loss has found its scale
PRECISIONS = ("fp32", "tf32", "bf16")


def examine(game: Game, impl: str) -> Found:
    """Steps of one engine against eager steps, both against float64."""
    return find(lambda: _compare(game, impl), impl)


def _compare(game: Game, impl: str) -> dict[str, numerics.Nearness]:
    exact, theirs, ours = moved(game, eager(game), exact=True), moved(game, eager(game)), moved(game, fused(game, impl))
    others = [theirs, moved(game, eager(game), reordered=True),
              *(moved(game, nudged(game, seed), exact=True) for seed in (0, 1))]
    found = {}
    for name, value in exact.items():
        chance = 1 + 3 / math.sqrt(value.numel())
        floor = max(_distance(other[name], value) for other in others)
        found[name] = numerics.Nearness("rms", _distance(ours[name], value), _distance(theirs[name], value),
                                    numerics.MARGIN * chance * floor + numerics.FLOAT32)
    return found


def why_no_graph(device: torch.device) -> str:
    """Why steps are not compared as a CUDA graph, in words; "" when they are."""
    return "" if device.type == "cuda" else "no CUDA device"


def examine_graph(game: Game, impl: str, allowed: dict[str, numerics.Nearness]) -> Found:
    """Steps as one CUDA graph, replayed, against the same engine's steps one by one; both draw noise on the device.

    What they move may differ by as much as is `allowed` between the engine and float64, and the device's random state
    must be the same afterwards.
    """
    return find(lambda: _compare_graph(game, impl, allowed), impl)


def _compare_graph(game: Game, impl: str, allowed: dict[str, numerics.Nearness]) -> dict[str, numerics.Nearness]:
    made: list[GraphedStep] = []

    def graphed(step: GANStep) -> GraphedStep:
        made.append(GraphedStep(step))
        return made[0]

    def play(wrap: Any) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(3)
        after = moved(game, fused(game, impl), wrap=wrap)
        return after, torch.cuda.get_rng_state(game.device) if game.device.type == "cuda" else torch.get_rng_state()

    (plain, one_by_one), (graph, replayed) = play(lambda step: step), play(graphed)
    if made[0].failure:
        raise FastganError(f"not captured: {made[0].failure}")
    made[0].close()
    found = {name: numerics.Nearness("rms", _distance(graph[name], value), 0.0, allowed[name].allowed)
             for name, value in plain.items()}
    found["random state"] = numerics.Nearness("equality", 0.0 if torch.equal(one_by_one, replayed) else 1.0, 0.0, 0.0)
    return found


def _distance(found: Tensor, exact: Tensor) -> float:
    """Relative to how far `exact` went; absolute where it stayed."""
    return float((found - exact).norm()) / (float(exact.norm()) or 1.0)
