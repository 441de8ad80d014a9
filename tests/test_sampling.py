"""Measured running statistics of averaged parameters: compared with their definition, and in a run."""

from __future__ import annotations

import pytest
import torch

from fastgan.models import DCGANGenerator
from fastgan.models.pretrained import Pretrained
from fastgan.models.sampling import measure_statistics
from fastgan.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("classes", [0, 3], ids=["unconditional", "conditional"])
def test_statistics_are_means_over_the_batches(classes):
    """For the first normalization: means and unbiased variances of its inputs over batches. Nothing else changes."""
    torch.manual_seed(0)
    generator = DCGANGenerator(8, 4, 1, 16, num_classes=classes).double().eval()
    other = [key for key in generator.state_dict() if "running" not in key and "num_batches" not in key]
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    z, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) % 3 if classes else None
    measure_statistics(generator, z, labels, batch=4)

    first, norm = generator.main[0], generator.main[1]
    seen: list[torch.Tensor] = []
    hook = first.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    for i in range(0, 12, 4):
        generator(z[i:i + 4], *([] if labels is None else [labels[i:i + 4]]))
    hook.remove()
    torch.testing.assert_close(norm.running_mean, torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0))
    assert norm.momentum == 0.1 and not generator.training
    assert all(torch.equal(generator.state_dict()[key], before[key]) for key in other)


def test_a_run_draws_its_average_with_statistics_of_its_own(tiny):
    """In its pictures and its file; those of the trained network do not change, and each measurement is the same."""
    trainer = Trainer(tiny(ema=0.9, cond=True))
    folder = trainer.fit()
    live = {key: value.clone() for key, value in trainer.step.generator.named_buffers()}
    own = {key: value.clone() for key, value in trainer.pretrained().generator.named_buffers()}
    assert own.keys() == live.keys()
    assert not any(torch.equal(own[key], live[key]) for key in own if "running" in key)
    kept = dict(Pretrained.load(folder).generator.named_buffers())
    assert all(torch.equal(own[key], kept[key]) for key in own)
    assert all(torch.equal(value, live[key]) for key, value in trainer.step.generator.named_buffers())
