"""The configuration of an experiment: plain values in four groups, one for each package that reads them.

A preset is a value of `Config`; the command line is made from its fields (`--lr 1e-4`, `--image-size 64x96`); the
run folder stores it as `training_options.json`. Nothing here imports torch, so that `--help` is instant.
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
    """Converts fields that are `os.PathLike` to str, as they are stored."""

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if isinstance(value, os.PathLike):
                object.__setattr__(self, key, os.fspath(value))


@dataclass(frozen=True)
class DataConfig(_Paths):
    """The images, and how they become batches."""

    source: Annotated[str, arg(name="data", aliases=also("source"))] = "digits"
    """digits | mnist | fashion-mnist | cifar10 | celeba | idx:DIR | folder:DIR | npz:FILE | gaussian"""
    data_root: Annotated[str, arg(aliases=also("data_root"))] = "~/.cache/fastgan"
    """where downloaded data sets are kept"""
    split: Literal["train", "test", "all"] = "train"
    """which part of a data set; digits, gaussian and folders have only one, train"""
    holdout: int = 0
    """leave out the first N images (TensorFlow's MNIST reader keeps 5000 for validation)"""
    image_size: Annotated[str, arg(aliases=also("image_size"))] = "64"
    """side length, or HEIGHTxWIDTH such as 64x96"""
    channels: Literal[1, 3, 4] | None = None
    """grey, RGB or RGBA; as the data has it when not given"""
    fit: Literal["crop", "stretch", "none"] = "crop"
    """resize the shorter side and crop the centre | resize both sides | only crop the centre"""
    flip: bool = False
    """mirror each image with probability 1/2"""
    unit_range: bool = False
    """pixels in [0, 1] instead of [-1, 1]"""
    cond: bool = False
    """conditional: feed the labels to both networks through embeddings"""
    balanced: bool = False
    """draw each class equally often, with replacement, as PyTorch's WeightedRandomSampler does with weights
    1 / (images of the class)"""
    batch: Annotated[int, arg(aliases=also("batch"))] = 64
    """images per step"""
    last_batch: Literal["drop", "keep", "pad", "rollover"] = "drop"
    """an incomplete last batch: drop | keep it short | fill it from the start of the epoch | from the next epoch"""
    cache_gb: float = 4.0
    """decode image files once into memory when they need no more than this many GB (10^9 bytes); else stream them"""
    gpu_data_gb: float = 8.0
    """keep a decoded data set on the GPU when it needs no more than this many GB (10^9 bytes); else feed it from pinned
    memory"""
    workers: int = 2
    """threads that decode when streaming"""
    strict: bool = False
    """stop at the first image that cannot be used instead of skipping it"""


@dataclass(frozen=True)
class ModelConfig:
    """The two networks and the noise between them."""

    architecture: Literal["dcgan", "oreilly", "tf", "gaussian"] = "dcgan"
    """the family of networks (see `fastgan presets`)"""
    nz: int = 100
    """length of the latent vector z"""
    ngf: int = 64
    """generator width: channels of its last hidden stage"""
    ndf: int = 64
    """discriminator width: channels of its first stage"""
    noise: Literal["normal", "uniform"] = "normal"
    """z ~ N(noise-mean, 1), or uniform on [-1, 1]"""
    noise_mean: float = 0.0
    """mean of normal noise"""
    norm_d: Literal["skip-first", "all", "none", "spectral"] = "skip-first"
    """discriminator stages with batch normalisation; spectral normalization instead, then with --loss hinge unless
    another is given. --loss wgan-gp and --r1 choose none unless this is given"""
    bn_eps: float = 1e-5
    """epsilon of batch normalisation"""
    bn_momentum: float = 0.1
    """weight of the new value in the running statistics (PyTorch's convention)"""
    gamma_std: float = 0.02
    """batch normalisation scales start from N(1, gamma-std)"""
    fix_gamma: bool = False
    """hold batch normalisation scales at 1"""
    sample_bn: Literal["running", "batch"] = "running"
    """statistics that normalise when pictures are drawn"""


@dataclass(frozen=True)
class TrainConfig(_Paths):
    """Losses, optimizer and the order of updates."""

    loss: Literal["bce", "minimax", "softmax", "least-squares", "hinge", "wgan", "wgan-gp"] = "bce"
    """what discriminator and generator minimise"""
    gp: float = 10.0
    """weight of WGAN's gradient penalty"""
    r1: float = 0.0
    """weight gamma of the R1 penalty, gamma/2 E|grad D(x)|^2, added to any loss"""
    penalty_every: int = 1
    """add either penalty only at every Nth step, N times as strong (StyleGAN 2's lazy regularisation)"""
    label_smoothing: float = 0.0
    """reals count as real with probability 1 minus this, for bce and minimax"""
    augment: str = ""
    """DiffAugment, for few images: what the discriminator sees is changed by some of color,translation,cutout"""
    d_loss_weight: float = 1.0
    """factor on the discriminator's loss (1/2 in Dive into Deep Learning)"""
    d_steps: Annotated[int, arg(aliases=also("d_steps"))] = 1
    """discriminator updates for each generator update"""
    real_first: bool = True
    """the discriminator sees the real batch before the fakes"""
    fakes: Literal["reuse", "same-z", "fresh-z"] = "reuse"
    """the generator's update uses the fakes of the D step | G again on the same z | G on new z"""
    lr: float = 2e-4
    """learning rate of both networks"""
    lr_g: float | None = None
    """learning rate of the generator, when it differs"""
    lr_d: float | None = None
    """learning rate of the discriminator, when it differs"""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """how the learning rates fall: not | to 0 at the last step, in a straight line | along a cosine"""
    lr_warmup: int = 0
    """steps over which the learning rates rise from 0"""
    beta1: float = 0.5
    """Adam's decay of the first moment"""
    beta2: float = 0.999
    """Adam's decay of the second moment"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    adam_eps_hat: bool = False
    """epsilon beside the raw sqrt(v), as TensorFlow and MXNet have it, instead of the bias-corrected one"""
    grad_clip: float = 0.0
    """clip the norm of all gradients of a network to this; 0 does not"""
    weight_clip: float = 0.0
    """clip the discriminator's weights to [-this, this] after each of its updates (--loss wgan); 0 does not"""
    accumulate: int = 1
    """equal parts of a batch whose gradients are added up before each update: less memory for large batches"""
    sync_bn: bool = False
    """of several processes (torchrun): batch statistics of the whole batch instead of each process's part of it"""
    ema: float = 0.0
    """decay per step of the moving average of the generator; 0 keeps none"""
    epochs: Annotated[float, arg(aliases=also("epochs"))] = 25
    """passes over the data"""
    net_g: Annotated[str | None, arg(aliases=also("net_g"))] = None
    """start from these weights of the generator: netG.pth of PyTorch's DCGAN example, or a generator.safetensors"""
    net_d: Annotated[str | None, arg(aliases=also("net_d"))] = None
    """start from these weights of the discriminator: netD.pth of PyTorch's DCGAN example"""
    steps: int | None = None
    """batches to train on; overrides epochs"""

    @property
    def penalised(self) -> bool:
        """Whether there is a gradient penalty in some steps."""
        return self.r1 > 0 or self.loss == "wgan-gp"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of a whole run."""
        return self.steps or math.ceil(self.epochs * steps_per_epoch)


@dataclass(frozen=True)
class RunConfig(_Paths):
    """Where the run computes and what it writes."""

    outdir: Annotated[str, arg(aliases=also("outdir"))] = "runs"
    """run folders are made here: 00000-digits, 00001-..."""
    seed: Annotated[int, arg(aliases=also("seed"))] = 0
    """seed of everything random"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    impl: Literal["auto", "reference", "native", "triton"] = "auto"
    """the engine of the convolutions: auto follows the plan | PyTorch's operators | C++ kernels around a library's
    convolutions | Triton kernels, from sm_80 on"""
    plan: str = "auto"
    """what --impl auto follows: auto measures at the start, once on each machine, which engine is fastest for each pass
    of each block | default measures nothing | a file of `fastgan tune --export` pins its choices"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """arithmetic of the convolutions: auto is bf16 on NVIDIA GPUs from sm_80 on, else fp32"""
    graph: Literal["auto", "on", "off"] = "auto"
    """the whole step as one CUDA graph: auto is on where there is a CUDA device"""
    snap: int | None = None
    """steps between pictures and checkpoints; a fifth of the run when not given, from 50 to 500"""
    snap_minutes: float = 10.0
    """minutes after which there are pictures and a checkpoint in any case; 0: never"""
    log_every: int = 10
    """steps between lines of stats.jsonl and TensorBoard points; only then does the host wait for the device"""
    keep: int = 3
    """checkpoints kept"""
    pictures: Literal["grid", "side-by-side"] = "grid"
    """what a snapshot shows: a grid from fixed latents | this step's fakes beside its reals"""
    grid: int = 64
    """images in a picture"""
    tensorboard: bool = True
    """write TensorBoard events"""
    metrics: str = ""
    """how good the fakes are, measured at each snapshot by some of fid,kid,is (torch-fidelity's) and score (by a
    classifier that has learnt the labelled reals: for small or grey images); not measured when not given"""
    metrics_images: int = 2000
    """fakes that are measured; only measures of equally many can be compared"""
    metrics_weights: str | None = None
    """file with InceptionV3's weights, which fid, kid and is need; else looked for where torch.hub keeps weights"""


    def snapshot_steps(self, total: int) -> int:
        """`snap` in a run of `total` steps."""
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
        """A copy with the named fields changed, in whichever group they are: `config.replace(batch=32, lr=1e-4)`."""
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
        """The inverse of `flat`. A missing field has its default; an unknown one raises `FastganError`."""
        return cls().replace(**values)

    def check_values(self) -> None:
        """Raise `FastganError` for the first field whose value is invalid by itself."""
        for name, group in GROUPS.items():
            check_types(group, vars(getattr(self, name)))
        for key, (accepted, is_right) in RULES.items():
            value = self.flat()[key]
            if value is not None and not is_right(value):
                raise FastganError(f"{option(key)} {value}: expected {accepted}")

    def validate(self) -> Config:
        """Return this configuration, or raise `FastganError` for the first value that is invalid, also in combination
        with others."""
        self.check_values()
        parse_size(self.data.image_size)
        metric_names(self.run.metrics)
        augmentation_names(self.train.augment)
        combinations.check(self)
        return self


GROUPS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "run": RunConfig}

def group_of(key: str) -> str:
    """The name of the group of a field, by any of its names, or `FastganError` with the nearest names."""
    for name, group in GROUPS.items():
        if field_of(key) in {f.name for f in dataclasses.fields(group)}:
            return name
    known = [f.name for group in GROUPS.values() for f in dataclasses.fields(group)]
    known += [name for names in ALIASES.values() for name in names]
    raise FastganError(f"unknown option {key!r}; {nearest(key, known)}")


def data_shape(config: Config) -> tuple[int, ...]:
    """(C, H, W) of the images that a configuration trains on, or (2,) of points; the data itself is not read."""
    if config.model.architecture == "gaussian":
        return (2,)
    grey = config.data.source in ("digits", "mnist", "fashion-mnist")
    return config.data.channels or (1 if grey else 3), *parse_size(config.data.image_size)
