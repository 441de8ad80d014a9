"""A DCGAN as a LightningModule that uses fastgan's networks (`pip install lightning`).

    python examples/lightning_dcgan.py [STEPS]

Two optimizers in one step need Lightning's manual optimization. Lightning's Trainer manages devices, precision and
checkpoints.
"""

import sys

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import fastgan
from fastgan.config import DataConfig
from fastgan.data import open_dataset, to_model_range
from fastgan.models import DCGANDiscriminator, DCGANGenerator

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 500
BATCH, NZ, WIDTH = 64, 64, 32
LR, BETAS = 2e-4, (0.5, 0.999)


class DCGAN(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = fastgan.nn.use(DCGANGenerator(NZ, WIDTH, 1, 32), "native")
        self.discriminator = fastgan.nn.use(DCGANDiscriminator(WIDTH, 1, 32), "native")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(network.parameters(), LR, BETAS) for network in (self.generator, self.discriminator)]

    def training_step(self, real: Tensor, index: int) -> None:
        adam_g, adam_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), NZ, device=self.device))

        # one call for both halves, with separate batch statistics
        with fastgan.nn.stat_groups(self.discriminator, 2):
            on_real, on_fake = self.discriminator(torch.cat([real, fake.detach()])).chunk(2)
        loss_d = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        adam_d.zero_grad()
        self.manual_backward(loss_d)
        adam_d.step()

        with fastgan.nn.frozen(self.discriminator):  # without gradients of its weights, which are not needed
            loss_g = F.softplus(-self.discriminator(fake)).mean()
        adam_g.zero_grad()
        self.manual_backward(loss_g)
        adam_g.step()
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g}, prog_bar=True)


def batches() -> DataLoader:
    """Handwritten digits (64, 1, 32, 32) in [-1, 1]."""
    pixels = open_dataset(DataConfig(image_size="32")).data  # uint8
    images = to_model_range(pixels, flip=False, unit_range=False, dtype=torch.float32)
    return DataLoader(images, BATCH, shuffle=True, drop_last=True)


if __name__ == "__main__":
    lightning.seed_everything(0)
    # max_steps counts the steps of both optimizers
    trainer = lightning.Trainer(max_steps=2 * STEPS, max_epochs=-1, logger=False, enable_checkpointing=False,
                                log_every_n_steps=1)
    trainer.fit(DCGAN(), batches())
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
