"""The training step: its results, its savings, the order of updates, and the effects of an invalid batch."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan import presets
from fastgan.config import ModelConfig, TrainConfig
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.ops import tuning as plan
from fastgan.ops.tuning import candidates
from fastgan.train.losses import LOSSES
from fastgan.train.metrics_buffer import FIELDS
from fastgan.train.static_buffers import StaticBuffers
from fastgan.train.step import GANStep, Savings
from tests import dcgan_example

SHAPES = {"tf": (1, 28, 28), "oreilly": (1, 28, 28), "gaussian": (2,), "dcgan": (3, 16, 16)}


def new_step(num_classes: int = 0, savings: Savings = Savings(together=True), double: bool = False,  # noqa: B008
             precision: str = "auto", history: int = 4, **fields: Any) -> GANStep:
    """A seeded step of small networks."""
    torch.manual_seed(0)
    config = presets.get("dcgan-64", **{"ngf": 4, "ndf": 4, "nz": 8, **fields})
    networks = build(config.model, SHAPES[config.model.architecture], num_classes)
    if double:
        networks = [network.double() for network in networks]
    return GANStep(*networks, config.model, config.train, savings=savings, precision=precision, history=history)


def batch(step: GANStep, seed: int = 1, count: int = 6) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        like = next(step.generator.parameters())
        return torch.rand_like(step.generator(torch.randn(count, step.noise.nz, dtype=like.dtype))) * 2 - 1


def parameters(step: GANStep) -> dict[str, Tensor]:
    return {f"{name}.{key}": p.detach().clone() for name in ("generator", "discriminator")
            for key, p in getattr(step, name).named_parameters()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The networks with differences."""
    return {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}


def moments(step: GANStep) -> list[Tensor]:
    """The moments of both Adams, and the numbers of updates."""
    return [tensor for adam in (step.optimizer_g, step.optimizer_d)
            for tensor in (adam.updates, *(moment for state in adam.state.values() for moment in state.values()))]


def holding(step: GANStep, real: Tensor, fake: Tensor) -> StaticBuffers:
    held = StaticBuffers(step.noise.nz, real, None, step.config.real_first, real.dtype)
    held.real.copy_(real)
    held.fake.copy_(fake)
    return held


class ConvolutionBackwards(TorchDispatchMode):
    """Records the weight's data pointer, and whether its gradient is computed, for each backward of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.calls.append((args[2].data_ptr(), args[-1][1]))
        return func(*args, **(kwargs or {}))


def test_generators_update_computes_no_gradient_of_discriminator_weights():
    step = new_step()
    real = batch(step)
    weights = {name: {p.data_ptr() for p in getattr(step, name).parameters() if p.dim() == 4}
               for name in ("generator", "discriminator")}
    with plan.use(plan.Plan(engine="reference")), ConvolutionBackwards() as seen:
        step(real)
    through_d = [computed for pointer, computed in seen.calls if pointer in weights["discriminator"]]
    through_g = [computed for pointer, computed in seen.calls if pointer in weights["generator"]]
    layers = len(weights["discriminator"])
    # D's update on real and fake together, then the pass that leads to G
    assert through_d == [True] * layers + [False] * layers
    assert through_g == [True] * len(weights["generator"])
    assert all(p.grad is None for network in (step.generator, step.discriminator) for p in network.parameters())


def test_gradients_that_somebody_left_behind_count_for_nothing():
    steps = [new_step(savings=Savings(together=False)) for _ in range(2)]
    real = batch(steps[0])
    for parameter in steps[1].params_d:
        parameter.grad = torch.ones_like(parameter)
    for step in steps:
        torch.manual_seed(3)
        step(real)
    assert changed(*map(parameters, steps)) == set()


class Own(nn.Module):
    """A user's discriminator, with a layer that its forward does not use."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))
        self.last = nn.Linear(4 * 4, 1)
        if unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.last(x.view(x.size(0), -1)).view(-1)


