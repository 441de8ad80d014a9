"""Whole steps, D and then G: the loop of PyTorch's DCGAN example, and ours.

Both start from the same weights, see the same images and draw the same noise, so that what the first steps move can be
compared, with float64 too. What the textbook does, it does as a preset says: losses, order of updates, Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.bench import gate
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.job import Job, Judged
from fastgan.config import Config
from fastgan.models import build
from fastgan.models.sampling import Noise
from fastgan.nn import use
from fastgan.ops import numerics
from fastgan.ops import tuning as plan
from fastgan.ops.tuning import stored
from fastgan.train.graph import GraphedStep
from fastgan.train.optim import make_adam
from fastgan.train.precision import autocast
from fastgan.train.step import GANStep
from fastgan.trainer import plan_setup
from fastgan.verify import game
from fastgan.verify.checks import shape_of

Step = Callable[[Tensor], Any]
SETS = 4  # batches
GATE = 2  # steps
NOISE = 3  # seed of what is drawn in them


class Training(Job):
    """Steps on random images that lie on the device."""

    def __init__(self, entry: Entry, contender: Contender, device: torch.device) -> None:
        super().__init__(SETS)
        self.images, self.contender = entry.batch, contender
        layout = torch.contiguous_format if contender.nchw else torch.channels_last
        self.real = [x.to(device).contiguous(memory_format=layout) for x in images(entry)]
        self.networks = networks(entry.config, device, layout)
        self.step = make(self.networks, entry.config, contender, self.real[0])

    def __call__(self, index: int) -> Any:
        return self.step(self.real[index % self.sets])

    def settle(self) -> None:
        if isinstance(self.step, GraphedStep):  # in whose first call memory is what it will be
            by_hand = self.step.step
            assert isinstance(by_hand, GANStep)
            with plan_setup.undone(by_hand, (self.real[0],)):
                by_hand.run(by_hand.phase(), self.real[0])

    def used(self, judged: Judged | None) -> tuple[float, str]:
        assert judged is not None
        before = _where(self.networks)
        torch.manual_seed(NOISE)
        for index in range(GATE):
            self(index)
        after = _where(self.networks)
        return gate.used({name: after[name] - before[name] for name in after}, judged, self.contender.precision)

    def trouble(self, outcome: Any) -> str:
        return trouble(self.step, outcome)


def trouble(step: Step, outcome: Any) -> str:
    """Why a step does not count: it gave up its graph, or a loss or gradient is not finite."""
    if isinstance(step, GraphedStep) and step.failure:
        return f"no graph: {step.failure}"
    finite = outcome["finite"].item() == 1 if isinstance(outcome, dict) else all(math.isfinite(x) for x in outcome)
    return "" if finite else "a loss or a gradient is not finite"


def networks(config: Config, device: torch.device, layout: torch.memory_format = torch.channels_last) -> game.Networks:
    """Generator and discriminator as every contender starts with them."""
    torch.manual_seed(0)
    generator, discriminator = (network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
                                for network in build(config.model, shape_of(config)))
    return generator, discriminator


def images(entry: Entry) -> list[Tensor]:
    """[N, C, H, W] in [-1, 1] on the CPU."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(entry.batch, *shape_of(entry.config), generator=generator) * 2 - 1 for _ in range(SETS)]


def make(networks: game.Networks, config: Config, contender: Contender, like: Tensor) -> Step:
    """The step of a contender, for batches like this one."""
    if contender.engine == "textbook" and not contender.graph:
        return textbook(networks, config, contender)
    return ours(networks, config, contender, like)


def ours(networks: game.Networks, config: Config, contender: Contender, like: Tensor) -> GANStep | GraphedStep:
    """fastgan's; under the engine "textbook", its loop with eager layers, which is what can be captured of them."""
    if contender.engine == "textbook":
        generator, discriminator = (fastgan.to_eager(network) for network in networks)
    else:
        generator, discriminator = (use(network, contender.engine) for network in networks)
    step = GANStep(generator, discriminator, config.model, config.train, precision=contender.precision,
                   savings=contender.savings, history=10)
    if contender.engine == "auto":
        plan.use(plan_setup.make(step, (like,), stored.machine(like.device)))
    return GraphedStep(step) if contender.graph else step


