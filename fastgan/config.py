"""The configuration of an experiment: plain values in four groups, one for each package that reads them.

A preset is an instance of `Config`. Its fields are the options of the command line (`--lr 1e-4`, `--image-size 64x96`),
and a run folder stores them in `training_options.json`. This module does not import torch, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastgan import combinations
from fastgan.errors import FastganError
from fastgan.options import (
    ALIASES,
    RULES,
    Suppress,
    also,
    arg,
    augmentation_names,
    field_of,
    metric_names,
    nearest,
    option,
    parse_size,
)
from fastgan.validation import check_types


class _Paths:
    """Converts `os.PathLike` fields to str."""

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if isinstance(value, os.PathLike):
                object.__setattr__(self, key, os.fspath(value))


@dataclass(frozen=True)
class DataConfig(_Paths):
    """The data set and its batches."""

    source: Annotated[str, arg(name="data", aliases=also("source"))] = "digits"
    """digits | mnist | fashion-mnist | cifar10 | celeba | idx:DIR | folder:DIR | npz:FILE | gaussian"""
    data_root: Annotated[str, arg(aliases=also("data_root"))] = "~/.cache/fastgan"
    """folder for downloaded data sets"""
    split: Literal["train", "test", "all"] = "train"
    """part of the data set; digits, gaussian and folders have only train"""
    holdout: int = 0
    """do not train on the first N images (TensorFlow's MNIST reader reserves 5000 for validation)"""
    image_size: Annotated[str, arg(aliases=also("image_size"))] = "64"
    """side length, or HEIGHTxWIDTH such as 64x96"""
    channels: Literal[1, 3, 4] | None = None
    """gray, RGB or RGBA; the channels of the data if not given"""
    fit: Literal["crop", "stretch", "none"] = "crop"
    """resize the shorter side and crop the center | resize both sides | only crop the center"""
    flip: bool = False
    """mirror each image horizontally with probability 1/2"""
    unit_range: bool = False
    """pixels in [0, 1] instead of [-1, 1]"""
    cond: bool = False
    """conditional GAN: both networks receive embeddings of the labels"""
    balanced: bool = False
    """sample all classes equally often, with replacement, as PyTorch's WeightedRandomSampler does with weights
    1 / (images of the class)"""
    batch: Annotated[int, arg(aliases=also("batch"))] = 64
    """images per step"""
    last_batch: Literal["drop", "keep", "pad", "rollover"] = "drop"
    """incomplete last batch: drop it | keep it | fill it from the start of the epoch | fill it from the next epoch"""
    cache_gb: float = 4.0
    """decode image files once into memory if they need at most this many GB (10^9 bytes); otherwise in each epoch"""
    gpu_data_gb: float = 8.0
    """keep a decoded data set on the GPU if it needs at most this many GB (10^9 bytes); otherwise copy each batch from
    pinned memory"""
    workers: int = 2
    """threads that decode image files which are not kept in memory"""
    strict: bool = False
    """stop at the first unusable image instead of skipping it"""


@dataclass(frozen=True)
class ModelConfig:
    """The two networks and the noise."""

    architecture: Literal["dcgan", "oreilly", "tf", "gaussian"] = "dcgan"
    """architecture of both networks (see `fastgan presets`)"""
    nz: int = 100
    """length of the latent vector z"""
    ngf: int = 64
    """generator width: channels of its last hidden layer"""
    ndf: int = 64
    """discriminator width: channels of its first layer"""
    noise: Literal["normal", "uniform"] = "normal"
    """distribution of z: N(noise-mean, 1), or uniform on [-1, 1]"""
    noise_mean: float = 0.0
    """mean of normal noise"""
    norm_d: Literal["skip-first", "all", "none", "spectral"] = "skip-first"
    """normalization in the discriminator: batch normalization in all layers but the first | in all layers | none |
    spectral normalization, with --loss hinge if no loss is given. If not given, --loss wgan-gp and --r1 select none"""
    bn_eps: float = 1e-5
    """epsilon of batch normalization"""
    bn_momentum: float = 0.1
    """weight of the new value in the running statistics (PyTorch's convention)"""
    gamma_std: float = 0.02
    """batch normalization weights are initialized from N(1, gamma-std)"""
    fix_gamma: bool = False
    """keep batch normalization weights at 1"""
    sample_bn: Literal["running", "batch"] = "running"
    """batch normalization statistics when sampling images"""


@dataclass(frozen=True)
class TrainConfig(_Paths):
    """Losses, optimizer and the order of updates."""

    loss: Literal["bce", "minimax", "softmax", "least-squares", "hinge", "wgan", "wgan-gp"] = "bce"
    """loss function"""
    gp: float = 10.0
    """weight of WGAN's gradient penalty"""
    r1: float = 0.0
    """weight gamma of the R1 penalty, gamma/2 E|grad D(x)|^2, added to any loss"""
    penalty_every: int = 1
    """apply the gradient penalty only in every Nth step, N times as strong (lazy regularization of StyleGAN 2)"""
    label_smoothing: float = 0.0
    """the target for real images is 1 minus this value, for bce and minimax"""
    augment: str = ""
    """DiffAugment of the discriminator's inputs, for small data sets; some of color,translation,cutout"""
    d_loss_weight: float = 1.0
    """factor on the discriminator's loss (1/2 in Dive into Deep Learning)"""
    d_steps: Annotated[int, arg(aliases=also("d_steps"))] = 1
    """discriminator updates for each generator update"""
    real_first: bool = True
    """the discriminator receives the real batch before the fakes"""
    fakes: Literal["reuse", "same-z", "fresh-z"] = "reuse"
    """fakes for the generator's update: from the discriminator's update | again from the same z | from a new z"""
    lr: float = 2e-4
    """learning rate of both networks"""
    lr_g: float | None = None
    """learning rate of the generator; --lr if not given"""
    lr_d: float | None = None
    """learning rate of the discriminator; --lr if not given"""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """learning rate schedule: constant | linear decay to 0 at the last step | cosine decay to 0 at the last step"""
    lr_warmup: int = 0
    """steps of linear warmup of the learning rates from 0"""
    beta1: float = 0.5
    """Adam's decay rate of the first moment"""
    beta2: float = 0.999
    """Adam's decay rate of the second moment"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    adam_eps_hat: bool = False
    """add Adam's epsilon to sqrt(v) without bias correction, as TensorFlow and MXNet do"""
    grad_clip: float = 0.0
    """clip the gradient norm of each network to this value; 0 disables clipping"""
    weight_clip: float = 0.0
    """clip the discriminator's weights to [-value, value] after each update (--loss wgan); 0 disables clipping"""
    accumulate: int = 1
    """split each batch into N equal parts and accumulate their gradients, which needs less memory"""
    sync_bn: bool = False
    """with several processes (torchrun): compute batch statistics over the batches of all processes"""
    ema: float = 0.0
    """decay per step of an exponential moving average of the generator; 0 disables it"""
    epochs: Annotated[float, arg(aliases=also("epochs"))] = 25
    """passes over the data"""
    net_g: Annotated[str | None, arg(aliases=also("net_g"))] = None
    """initial weights of the generator: netG.pth of PyTorch's DCGAN example, or a generator.safetensors"""
    net_d: Annotated[str | None, arg(aliases=also("net_d"))] = None
    """initial weights of the discriminator: netD.pth of PyTorch's DCGAN example"""
    steps: int | None = None
    """number of training steps; overrides --epochs"""

    @property
    def penalised(self) -> bool:
        """Whether some steps have a gradient penalty."""
        return self.r1 > 0 or self.loss == "wgan-gp"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of steps of the whole run."""
        return self.steps or math.ceil(self.epochs * steps_per_epoch)


@dataclass(frozen=True)
class RunConfig(_Paths):
    """Device, engine, and files of a run."""

    outdir: Annotated[str, arg(aliases=also("outdir"))] = "runs"
    """folder in which run folders are created: 00000-digits, 00001-..."""
    seed: Annotated[int, arg(aliases=also("seed"))] = 0
    """seed of all random numbers"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    impl: Literal["auto", "reference", "native", "triton"] = "auto"
    """engine of the convolutions: selected by --plan | PyTorch operators | PyTorch or C++ convolutions with fused C++
    or CUDA kernels | Triton kernels (sm_80 or newer)"""
    plan: str = "auto"
    """engine selection of --impl auto: auto measures once on each machine which engine is fastest for each pass of each
    layer | default does not measure | a file written by `fastgan tune --export`"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """precision of the convolutions: auto is bf16 on NVIDIA GPUs with sm_80 or newer, otherwise fp32"""
    graph: Literal["auto", "on", "off"] = "auto"
    """capture the whole step in one CUDA graph; auto does so on a CUDA device"""
    snap: int | None = None
    """steps between snapshots (pictures and a checkpoint); a fifth of the run, from 50 to 500, if not given"""
    snap_minutes: float = 10.0
    """maximum minutes between snapshots; 0 disables the limit"""
    log_every: int = 10
    """steps between records in stats.jsonl and TensorBoard; the host waits for the device only then"""
    keep: int = 3
    """number of checkpoints to keep"""
    pictures: Literal["grid", "side-by-side"] = "grid"
    """pictures of a snapshot: a grid of images from fixed latents | the fakes of the step beside its real images"""
    grid: int = 64
    """images per picture"""
    tensorboard: bool = True
    """write TensorBoard events"""
    metrics: str = ""
    """comma-separated metrics of the generated images, computed at each snapshot: fid, kid, is (torch-fidelity), and
    score (a classifier trained on the labeled real images; for small or gray images); none if not given"""
    metrics_images: int = 2000
    """number of generated images for the metrics; values from different numbers of images are not comparable"""
    metrics_weights: str | None = None
    """file with InceptionV3's weights for fid, kid and is; searched in the folder of torch.hub if not given"""

    def snapshot_steps(self, total: int) -> int:
        """Steps between snapshots in a run of `total` steps."""
        return self.snap or min(500, max(50, math.ceil(total / 5)))


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    preset: Suppress[str] = "dcgan-64"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def replace(self, **values: Any) -> Config:
        """A copy with the given fields, of any group, replaced: `config.replace(batch=32, lr=1e-4)`."""
        changed = {name: dataclasses.asdict(getattr(self, name)) for name in GROUPS}
        preset = values.pop("preset", self.preset)
        for key, value in values.items():
            changed[group_of(key)][field_of(key)] = value
        return Config(preset, *(GROUPS[name](**fields) for name, fields in changed.items()))

    def flat(self) -> dict[str, Any]:
        """All fields in one dictionary; field names are unique across the groups."""
        values: dict[str, Any] = {"preset": self.preset}
        for name in GROUPS:
            values.update(dataclasses.asdict(getattr(self, name)))
        return values

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Config:
        """The inverse of `flat`. Missing fields have their defaults; an unknown field raises `FastganError`."""
        return cls().replace(**values)

    def check_values(self) -> None:
        """Check the type and range of each field; raise `FastganError` for the first invalid one."""
        for name, group in GROUPS.items():
            check_types(group, vars(getattr(self, name)))
        for key, (accepted, is_right) in RULES.items():
            value = self.flat()[key]
            if value is not None and not is_right(value):
                raise FastganError(f"{option(key)} {value}: expected {accepted}")

    def validate(self) -> Config:
        """Return this configuration, or raise `FastganError` for the first invalid value or combination of values."""
        self.check_values()
        parse_size(self.data.image_size)
        metric_names(self.run.metrics)
        augmentation_names(self.train.augment)
        combinations.check(self)
        return self


GROUPS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "run": RunConfig}

def group_of(key: str) -> str:
    """The name of the group that has this field or alias. Raises `FastganError` if there is none."""
    for name, group in GROUPS.items():
        if field_of(key) in {f.name for f in dataclasses.fields(group)}:
            return name
    known = [f.name for group in GROUPS.values() for f in dataclasses.fields(group)]
    known += [name for names in ALIASES.values() for name in names]
    raise FastganError(f"unknown option {key!r}; {nearest(key, known)}")


def data_shape(config: Config) -> tuple[int, ...]:
    """(C, H, W) of a configuration's images, or (2,) for points. Does not read the data."""
    if config.model.architecture == "gaussian":
        return (2,)
    grey = config.data.source in ("digits", "mnist", "fashion-mnist")
    return config.data.channels or (1 if grey else 3), *parse_size(config.data.image_size)
