"""For each preset: its plain loop, the data of both sides, and the state_dict key of each variable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastgan import presets
from fastgan.config import Config
from fastgan.data import to_model_range
from fastgan.models import build
from fastgan.train.step import GANStep
from tests.plain import d2l_dcgan, d2l_gaussian, dcgan_2015, mxnet_dcgan, oreilly_gan, tf_dcgan

AXES = {"as it is": None, "HWIO": (2, 3, 1, 0), "IO": (1, 0)}  # TensorFlow's layouts, from PyTorch's

Names = dict[str, tuple[str, str]]  # the document's name -> (the state_dict's key, layout)


def normalized(variable: str, key: str, words: tuple[str, str, str, str]) -> Names:
    """The four tensors of a batch normalization. words: the document's names of weight, bias and statistics."""
    ours = ("weight", "bias", "running_mean", "running_var")
    return {variable + word: (f"{key}.{our}", "as it is") for word, our in zip(words, ours, strict=True)}


def mxnet_names() -> Names:
    names = {}
    words = ("_gamma", "_beta", "_moving_mean", "_moving_var")
    for i in range(1, 6):
        names[f"g{i}_weight"] = (f"generator.main.{3 * i - 3}.weight", "as it is")
        names[f"d{i}_weight"] = (f"discriminator.main.{max(0, 3 * i - 4)}.weight", "as it is")
    for i in range(1, 5):
        names |= normalized(f"gbn{i}", f"generator.main.{3 * i - 2}", words)
    for i in range(2, 5):
        names |= normalized(f"dbn{i}", f"discriminator.main.{3 * i - 3}", words)
    return names


def oreilly_names() -> Names:
    names = {}
    for i in range(1, 5):
        names[f"g_wconv{i}"] = (f"generator.main.{3 * i - 3}.weight", "HWIO")
    for i in range(1, 4):
        names[f"g_bconv{i}"] = (f"generator.main.{3 * i - 3}.bias", "as it is")
        names[f"g_bn{i}/gamma"] = (f"generator.main.{3 * i - 2}.weight", "as it is")
        names[f"g_bn{i}/beta"] = (f"generator.main.{3 * i - 2}.bias", "as it is")
    for kind, layout, key in (("conv", "HWIO", "main.{}"), ("fc", "IO", "fc{}")):
        for i in (1, 2):
            layer = key.format(3 * i - 3 if kind == "conv" else i)
            names[f"d_w{kind}{i}"] = (f"discriminator.{layer}.weight", layout)
            names[f"d_b{kind}{i}"] = (f"discriminator.{layer}.bias", "as it is")
    return names


def gaussian_names() -> Names:
    names = {f"net_G[0].{kind}": (f"generator.main.{kind}", "as it is") for kind in ("weight", "bias")}
    return names | {f"net_D[{i}].{kind}": (f"discriminator.main.{2 * i}.{kind}", "as it is")
                    for i in range(3) for kind in ("weight", "bias")}


def pokemon_names() -> Names:
    names = {}
    for net, network, word in (("net_G", "generator", "conv2d_trans"), ("net_D", "discriminator", "conv2d")):
        for i in range(4):
            names[f"{net}[{i}].{word}.weight"] = (f"{network}.main.{3 * i}.weight", "as it is")
            names |= normalized(f"{net}[{i}].batch_norm", f"{network}.main.{3 * i + 1}",
                                (".gamma", ".beta", ".running_mean", ".running_var"))
        names[f"{net}[4].weight"] = (f"{network}.main.12.weight", "as it is")
    return names


def tf_names() -> Names:
    names = {}
    words = ("/gamma", "/beta", "/moving_mean", "/moving_variance")
    for scope, layers, norms in (
        ("Generator", {"dense": "fc", "conv2d_transpose": "main.0", "conv2d_transpose_1": "main.3"},
         ("bn0", "main.1")),
        ("Discriminator", {"conv2d": "main.0", "conv2d_1": "main.3", "dense": "fc1", "dense_1": "fc2"},
         ("main.1", "main.4", "bn3")),
    ):
        for layer, key in layers.items():
            layout = "IO" if layer.startswith("dense") else "HWIO"
            names[f"{scope}/{layer}/kernel"] = (f"{scope.lower()}.{key}.weight", layout)
            names[f"{scope}/{layer}/bias"] = (f"{scope.lower()}.{key}.bias", "as it is")
        for i, key in enumerate(norms):
            suffix = f"_{i}" if i else ""
            names |= normalized(f"{scope}/batch_normalization{suffix}", f"{scope.lower()}.{key}", words)
    return names


def example_names(stages: int) -> Names:
    """PyTorch's example with `stages` normalized stages in G and one fewer in D."""
    names = {}
    words = (".weight", ".bias", ".running_mean", ".running_var")
    for i in range(stages + 1):
        names[f"netG.main.{3 * i}.weight"] = (f"generator.main.{3 * i}.weight", "as it is")
        j = max(0, 3 * i - 1)
        names[f"netD.main.{j}.weight"] = (f"discriminator.main.{j}.weight", "as it is")
    for i in range(stages):
        names |= normalized(f"netG.main.{3 * i + 1}", f"generator.main.{3 * i + 1}", words)
    for i in range(1, stages):
        names |= normalized(f"netD.main.{3 * i}", f"discriminator.main.{3 * i}", words)
    return names