def own_networks(unused: bool = False) -> tuple[nn.Module, nn.Module]:
    """Seeded networks for 3x8x8 images, in float64."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 4 * 4 * 4), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4),
                              nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())
    discriminator = Own(unused)
    if unused:
        generator.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return generator.double(), discriminator.double()


def own_batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def textbook(generator: nn.Module, discriminator: nn.Module, reals: list[Tensor], before: Any) -> dict[str, int]:
    """PyTorch's example, with Adam over all parameters. Returns the number of updates of each."""
    adams = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (generator, discriminator)]
    for number, real in enumerate(reals):
        before(number, generator, discriminator)
        fake = generator(torch.randn(len(real), 4, dtype=real.dtype))
        discriminator.zero_grad()
        for images, target in ((real, 1.0), (fake.detach(), 0.0)):
            logits = discriminator(images)
            nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target)).backward()
        adams[1].step()
        generator.zero_grad()
        logits = discriminator(fake)
        nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
        adams[0].step()
    return {name: int(adam.state[p]["step"]) if p in adam.state else 0
            for network, adam in zip((generator, discriminator), adams, strict=True)
            for name, p in network.named_parameters(str(type(network)))}


def freezing(number: int, generator: nn.Module, discriminator: nn.Module) -> None:
    """FreezeD: the first layers of D are frozen at first; later a part of G is frozen and unfrozen."""
    discriminator.first.requires_grad_(number >= 2)
    discriminator.second.requires_grad_(number != 4)
    generator[3].requires_grad_(number not in (3, 4))


@pytest.mark.parametrize("savings", [Savings(), Savings(frozen=False), Savings(together=True, fused_adam=False)],
                         ids=["default", "not frozen", "definition"])
@pytest.mark.parametrize(("unused", "before"), [(True, lambda *_: None), (False, freezing), (True, freezing)],
                         ids=["unused", "frozen", "unused and frozen"])
def test_unused_frozen_and_unfrozen_parameters_are_those_of_plain_pytorch(unused, before, savings):
    reals, networks, plain = own_batches(6), own_networks(unused), own_networks(unused)
    torch.manual_seed(5)
    updates = textbook(*plain, reals, before)
    before(0, *networks)
    step = GANStep(*networks, presets.get("dcgan-64", nz=4).model, presets.get("dcgan-64").train, precision="fp32",
                   savings=savings)
    torch.manual_seed(5)
    for number, real in enumerate(reals):
        before(number, *networks)
        step(real)
    for mine, theirs in zip(networks, plain, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-11)
        assert all(p.requires_grad == q.requires_grad for p, q in
                   zip(mine.parameters(), theirs.parameters(), strict=True))
    assert [*step.optimizer_g.updates.tolist(), *step.optimizer_d.updates.tolist()] == list(updates.values())


def test_a_step_with_frozen_parameters_continues_bit_for_bit():
    whole, half = (GANStep(*own_networks(True), presets.get("dcgan-64", nz=4).model, presets.get("dcgan-64").train)
                   for _ in range(2))
    reals = own_batches(6)
    torch.manual_seed(3)
    for number, real in enumerate(reals):
        freezing(number, whole.generator, whole.discriminator)
        if number == 4:
            freezing(number, half.generator, half.discriminator)
            half.load_state_dict(copy.deepcopy(whole.state_dict()))
            random = torch.get_rng_state()
        whole(real)
    torch.set_rng_state(random)
    for number in (4, 5):
        freezing(number, half.generator, half.discriminator)
        half(reals[number])
    assert changed(parameters(whole), parameters(half)) == set()
    assert all(map(torch.equal, moments(whole), moments(half)))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_network_without_a_parameter_to_train_is_refused(network):
    step = new_step()
    getattr(step, network).requires_grad_(False)
    with pytest.raises(FastganError, match=f"no parameter of the {network} requires a gradient; expected one or more"):
        step(batch(step))


@pytest.mark.parametrize("fields", [{}, {"loss": "wgan-gp"}, {"r1": 1.0}, {"fakes": "fresh-z"}],
                         ids=lambda fields: "-".join(map(str, fields.values())) or "bce")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("impl", ["none", "reference", "native"])
def test_a_discriminator_that_calls_view(impl, layout, fields):
    """It gets images in NCHW, whatever the layout of the generator and the data."""
    networks = tuple(network.float() for network in own_networks())
    if impl != "none":
        networks = tuple(fastgan.convert(network, impl) for network in networks)
    networks[0].to(memory_format=layout)
    config = presets.get("dcgan-64", nz=4, **fields)
    step = GANStep(*networks, config.model, config.train, precision="fp32")
    record = step(own_batches(1)[0].float().to(memory_format=layout))
    assert math.isfinite(record["loss_d"]) and math.isfinite(record["loss_g"])


