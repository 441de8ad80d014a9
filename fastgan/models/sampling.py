"""The noise, paths between latents, and sampling from a trained generator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


class Noise:
    """The distribution of z, a vector of length nz: N(mean, 1), or uniform on [-1, 1]."""

    def __init__(self, kind: str, mean: float, nz: int) -> None:
        self.kind, self.mean, self.nz = kind, mean, nz

    def __call__(self, count: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
                 generator: torch.Generator | None = None) -> Tensor:
        """`count` latent vectors, (count, nz), drawn from `generator` or the default generator of the device."""
        z = torch.empty(count, self.nz, device=device, dtype=dtype)
        if self.kind == "uniform":
            return z.uniform_(-1, 1, generator=generator)
        return z.normal_(self.mean, 1, generator=generator)

    def from_seeds(self, seeds: Sequence[int]) -> Tensor:
        """One latent per seed, (len(seeds), nz), which depends only on this seed and not on the device."""
        return torch.cat([self(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def walk(self, seeds: Sequence[int], count: int) -> Tensor:
        """Paths of `count` latents from the latent of each seed to the next: ((len(seeds) - 1) * count, nz)."""
        return torch.cat([self.path(a, b, count) for a, b in itertools.pairwise(self.from_seeds(seeds))])

    def path(self, start: Tensor, end: Tensor, count: int) -> Tensor:
        """`count` latents (count, nz) from start (nz,) to end (nz,), both included.

        Spherical interpolation for normal noise, which is concentrated near a sphere; linear for uniform noise.
        """
        t = torch.linspace(0, 1, count, dtype=start.dtype)[:, None]
        if self.kind == "uniform":
            return torch.lerp(start, end, t)
        a, b = start - self.mean, end - self.mean
        angle = torch.arccos(torch.clamp(torch.dot(a, b) / (a.norm() * b.norm()), -1, 1))
        if angle.sin().abs() < 1e-4:
            return torch.lerp(start, end, t)
        return self.mean + (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()


@torch.no_grad()
def draw(generator: nn.Module, z: Tensor, labels: Tensor | None = None, *, batch_statistics: bool = False) -> Tensor:
    """Generate images (or points) from z (N, nz), in float32 on the CPU. The mode and the running statistics of the
    generator are not changed.

    Batch normalization uses the running statistics, or, with `batch_statistics`, those of the batch.
    """
    like = next(generator.parameters())
    was_training, buffers = generator.training, [b.clone() for b in generator.buffers()]
    generator.train(batch_statistics)
    chunk = len(z) if batch_statistics else 256
    inputs = [z.split(chunk)] if labels is None else [z.split(chunk), labels.split(chunk)]
    images = [generator(latents.to(like), *(part.to(like.device) for part in classes)).float().cpu()
              for latents, *classes in zip(*inputs, strict=True)]
    generator.train(was_training)
    for buffer, saved in zip(generator.buffers(), buffers, strict=True):
        buffer.copy_(saved)
    return torch.cat(images)


def measure_statistics(generator: nn.Module, z: Tensor, labels: Tensor | None = None, *, batch: int = 64) -> None:
    """Replace the running statistics of batch normalization by their means over z (N, nz) in batches of `batch`.

    Averaged parameters need this, because the running statistics of the trained network are those of other activations.
    labels: (N,) if conditional. Uses `torch.optim.swa_utils.update_bn`.
    """
    like = next(generator.parameters())
    inputs = [z.to(like)] if labels is None else [z.to(like), labels.to(like.device)]
    batches = zip(*(part.split(batch) for part in inputs), strict=True)
    update_bn(((one,) for one in batches), _Unpacked(generator).train(generator.training))


class _Unpacked(nn.Module):
    """A network that takes its inputs as one tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = self.network(*inputs)
        return output
