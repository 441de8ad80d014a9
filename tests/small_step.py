"""A small training step that can be captured, for tests of graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Adam


class SmallStep:
    """Updates D in every call and G in every second one. Both have a convolution, BatchNorm2d and a second layer.

    The losses of call t are also written to row t of `ring` (rows, 2), by a counter on the device.
    """

    def __init__(self, rows: int = 16, d_steps: int = 2) -> None:
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.ConvTranspose2d(3, 4, 4), nn.BatchNorm2d(4), nn.ReLU(),
                                       nn.ConvTranspose2d(4, 1, 4, 2, 1))
        self.discriminator = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
                                           nn.Conv2d(4, 1, 4))
        self.average = [p.detach().clone() for p in self.generator.parameters()]
        self.adam_g, self.adam_d = make_adam(self.generator), make_adam(self.discriminator)
        self.ring, self.count = torch.zeros(rows, 2), torch.zeros(1, dtype=torch.int64)
        self.d_steps, self.steps = d_steps, 0

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        phase = self.phase()
        outputs = self.run(phase, *inputs)
        self.advance(phase, *inputs)
        return outputs

    def allocate(self, real: Tensor) -> None:
        """Nothing to allocate."""

    def phase(self) -> str:
        return "D" if (self.steps + 1) % self.d_steps else "D and G"

    def is_ready(self, phase: str) -> bool:
        return True

    def run(self, phase: str, *inputs: Tensor) -> dict[str, Tensor]:
        (real,) = inputs
        fake = self.generator(self.draw(real))
        loss_d = softplus(-self.discriminator(real)).mean() + softplus(self.discriminator(fake.detach())).mean()
        self.update(self.adam_d, loss_d)
        outputs = {"loss_d": loss_d.detach()}
        if phase == "D and G":
            loss_g = softplus(-self.discriminator(fake)).mean()
            self.update(self.adam_g, loss_g)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.generator.parameters()), 0.1)
            outputs["loss_g"] = loss_g.detach()
        row = torch.stack([loss_d.detach(), outputs.get("loss_g", loss_d).detach()])
        self.ring.index_copy_(0, self.count % len(self.ring), row[None])
        self.count += 1
        return outputs

    def advance(self, phase: str, *inputs: Tensor) -> None:
        self.steps += 1

    def draw(self, real: Tensor) -> Tensor:
        """z (N, 3, 1, 1)."""
        return torch.randn(len(real), 3, 1, 1, device=real.device)

    def update(self, adam: Adam, loss: Tensor) -> None:
        params = adam.param_groups[0]["params"]
        for parameter, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            parameter.grad = grad
        adam.step()
        adam.zero_grad(set_to_none=True)

    def state(self) -> list[Tensor]:
        found: list[Tensor] = [self.ring, self.count, *self.average]
        for network, adam in ((self.generator, self.adam_g), (self.discriminator, self.adam_d)):
            params = adam.param_groups[0]["params"]
            found += [*params, *network.buffers(), *(v for p in params for v in adam.state[p].values())]
        return [t.detach() for t in found]


def make_adam(network: nn.Module) -> Adam:
    """An Adam that can be captured: its numbers are on the device, and its state exists before the first step."""
    adam = Adam(network.parameters(), lr=torch.tensor(1e-3), betas=(0.5, 0.999), fused=True, capturable=True)
    for parameter in network.parameters():
        adam.state[parameter] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter),
                                 "exp_avg_sq": torch.zeros_like(parameter)}
    return adam


def batches(count: int = 10) -> list[tuple[Tensor]]:
    """Inputs for as many calls: images (5, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(5, 1, 8, 8, generator=generator) * 2 - 1,) for _ in range(count)]


class Asking(nn.Module):
    """Its forward reads a value from the device."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean().item() < 1e9 else x