@dataclass(frozen=True)
class Case:
    """A preset and its document. widths: smaller ones, if those of the preset are too slow in float64 on a CPU."""

    plain: ModuleType
    names: Callable[[], Names]
    shape: tuple[int, ...]
    batch: int = 3
    widths: dict[str, Any] = field(default_factory=dict)
    two_noises: bool = False
    nhwc: bool = False
    # kept by fastgan's BatchNorm, never updated nor read in the document
    unread: tuple[str, ...] = ()


CASES = {
    "digits": Case(dcgan_2015, lambda: example_names(3), (1, 32, 32)),
    "own-images": Case(dcgan_2015, lambda: example_names(4), (3, 64, 64), widths={"ngf": 16, "ndf": 12}),
    "mxnet-dcgan-mnist": Case(mxnet_dcgan, mxnet_names, (3, 64, 64), widths={"ngf": 24, "ndf": 20}),
    "oreilly-gan-mnist": Case(oreilly_gan, oreilly_names, (1, 28, 28), nhwc=True, unread=("running_",)),
    "d2l-gan-gaussian": Case(d2l_gaussian, gaussian_names, (2,), batch=6),
    "d2l-dcgan-pokemon": Case(d2l_dcgan, pokemon_names, (3, 64, 64), widths={"ngf": 12, "ndf": 10}),
    "tf-dcgan-mnist": Case(tf_dcgan, tf_names, (1, 28, 28), batch=8, two_noises=True, nhwc=True),
    "dcgan-64": Case(dcgan_2015, lambda: example_names(4), (3, 64, 64)),
    "dcgan-32": Case(dcgan_2015, lambda: example_names(3), (3, 32, 32), batch=5),
    "dcgan-128": Case(dcgan_2015, lambda: example_names(5), (3, 128, 128), widths={"ngf": 16, "ndf": 12}),
}


def new_step(name: str, **changes: Any) -> GANStep:
    """A float64 step of the preset. No trained value is 0 or 1, and all are the same for changes that keep shapes."""
    case = CASES[name]
    config = presets.get(name, **{**case.widths, **changes})
    held = presets.get(name).model.fix_gamma
    torch.manual_seed(0)
    networks = build(config.model, case.shape)
    for network in networks:
        network.double()
        for key, parameter in network.named_parameters():
            noise = torch.randn_like(parameter)
            is_scale = parameter.dim() == 1 and key.endswith("weight")
            if parameter.requires_grad and not (held and is_scale):
                parameter.data.add_(noise, alpha=0.02)
    return GANStep(*networks, config.model, config.train)


def variables(name: str, step: GANStep) -> dict[str, Tensor]:
    """Copies of all parameters and statistics of the step, in the document's names and layouts."""
    state = {f"{network}.{key}": value for network in ("generator", "discriminator")
             for key, value in getattr(step, network).state_dict().items()}
    names = CASES[name].names()
    ignored = ("num_batches_tracked", *CASES[name].unread)
    assert {key for key, _ in names.values()} == {key for key in state if not any(word in key for word in ignored)}
    return {ours: (state[key] if AXES[layout] is None else state[key].permute(AXES[layout])).detach().clone()
            for ours, (key, layout) in names.items()}


def batches(name: str, steps: int) -> list[Tensor]:
    """Batches of a loader: gray levels, uint8 (N, C, H, W), or points."""
    case = CASES[name]
    draws = torch.Generator().manual_seed(1)
    shape = (case.batch, *case.shape)
    if len(case.shape) == 1:
        return [torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(steps)]
    return [torch.randint(256, shape, generator=draws, dtype=torch.uint8) for _ in range(steps)]


def latents(name: str, config: Config) -> Iterator[Tensor]:
    """Endless noise, the same for both sides."""
    draws = torch.Generator().manual_seed(2)
    while True:
        yield torch.randn(CASES[name].batch, config.model.nz, generator=draws, dtype=torch.float64)


def run_fastgan(name: str, steps: int, **changes: Any) -> dict[str, Tensor]:
    """The document's variables after fastgan's steps, with some fields of the preset changed."""
    config = presets.get(name, **changes)
    step, noise = new_step(name, **changes), latents(name, config)
    step.draw = lambda real: next(noise)
    for batch in batches(name, steps):
        # not mirrored at random, which no document does
        step(to_model_range(batch, flip=False, unit_range=config.data.unit_range, dtype=torch.float64))
    return variables(name, step)


def run_plain(name: str, steps: int, **widths: int) -> dict[str, Tensor]:
    """The document's variables after as many steps of its plain loop."""
    case = CASES[name]
    noise = latents(name, presets.get(name))
    zs = [(next(noise), next(noise)) if case.two_noises else next(noise) for _ in range(steps)]
    reals = batches(name, steps)
    if len(case.shape) == 3:
        reals = [case.plain.scale_pixels(real) for real in reals]
    if case.nhwc:
        reals = [real.permute(0, 2, 3, 1) for real in reals]
    return case.plain.train(variables(name, new_step(name, **widths)), reals, zs)


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any element of any variable."""
    assert ours.keys() == theirs.keys()
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)