@pytest.mark.parametrize("impl", ["none", "reference", "native"])
def test_networks_of_layers_alone_see_channels_last(impl):
    step = new_step()
    layers = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 13 * 13, 1),
                           nn.Flatten(0))
    for discriminator in (step.discriminator, layers if impl == "none" else fastgan.convert(layers, impl)):
        other = GANStep(step.generator, discriminator, presets.get("dcgan-64", nz=8).model, step.config)
        other(batch(step))
        assert other.buffers.images.is_contiguous(memory_format=torch.channels_last)


class Returns(nn.Module):
    """Returns the network's tensor in another form."""

    def __init__(self, inner: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(("wrap", "words"), [
    (lambda x: (x, [x]), "a tuple of Tensor, list"), (lambda x: {"logits": x}, "a dict"),
    (lambda x: None, "a NoneType")], ids=["tuple", "dict", "nothing"])
@pytest.mark.parametrize(("place", "what"), [(0, "generator returned {}; expected one tensor, the images"),
                                             (1, "discriminator returned {}; expected one tensor, the logits")])
def test_networks_that_return_no_tensor_are_refused(place, what, wrap, words):
    step = new_step()
    networks = [step.generator, step.discriminator]
    networks[place] = Returns(networks[place], wrap)
    other = GANStep(*networks, presets.get("dcgan-64", nz=8).model, step.config)
    with pytest.raises(FastganError, match=f"the {what.format(words)}$"):
        other(batch(step))


def test_images_of_another_shape_are_refused():
    """One channel would be broadcast to three."""
    step = new_step()
    with pytest.raises(FastganError, match=r"returned images \(6, 3, 16, 16\); expected \(6, 1, 16, 16\), the shape"):
        step(batch(step)[:, :1])
    step = new_step()
    step.generator.main[-1] = Returns(nn.Tanh(), lambda x: x[:, :1])
    with pytest.raises(FastganError, match=r"returned images \(6, 1, 16, 16\); expected \(6, 3, 16, 16\), the shape"):
        step(torch.rand(6, 3, 16, 16))


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("fields", [{"ema": 0.9}, {"loss": "wgan-gp", "precision": "bf16"}, {"precision": "fp16"},
                                    {"adam_eps_hat": True, "lr_schedule": "cosine", "lr_warmup": 2, "r1": 1.0}],
                         ids=lambda fields: " ".join(map(str, fields.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_another_default_dtype(fields, dtype):
    """Networks of either dtype train, with the same results in the same dtypes."""
    fields, made = dict(fields), []
    precision = fields.pop("precision", "fp32")
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(torch.float32)
        config = presets.get("dcgan-64", ngf=4, ndf=4, nz=8, **fields)
        torch.manual_seed(0)
        networks = [network.to(dtype) for network in build(config.model, SHAPES["dcgan"])]
        real = torch.rand(6, 3, 16, 16, dtype=dtype) * 2 - 1
        torch.set_default_dtype(default)
        step = GANStep(*networks, config.model, config.train, precision=precision)
        for _ in range(2):
            record = step(real)
        made.append([*step.state(), *record.values()])
    torch.testing.assert_close(*made, rtol=0, atol=0, equal_nan=True)  # also compares dtypes


def test_gradients_in_another_order_of_memory():
    """Fused Adam reads a gradient in memory order; a kernel may write it in any order of dimensions."""
    outcomes = []
    for reorder in (False, True):
        step = new_step()
        for parameter in (*step.params_g, *step.params_d) if reorder else ():
            if parameter.dim() == 4:
                parameter.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
        step(batch(step))
        outcomes.append(parameters(step))
    assert all(torch.equal(value, outcomes[1][key]) for key, value in outcomes[0].items())


@pytest.mark.parametrize("fakes", ["reuse", "same-z", "fresh-z"])
def test_draws_and_passes(fakes):
    """The number of noise draws, and of calls of G in training mode."""
    step = new_step(fakes=fakes)
    real, draws = batch(step), []
    runs = step.generator.main[1].num_batches_tracked.item()
    draw = step.draw
    step.draw = lambda given: draws.append(draw(given)) or draws[-1]
    step(real)
    assert len(draws) == (2 if fakes == "fresh-z" else 1)
    assert torch.equal(step.buffers.z, draws[0])
    assert fakes != "fresh-z" or torch.equal(step.buffers.z_fresh, draws[1])
    assert step.generator.main[1].num_batches_tracked - runs == (1 if fakes == "reuse" else 2)
    assert step.discriminator.main[3].num_batches_tracked == 3


@pytest.mark.parametrize("fakes", ["reuse", "same-z", "fresh-z"])
def test_d_steps(fakes):
    """Two updates of D alone, then one of both."""
    step = new_step(d_steps=3, fakes=fakes)
    real = batch(step)
    for turn in range(6):
        before = parameters(step)
        record = step(real)
        both = turn % 3 == 2
        assert changed(before, parameters(step)) == ({"generator", "discriminator"} if both else {"discriminator"})
        assert ("loss_g" in record) == both
    assert step.steps == 6
    assert (step.optimizer_d.updates == 6).all()
    assert (step.optimizer_g.updates == 2).all()


def test_record():
    """The returned scalars match their names, for the networks before each update."""
    step, plain = new_step(), new_step()
    real = batch(step)
    torch.manual_seed(5)
    record = step(real)
    torch.manual_seed(5)
    fake = plain.generator(plain.draw(real))
    r, f = plain.discriminator(real), plain.discriminator(fake.detach())
    loss = -torch.log(torch.sigmoid(r)).mean() - torch.log(1 - torch.sigmoid(f)).mean()
    grads = torch.autograd.grad(loss, list(plain.discriminator.parameters()))
    expected = {"loss_d": loss, "d_real": torch.sigmoid(r).mean(), "d_fake": torch.sigmoid(f).mean(),
                "grad_norm_d": torch.sqrt(sum(g.square().sum() for g in grads))}
    torch.testing.assert_close({key: record[key] for key in expected}, {k: v.detach() for k, v in expected.items()})
    loss = -torch.log(torch.sigmoid(step.discriminator(fake))).mean()  # D has been updated
    grads = torch.autograd.grad(loss, list(plain.generator.parameters()))
    torch.testing.assert_close(record["loss_g"], loss.detach())
    torch.testing.assert_close(record["grad_norm_g"], torch.sqrt(sum(g.square().sum() for g in grads)))
    assert all(value.dim() == 0 and not value.requires_grad for value in record.values())


@pytest.mark.parametrize("eps_hat", [False, True], ids=["adam", "adam-eps-hat"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_batch_that_is_not_finite_changes_nothing(bad, eps_hat):
    """Parameters, both Adams and the moving average do not change; the loss shows it; the next batch trains."""
    step = new_step(ema=0.9, adam_eps_hat=eps_hat)
    real = batch(step)
    step(real)
    before = parameters(step)
    average = [p.clone() for p in step.ema.module.parameters()]
    updates = step.ema.updates.clone()
    adams = [tensor.clone() for tensor in moments(step)]

    broken = real.clone()
    broken[0, 0, 0, 0] = bad
    record = step(broken)
    assert not math.isfinite(record["loss_d"])
    assert changed(before, parameters(step)) == set()
    assert all(torch.equal(a, p) for a, p in zip(average, step.ema.module.parameters(), strict=True))
    assert torch.equal(step.ema.updates, updates)
    assert all(torch.equal(old, new) for old, new in zip(adams, moments(step), strict=True))

    held = [t.clone() for t in (step.buffers.z, step.buffers.real)]
    record = step(real)  # halted: the invalid step is repeated, whatever the input
    assert not math.isfinite(record["loss_d"]) and record["finite"] == 0
    assert torch.equal(step.buffers.z, held[0]) and torch.equal(step.buffers.real.isfinite(), held[1].isfinite())
    assert changed(before, parameters(step)) == set() and step.t == 1
    last = step.metrics_buffer.read(0, 2)
    assert [row["finite"] for row in last] == [1, 0] and not math.isfinite(last[1]["loss_d"])

    step.load_state_dict(copy.deepcopy(step.state_dict()))  # continuing requires this
    for network in (step.generator, step.discriminator):
        for buffer in network.buffers():
            buffer.nan_to_num_(1)
    record = step(real)
    assert all(math.isfinite(value) for value in record.values())
    assert changed(before, parameters(step)) == {"generator", "discriminator"}


def test_moving_average_follows_the_generator():
    """The first step's decay is (1 + 0) / (10 + 0); only the generator is averaged."""
    step = new_step(ema=0.999)
    start = {key: value.detach().clone() for key, value in step.generator.named_parameters()}
    step(batch(step))
    for key, parameter in step.ema.module.named_parameters():
        live = step.generator.get_parameter(key)
        torch.testing.assert_close(parameter.detach(), (0.1 * start[key] + 0.9 * live).detach())
    for key, buffer in step.ema.module.named_buffers():
        assert torch.equal(buffer, step.generator.get_buffer(key))


class KeepsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 48)), nn.Unflatten(1, (3, 4, 4)))
        self.features: list[Tensor] = []

    def forward(self, z: Tensor) -> Tensor:
        self.features = [self.net[0](z)]
        return self.net[1](self.features[0])


def test_moving_average_of_a_generator_that_keeps_results():
    """`torch.nn.utils.spectral_norm` keeps the computed weight, which is not a leaf."""
    generator, z = KeepsFeatures(), torch.randn(5, 4)
    generator(z)
    discriminator = nn.Sequential(nn.Conv2d(3, 1, 4), nn.Flatten(0))
    step = GANStep(generator, discriminator, ModelConfig(nz=4), TrainConfig(ema=0.9))
    step(torch.randn(4, 3, 4, 4))
    average = step.ema.module.eval()
    weight = generator.net[0]
    exact = KeepsFeatures().eval()
    exact.load_state_dict(average.state_dict())
    assert weight.weight_orig.requires_grad and not average.net[0].weight_orig.requires_grad
    torch.testing.assert_close(average(z), exact(z))
    assert not torch.equal(average(z), generator.eval()(z))


@pytest.mark.parametrize("fields", [{}, {"adam_eps_hat": True, "fakes": "fresh-z"}, {"loss": "wgan-gp", "d_steps": 2}],
                         ids=["plain", "eps-hat-fresh-z", "wgan-gp-two-d-steps"])
def test_state_dict_continues_bit_for_bit(fields):
    whole, half = new_step(ema=0.9, **fields), new_step(ema=0.9, **fields)
    reals = [batch(whole, seed) for seed in range(6)]
    torch.manual_seed(3)
    for real in reals[:3]:
        whole(real)
    state, random = copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    for real in reals[3:]:
        whole(real)
    half.load_state_dict(state)
    torch.set_rng_state(random)
    for real in reals[3:]:
        half(real)
    flat = [torch.utils._pytree.tree_flatten_with_path(step.state_dict())[0] for step in (whole, half)]
    assert len(flat[0]) > 40
    for (path, left), (_, right) in zip(*flat, strict=True):
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, path


@pytest.mark.parametrize("fields", [
    *({"loss": loss} for loss in LOSSES if loss != "softmax"), {"loss": "softmax", "architecture": "tf"},
    {"r1": 5.0}, {"loss": "wgan-gp", "norm_d": "none"}, {"loss": "hinge", "r1": 1.0, "real_first": False},
    {"architecture": "oreilly", "nz": 100}, {"architecture": "gaussian", "nz": 2},
], ids=lambda fields: "-".join(map(str, fields.values())))
def test_one_step_trains_both_networks(fields):
    step = new_step(**fields)
    before = parameters(step)
    record = step(batch(step))
    assert all(math.isfinite(value) for value in record.values())
    assert record["grad_norm_d"] > 0 and record["grad_norm_g"] > 0
    assert changed(before, parameters(step)) == {"generator", "discriminator"}
    trained = {key for key, p in step.discriminator.named_parameters() if p.requires_grad}
    moved = {key for key, p in step.discriminator.named_parameters()
             if not torch.equal(p, before[f"discriminator.{key}"])}
    # the normalization cancels these: their gradient is zero, or rounding in eager layers
    layers = list(step.discriminator.main)
    taken_away = {f"main.{i}.bias" for i, one in enumerate(layers[1:]) if isinstance(one, nn.BatchNorm2d)}
    assert moved == (trained if candidates.default(torch.device("cpu")) == "reference" else trained - taken_away)


@pytest.mark.parametrize(("fields", "penalty"), [({"r1": 4.0}, "r1"), ({"loss": "wgan-gp", "gp": 7.0}, "gp")],
                         ids=["r1", "wgan-gp"])
def test_penalties_enter_the_loss_with_their_weight(fields, penalty):
    """loss(weight) is linear in the weight, and equals the loss without penalty at 0."""
    values = []
    for weight in (1e-30, fields[penalty], 2 * fields[penalty]):
        step = new_step(**{**fields, penalty: weight})
        real = batch(step).double()
        step.generator.double(), step.discriminator.double()
        torch.manual_seed(9)
        fake = step.generator(step.draw(real)).detach()
        values.append(step.discriminator_loss(holding(step, real, fake))[0].item())
    assert values[1] > values[0]
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-9)
    step = new_step(**fields)
    step.discriminator.double()
    real.requires_grad_()
    slopes = torch.autograd.grad(step.discriminator(real).sum(), real)[0].flatten(1)
    if penalty == "r1":
        assert values[1] - values[0] == pytest.approx(4.0 / 2 * slopes.square().sum(1).mean().item(), rel=1e-9)


def test_labels_reach_both_networks():
    step = new_step(num_classes=3)
    real, labels = batch(new_step()), torch.tensor([0, 1, 2, 0, 1, 2])
    before = parameters(step)
    embeddings = [network.embedding.weight.detach().clone() for network in (step.generator, step.discriminator)]
    step(real, labels)
    assert changed(before, parameters(step)) == {"generator", "discriminator"}
    for network, old in zip((step.generator, step.discriminator), embeddings, strict=True):
        assert torch.all((network.embedding.weight != old).any(1))  # every class occurred
    step.generator.eval(), step.discriminator.eval()
    z = torch.randn(6, 8)
    with torch.no_grad():
        assert not torch.equal(step.generator(z, labels), step.generator(z, labels.flip(0)))
        assert not torch.equal(step.discriminator(real, labels), step.discriminator(real, labels.flip(0)))
        assert torch.equal(step.generator(z[:1], labels[:1]), step.generator(z[:1], labels[3:4]))


def test_class_that_is_not_in_the_batch_keeps_its_embedding():
    step = new_step(num_classes=3)
    before = step.generator.embedding.weight.detach().clone()
    step(batch(new_step()), torch.tensor([0, 1, 0, 1, 0, 1]))
    after = step.generator.embedding.weight
    assert torch.equal(before[2], after[2]) and not torch.equal(before[0], after[0])


def test_nan_in_the_fakes_does_not_reach_the_average():
    step = new_step(ema=0.9)
    real = batch(step)
    step(real)
    before = copy.deepcopy(dict(step.ema.module.named_parameters()))
    z = step.draw(real)
    step.draw = lambda like: z * torch.nan
    assert step(real)["loss_g"].isnan()
    assert all(torch.equal(value, before[key]) for key, value in step.ema.module.named_parameters())


@pytest.mark.parametrize("saving", [field.name for field in dataclasses.fields(Savings) if field.name != "keep_casts"])
@pytest.mark.parametrize("fields", [
    {}, {"real_first": False, "fakes": "fresh-z", "adam_eps_hat": True}, {"loss": "wgan-gp", "norm_d": "none"},
    {"loss": "hinge", "r1": 1.0, "penalty_every": 2, "norm_d": "all"}, {"augment": "color,translation,cutout"},
], ids=["dcgan", "mxnet order, fresh z", "wgan-gp", "lazy r1", "augmentation"])
def test_saved_work_changes_nothing(saving, fields):
    """With and without each saving: the same parameters, statistics and records after three steps in float64."""
    outcomes = []
    for savings in (Savings(together=True), dataclasses.replace(Savings(together=True), **{saving: False})):
        step = new_step(ema=0.9, double=True, savings=savings, **fields)
        reals = [batch(step, seed) for seed in range(3)]
        torch.manual_seed(5)
        records = [step(real) for real in reals]
        assert records[-1]["finite"] == 1
        *state, _ = step.state()  # all but the ring, whose rows are rounded to float32
        outcomes.append([*state, *(value for record in records for value in record.values())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


class Wrapped(nn.Module):
    """A network with a custom forward, which may mix the images of a batch."""

    def __init__(self, inner: nn.Module, mixes: bool = False) -> None:
        super().__init__()
        self.inner, self.mixes = inner, mixes

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) - 1e-6 * x.square().mean() * self.mixes


def hooked(network: nn.Module) -> nn.Module:
    network.register_forward_hook(lambda *given: None)
    return network


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> GANStep:
    """The step of small networks with a wrapped discriminator, after one call."""
    torch.manual_seed(0)
    config = presets.get("dcgan-64", ngf=4, ndf=4, nz=8)
    generator, discriminator = build(config.model, (3, 16, 16))
    step = GANStep(generator, wrap(discriminator), config.model, config.train, savings=Savings(together=True))
    step(batch(step))
    return step


@pytest.mark.parametrize("wrap", [
    lambda d: nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 13)),
    lambda d: Wrapped(d, mixes=True), lambda d: Wrapped(hooked(d)), hooked, lambda d: nn.Sequential(d, nn.Dropout(0.5)),
    lambda d: Wrapped(nn.Sequential(d, nn.Dropout(0.5))), lambda d: Wrapped(spectral_norm(nn.Conv2d(3, 1, 16)))],
    ids=["batch normalization outside of a chain", "forward that mixes images", "hook within", "hook", "dropout",
         "dropout within", "parametrization within"])
def test_networks_that_need_a_call_for_each_half(wrap):
    assert not wrapped(wrap).together


@pytest.mark.parametrize("wrap", [lambda d: d, Wrapped, lambda d: Wrapped(nn.Conv2d(3, 1, 16))])
def test_networks_that_take_both_halves(wrap):
    assert wrapped(wrap).together


def test_dcgan_example_takes_both_halves_with_the_same_result():
    """Converted, its step in float64 equals that with a call for each half."""
    states = []
    for together in (True, False):
        networks = [fastgan.convert(Wrapped(network).double()) for network in dcgan_example.networks()]
        step = GANStep(*networks, nz=6, savings=Savings(together=together))
        torch.manual_seed(1)
        for _ in range(2):
            step(torch.rand(4, 3, 64, 64, dtype=torch.float64) * 2 - 1)
        assert step.together == together
        states.append(step.state())
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_one_half_after_the_other_on_a_cpu():
    """By default; both halves are in one call if that is requested."""
    config = presets.get("dcgan-64", ngf=4, ndf=4, nz=8)
    for wanted, together in ((None, False), (True, True)):
        networks = build(config.model, (3, 16, 16))
        step = GANStep(*networks, config.model, config.train, savings=Savings(together=wanted))
        assert step.together == together
        step.device = torch.device("cuda")
        assert step.together


@pytest.mark.parametrize(("kind", "expected"), [
    ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
    ("linear", [0.25, 0.5 * 7 / 8, 0.75 * 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
    ("cosine", [min(1, (t + 1) / 4) * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)])])
def test_learning_rate_schedule(kind, expected):
    step = new_step(lr_schedule=kind, lr_warmup=4, steps=8, lr_g=0.1, lr_d=0.2)
    real, rates = batch(step), []
    for _ in range(9):
        step(real)
        rates.append([step.optimizer_g.rate.item(), step.optimizer_d.rate.item()])
    assert rates == [[pytest.approx(0.1 * f, abs=1e-7), pytest.approx(0.2 * f, abs=1e-7)] for f in expected]


def test_lazy_penalty():
    """In every third step, with three times the weight."""
    always, lazy = (new_step(r1=2.0, penalty_every=every, norm_d="none", double=True) for every in (1, 3))
    assert [step.phase().penalty for step in (always, lazy)] == [True, True]
    torch.manual_seed(4)
    held = holding(always, batch(always), batch(always, 2))
    none, one, three = (step.discriminator_loss(held, penalty)[0].item()
                        for step, penalty in ((always, False), (always, True), (lazy, True)))
    assert one > none and three - none == pytest.approx(3 * (one - none), rel=1e-6)
    phases = []
    for _ in range(6):
        phases.append(lazy.phase().penalty)
        lazy(batch(lazy))
    assert phases == [True, False, False] * 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision):
    """Convolutions in 16 bits; parameters, statistics, losses and moments in float32; similar training."""
    half, full = new_step(precision=precision, ema=0.9), new_step(precision="fp32", ema=0.9)
    reals, dtypes = [batch(full, seed) for seed in range(3)], set()
    handles = [module.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
               for module in half.generator.modules() if isinstance(module, nn.ConvTranspose2d)]
    records = []
    for step in (half, full):
        torch.manual_seed(2)
        records.append([step(real) for real in reals][-1])
    assert handles and dtypes == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert half.buffers.images.dtype in dtypes  # as D's first convolution would round them
    assert all(tensor.dtype in (torch.float32, torch.int64, torch.int32) for tensor in half.state()
               if not any(tensor is other for other in (half.buffers.images, *half.casts.tensors())))
    assert half.judge(reals[0]).dtype in dtypes and records[0]["loss_d"].dtype == torch.float32
    assert records[0]["finite"] == 1
    for key, value in records[1].items():
        assert records[0][key].item() == pytest.approx(value.item(), rel=0.1), key


def test_scaled_gradients_that_overflow():
    """float16: the update is skipped, the scale halved, and training continues; a loss that is not finite halts it."""
    step = new_step(precision="fp16")
    real = batch(step)
    step(real)
    scale = step.scale.tensors()[0]
    scale.fill_(2.0**60)
    before = parameters(step)
    record = step(real)
    assert changed(before, parameters(step)) == set()
    assert record["finite"] == 1 and step.halted == 0 and scale == 2.0**59
    scale.fill_(2.0**10)
    step(real)
    assert changed(before, parameters(step)) == {"generator", "discriminator"}
    broken = real.clone()
    broken[0, 0, 0, 0] = math.nan
    assert step(broken)["finite"] == 0 and step.halted == 1


def test_step_after_one_that_was_broken_off(monkeypatch):
    """float16: an error after D's gradients were unscaled, as in a capture, does not affect the next step."""
    step, other = new_step(precision="fp16"), new_step(precision="fp16")
    real = batch(step)
    for each in (step, other):
        each.allocate(real)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="broken off"):
        broken.setattr(step, "generator_loss", lambda *_: (_ for _ in ()).throw(RuntimeError("broken off")))
        step(real)
    for tensor, start in zip(step.state(), other.state(), strict=True):
        tensor.detach().copy_(start)
    for each in (step, other):
        torch.manual_seed(2)
        each(real)
    assert changed(parameters(step), parameters(other)) == set()