def textbook(networks: game.Networks, config: Config, contender: Contender) -> Step:
    """The loop of PyTorch's DCGAN example: D on real, D on fake, Adam, G through D, Adam."""
    eager = [fastgan.to_eager(network) for network in networks]
    generator, discriminator = (torch.compile(network, mode=contender.compiled) if contender.compiled else network
                                for network in eager)
    weights = [weight for weight in eager[1].parameters() if weight.requires_grad]
    train, noise = config.train, Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    adam_g, adam_d = (_adam(network, lr or train.lr, config, "fused_adam" in contender.saved)
                      for network, lr in zip(eager, (train.lr_g, train.lr_d), strict=True))

    def judge(x: Tensor) -> Tensor:
        with autocast(contender.precision, x.device):
            logits: Tensor = discriminator(x)
        return logits.float()

    def generate(z: Tensor) -> Tensor:
        with autocast(contender.precision, z.device):
            fake: Tensor = generator(z)
        return fake.float()

    def step(real: Tensor) -> tuple[Any, ...]:
        z = noise(len(real), device=real.device)
        fake = generate(z)
        adam_d.zero_grad()
        halves = [(real, 1.0), (fake.detach(), 0.0)]
        told = []
        for x, label in halves if train.real_first else halves[::-1]:
            loss = _against(judge(x), label) * train.d_loss_weight
            loss.backward()
            told.append(loss.detach())
        adam_d.step()
        if train.fakes != "reuse":
            fake = generate(noise(len(real), device=real.device) if train.fakes == "fresh-z" else z)
        adam_g.zero_grad()
        for weight in weights:
            weight.requires_grad_("frozen" not in contender.saved)
        loss = _against(judge(fake), 1.0)
        loss.backward()
        for weight in weights:
            weight.requires_grad_(True)
        adam_g.step()
        told.append(loss.detach())
        return tuple(one.item() for one in told) if contender.reads else tuple(told)

    return step


def _against(logits: Tensor, label: float) -> Tensor:
    """Cross-entropy, of logits (N,) or of two classes (N, 2): the loss of every preset."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, torch.full_like(logits[:, 0], label, dtype=torch.long))
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _adam(network: nn.Module, lr: float, config: Config, fused: bool) -> torch.optim.Optimizer:
    """PyTorch's, unless the preset's epsilon stands where PyTorch has none."""
    train, weights = config.train, [p for p in network.parameters() if p.requires_grad]
    if train.adam_eps_hat:
        return make_adam(weights, lr, train, fused=fused)
    return torch.optim.Adam(weights, lr, (train.beta1, train.beta2), train.adam_eps, fused=fused or None)


def judge(entry: Entry, precisions: list[str], device: torch.device) -> Judged:
    """What the first steps should move, how far rounding takes eager steps from it, and the operations of a step."""
    config = entry.config
    noise = Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    torch.manual_seed(NOISE)
    given = game.Given(images(entry)[:GATE], [noise(entry.batch, device=device).cpu() for _ in range(2 * GATE)])
    start = networks(config, torch.device("cpu"), torch.contiguous_format)
    played = {precision: game.Game(start, config, given, numerics.PRECISIONS[precision], device)
              for precision in precisions}
    one = next(iter(played.values()))
    with FlopCounterMode(display=False) as counter:
        exact = game.moved(one, game.eager(one), exact=True)
    floor = {precision: gate.floors(exact, [game.moved(each, game.eager(each)),
                                            game.moved(each, game.eager(each), reordered=True)])
             for precision, each in played.items()}
    return Judged(exact, floor, flops=counter.get_total_flops() / GATE)


def _where(networks: game.Networks) -> dict[str, Tensor]:
    return {f"{name} {what}": tensor for name, network in zip(("generator", "discriminator"), networks, strict=True)
            for what, tensor in game.state_of(network).items()}
