"""How much memory a step will need: a model, from shapes alone, before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastgan.config import Config
from fastgan.models import build
from fastgan.train.held import Held
from fastgan.train.step import GANStep


def estimate(config: Config, shape: tuple[int, ...], num_classes: int = 0) -> dict[str, int]:
    """Parameters ("generator", "discriminator") and bytes ("state", "activations") of one step in float32.

    State is weights, gradients, two Adam moments and the moving average. Activations are the tensors that autograd
    keeps, counted on the meta device: the larger of the D update, with the fakes' graph, and the G update.
    """
    with torch.device("meta"):
        step = GANStep(*build(config.model, shape, num_classes), config.model, config.train, precision="fp32")
        real = torch.empty(config.data.batch, *shape)
        labels = torch.zeros(config.data.batch, dtype=torch.long) if num_classes else None
        held = Held(config.model.nz, real, labels, config.train.real_first)
    with _counting_saved() as by_g:
        fake = step.generate(held.z, held.given())
    with _counting_saved() as by_d:
        step.discriminator_loss(held)
    with _counting_saved() as by_g_through_d:
        step.generator_loss(fake, held.given())
    counts = step.parameter_counts()
    ema = counts["generator"] if config.train.ema else 0
    return {**counts, "state": 4 * (4 * sum(counts.values()) + ema),
            "activations": sum(by_g.values()) + max(sum(by_d.values()), sum(by_g_through_d.values()))}


@contextmanager
def _counting_saved() -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd saves inside the block, parameters left out."""
    kept: list[Tensor] = []  # alive until the end, so that no address is used twice
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor)
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