def test_every_tensor_stays_where_it_is():
    """A captured step reads and writes the same memory through steps, checkpoints and pictures."""
    step, other = new_step(ema=0.9, precision="fp16"), new_step(ema=0.9, precision="fp16")
    real = batch(step)
    step(real)
    places = [tensor.data_ptr() for tensor in step.state()]
    for _ in range(2):
        other(real)
    step.load_state_dict(copy.deepcopy(other.state_dict()))
    step(real)
    assert [tensor.data_ptr() for tensor in step.state()] == places
    assert step.steps == 3 and step.t == 3


def test_ring():
    """The last K steps, oldest first; values that a step did not compute are NaN."""
    step = new_step(history=3, d_steps=2)
    records = []
    for seed in range(5):
        records.append(step(batch(step, seed)))
        rows = step.metrics_buffer.read(0, step.steps)
        assert len(rows) == min(3, seed + 1)
        for row, record in zip(rows, records[-3:], strict=True):
            assert row.keys() == set(FIELDS)
            assert {key for key in row if not math.isnan(row[key])} == set(record)
            assert all(row[key] == pytest.approx(value.item(), rel=1e-6) for key, value in record.items())
    assert step.metrics_buffer.read(4, 5) == rows[-1:] or math.isnan(rows[-1]["loss_g"])


def test_diversity():
    """1 if fakes vary as much as real images, 0 if they are all the same."""
    step = new_step()
    real = batch(step)
    def returning(images: Tensor) -> None:
        step.generator.forward = lambda z: images + 0 * sum(p.sum() for p in step.generator.parameters())

    returning(real)
    assert step(real)["diversity"] == pytest.approx(1)
    returning(real[:1].expand_as(real))
    assert step(real)["diversity"] == pytest.approx(0, abs=1e-6)

def test_diversity_is_that_within_classes():
    """0 if each class is one image, however different the classes are; 1 for the real images in any order."""
    step, real = new_step(num_classes=3), batch(new_step(), count=8)
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1])

    def returning(images: Tensor) -> Tensor:
        step.generator.forward = lambda z, y: images + 0 * sum(p.sum() for p in step.generator.parameters())
        return step(real, labels)["diversity"]

    assert returning(real) == pytest.approx(1)
    assert returning(real[labels]) == pytest.approx(0, abs=1e-6)
    order = labels.sort(stable=True).indices
    pairs = [(i, j) for i, j in itertools.pairwise(order.tolist()) if labels[i] == labels[j]]
    deviation = [torch.stack([(x[i] - x[j]).square() / 2 for i, j in pairs]).mean(0).sqrt().mean()
                 for x in (real.flip(0), real)]
    assert returning(real.flip(0)) == pytest.approx((deviation[0] / deviation[1]).item(), rel=1e-5)
    assert len(pairs) == 5 and step(real, torch.arange(8) % 3)["diversity"].isfinite()


def test_diversity_of_classes_that_come_once_is_unknown():
    step = new_step(num_classes=6)
    assert step(batch(new_step()), torch.arange(6))["diversity"].isnan()
