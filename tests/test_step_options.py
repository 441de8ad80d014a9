"""A step with custom losses, optimizers and options, compared with the plain PyTorch loop, in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan
from fastgan.config import ModelConfig, TrainConfig
from fastgan.errors import FastganError
from fastgan.train import GANStep, GraphedStep
from fastgan.train.options import StepOptions
from tests.plain import diff_augment
from tests.test_graph import cuda  # noqa: F401

NZ, STEPS = 4, 5


def networks(last: Callable[[], nn.Module] = nn.Identity) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    # without biases that a batch normalization cancels: their gradients are rounding noise, which Adam amplifies
    generator = nn.Sequential(nn.ConvTranspose2d(NZ, 6, 4, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
                              nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.2),
                                  nn.Conv2d(6, 1, 4), nn.Flatten(0), last())
    return generator.double(), discriminator.double()


def batches(count: int = STEPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=generator) * 2 - 1 for _ in range(count)]


def bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def bce_d(real: Tensor, fake: Tensor) -> Tensor:
    return bce(real, 1.0) + bce(fake, 0.0)


def bce_g(fake: Tensor) -> Tensor:
    return bce(fake, 1.0)


def relativistic(first: Tensor, second: Tensor) -> Tensor:
    return F.softplus(-(first - second.mean())).mean() + F.softplus(second - first.mean()).mean()


def plain(pair: tuple[nn.Module, nn.Module], optimizers: Any, *, loss_d: Callable[[Tensor, Tensor], Tensor] = bce_d,
          loss_g: Callable[[Tensor], Tensor] = bce_g, n_critic: int = 1, grad_clip: float = 0.0,
          weight_clip: float = 0.0, parts: int = 1,
          augment: Callable[[Tensor], Tensor] = lambda images: images) -> None:
    """A plain loop. With more than one part, each update uses the gradients of all parts."""
    (generator, discriminator), (optimizer_g, optimizer_d) = pair, optimizers
    torch.manual_seed(2)

    def judge(images: Tensor) -> Tensor:
        return discriminator(augment(images))

    def update(network: nn.Module, optimizer: Any) -> None:
        if grad_clip:
            nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        optimizer.step()

    for index, batch in enumerate(batches(), 1):
        zs = torch.randn(len(batch), NZ, 1, 1, dtype=torch.float64).chunk(parts)
        fakes = [generator(z) for z in zs]
        discriminator.zero_grad()
        for real, fake in zip(batch.chunk(parts), fakes, strict=True):
            (loss_d(judge(real), judge(fake.detach())) / parts).backward()
        update(discriminator, optimizer_d)
        if weight_clip:
            for parameter in discriminator.parameters():
                parameter.data.clamp_(-weight_clip, weight_clip)
        if index % n_critic == 0:
            generator.zero_grad()
            for z, fake in zip(zs, fakes, strict=True):
                (loss_g(judge(fake if parts == 1 else generator(z))) / parts).backward()
            update(generator, optimizer_g)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda params: torch.optim.Adam(params, 2e-3, (0.5, 0.9), weight_decay=0.01),
    "Adam fused": lambda params: torch.optim.Adam(params, torch.tensor(2e-3), fused=True, capturable=True),
    "AdamW": lambda params: torch.optim.AdamW(params, 2e-3),
    "AdamW fused": lambda params: torch.optim.AdamW(params, torch.tensor(2e-3), fused=True, capturable=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, 1e-3, momentum=0.5),
    "SGD": lambda params: torch.optim.SGD(params, 1e-2),
    "SGD momentum": lambda params: torch.optim.SGD(params, 1e-2, 0.9, nesterov=True),
    "NAdam": lambda params: torch.optim.NAdam(params, 1e-3),
    "Adagrad": lambda params: torch.optim.Adagrad(params, 1e-2, initial_accumulator_value=0.1),
}
# on a CPU the others read their step count on the host; on a GPU the step makes them capturable
CAPTURABLE = ["Adam fused", "AdamW fused", "RMSprop", "SGD", "SGD momentum"]
# options of GANStep, and of the plain loop
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "n_critic": ({"n_critic": 2}, {"n_critic": 2}),
    "criterion": ({"loss": nn.MSELoss()}, {
        "loss_d": lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
        "loss_g": lambda fake: (fake - 1).square().mean()}),
    "pair": ({"loss": (relativistic, lambda fake: -fake.mean())}, {
        "loss_d": relativistic, "loss_g": lambda fake: -fake.mean()}),
    "label smoothing": ({"label_smoothing": 0.1}, {"loss_d": lambda real, fake: bce(real, 0.9) + bce(fake, 0.0)}),
    "gradient clipping": ({"grad_clip": 0.2}, {"grad_clip": 0.2}),
    "weight clipping": ({"loss": "wgan", "weight_clip": 0.02, "n_critic": 2}, {
        "loss_d": lambda real, fake: fake.mean() - real.mean(), "loss_g": lambda fake: -fake.mean(),
        "weight_clip": 0.02, "n_critic": 2}),
    "augmentation": ({"augment": "color,translation,cutout"}, {
        "augment": lambda images: diff_augment.augment(images, "color,translation,cutout")}),
    "accumulation": ({"accumulate": 3}, {"parts": 3}),
    "accumulation with clipping": ({"accumulate": 2, "grad_clip": 0.1, "n_critic": 2}, {
        "parts": 2, "grad_clip": 0.1, "n_critic": 2}),
}


def made(optimizer: str, pair: tuple[nn.Module, nn.Module]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    first, second = (OPTIMIZERS[optimizer](network.parameters()) for network in pair)
    return first, second


def assert_equal_states(left: tuple[nn.Module, nn.Module], right: tuple[nn.Module, nn.Module]) -> None:
    for one, other in zip(left, right, strict=True):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-9, atol=1e-11, msg=key)


def train(step: Any) -> None:
    torch.manual_seed(2)
    for real in batches():
        assert step(real)["finite"] == 1


@pytest.mark.parametrize(("name", "graphed"), [*((name, False) for name in OPTIMIZERS),
                                               *((name, True) for name in CAPTURABLE)])
def test_optimizers(name, graphed, request):
    ours, exact = networks(), networks()
    optimizers = made(name, ours)
    step: Any = GANStep(*ours, nz=NZ, optimizers=optimizers)
    if graphed:
        request.getfixturevalue("cuda")
        step = GraphedStep(step)
    train(step)
    assert step.optimizers == optimizers and not (graphed and step.failure)
    plain(exact, made(name, exact))
    assert_equal_states(ours, exact)


@pytest.mark.parametrize(("name", "graphed"), [*((name, False) for name in CASES),
                                               *((name, True) for name in ("n_critic", "pair", "augmentation",
                                                                           "weight clipping",
                                                                           "accumulation with clipping"))])
def test_options(name, graphed, request):
    options, of_loop = CASES[name]
    ours, exact = networks(), networks()
    step: Any = GANStep(*ours, nz=NZ, optimizers=made("SGD momentum", ours), **options)
    if graphed:
        request.getfixturevalue("cuda")
        step = GraphedStep(step)
    train(step)
    assert not (graphed and step.failure)
    plain(exact, made("SGD momentum", exact), **of_loop)
    assert_equal_states(ours, exact)


@pytest.mark.parametrize("loss", ["bce", "minimax"])
def test_discriminator_that_ends_in_a_sigmoid(loss, caplog):
    """PyTorch's DCGAN example has one, and `nn.BCELoss`."""
    ours, exact = networks(last=nn.Sigmoid), networks(last=nn.Sigmoid)
    train(GANStep(*ours, nz=NZ, loss=loss, optimizers=made("Adam", ours)))
    plain(exact, made("Adam", exact), loss_d=lambda real, fake: F.binary_cross_entropy(real, torch.ones_like(real))
          + F.binary_cross_entropy(fake, torch.zeros_like(fake)),
          loss_g=lambda fake: (F.binary_cross_entropy(fake, torch.ones_like(fake)) if loss == "bce" else
                               -F.binary_cross_entropy(fake, torch.zeros_like(fake))))
    assert_equal_states(ours, exact)
    assert caplog.text.count("the discriminator ends in a sigmoid") == 1


def test_sigmoid_in_16_bits_is_refused():
    generator, discriminator = networks(last=nn.Sigmoid)
    step = GANStep(generator.float(), discriminator.float(), nz=NZ, precision="bf16")
    with pytest.raises(FastganError, match="ends in a sigmoid, which is inaccurate in bf16"):
        step(batches()[0].float())


def test_patches():
    """A discriminator with a logit for each of several patches of an image."""
    ours, exact = networks(), networks()
    for _, discriminator in (ours, exact):
        torch.manual_seed(3)
        discriminator[3], discriminator[4] = nn.Conv2d(6, 1, 3).double(), nn.Identity()
    train(GANStep(*ours, nz=NZ, optimizers=made("Adam", ours)))
    plain(exact, made("Adam", exact))
    assert_equal_states(ours, exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_batch_that_is_not_finite_changes_no_optimizer(name, bad):
    ours = networks()
    step = GANStep(*ours, nz=NZ, optimizers=made(name, ours))
    step(batches()[0])
    before = pickle.loads(pickle.dumps(step.state_dict()))
    assert step(batches()[1] * bad)["finite"] == 0
    after = step.state_dict()
    for network in ("generator", "discriminator"):
        for key, parameter in ours[network == "discriminator"].named_parameters():
            assert torch.equal(before[network][key], parameter), key
    for key in ("adam_g", "adam_d"):
        for one, other in zip(before[key]["state"].values(), after[key]["state"].values(), strict=True):
            assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


def test_state_dict_of_a_graphed_step_continues(cuda):  # noqa: F811
    whole, half = networks(), networks()
    step = GraphedStep(GANStep(*whole, nz=NZ, ema=0.9, optimizers=made("AdamW fused", whole)))
    torch.manual_seed(2)
    for real in batches()[:3]:
        step(real)
    state, random = copy.deepcopy(step.state_dict()), torch.get_rng_state()
    for real in batches()[3:]:
        step(real)
    other = GraphedStep(GANStep(*half, nz=NZ, ema=0.9, optimizers=made("AdamW fused", half)))
    other.load_state_dict(state)
    torch.set_rng_state(random)
    for real in batches()[3:]:
        other(real)
    assert_equal_states(whole, half)
    assert step.ema is not None and other.ema is not None
    assert_equal_states((step.ema.module,), (other.ema.module,))  # type: ignore[arg-type]


def test_options_are_the_fields_of_the_configuration():
    fields = {**get_type_hints(ModelConfig), **get_type_hints(TrainConfig)}
    options = get_type_hints(StepOptions)
    assert options.pop("n_critic") is int
    assert {key: fields[key] for key in options} == options
    left = set(get_type_hints(TrainConfig)) - set(options)
    assert left == {"loss", "sync_bn", "epochs", "net_g", "net_d"}


class Labelled(nn.Module):
    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(("make", "real", "words"), [
    (lambda: GANStep(*networks(), nz=NZ, lrr=1e-3), None, "unknown option 'lrr'; did you mean lr"),
    (lambda: GANStep(*networks(), nz=NZ, batch=8), None, "batch is not an option of GANStep; expected nz, noise"),
    (lambda: GANStep(*networks(), nz=0), None, "--nz 0: expected a whole number from 1"),
    (lambda: GANStep(*networks(), nz=NZ, loss="bse"), None, "--loss 'bse': expected"),
    (lambda: GANStep(*networks(), nz=NZ, loss=3), None, "loss 3: expected bce, minimax"),
    (lambda: GANStep(*(pair := networks()), nz=NZ, optimizers=made("SGD", pair)[::-1]), None,
     "optimizers[0] has parameters that the generator does not have; expected the generator's optimizer, then"),
    (lambda: GANStep(*(pair := networks()), nz=NZ, optimizers=made("SGD", pair)[:1]), None,
     "optimizers is (SGD); expected two optimizers of torch.optim"),
    (lambda: GANStep(*(pair := networks()), nz=NZ, lr=1e-3, optimizers=made("SGD", pair)), None,
     "lr with optimizers: expected this option to be set in the optimizers"),
    (lambda: GANStep(*networks(), nz=NZ + 1), batches()[0], "the generator accepts neither z (6, 5) ("),
    (lambda: GANStep(*networks(), nz=NZ), torch.zeros(6, 3, 8, 8, dtype=torch.uint8),
     "a batch of dtype torch.uint8: expected floating-point images, such as bytes / 127.5 - 1"),
    (lambda: GANStep(*networks(), nz=NZ, accumulate=4), batches()[0], "6 images with accumulate=4: expected a"),
    (lambda: GANStep(*networks(), nz=NZ), torch.zeros(6, 3, 16, 16, dtype=torch.float64),
     "the generator returned images (6, 3, 8, 8); expected (6, 3, 16, 16)"),
    (lambda: GANStep(_with_labels(), networks()[1], nz=NZ), batches()[0],
     "missing 1 required positional argument: 'labels'"),
    (lambda: GANStep(networks()[0], _of_16(), nz=NZ), batches()[0],
     "the discriminator does not accept images (6, 3, 8, 8)"),
], ids=["unknown", "of a run", "nz", "loss", "loss type", "swapped", "one", "lr", "z", "bytes", "accumulate", "size",
        "labels", "larger"])
def test_mistakes(make, real, words):
    with pytest.raises(FastganError) as caught:
        step = make()
        step(real)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def _with_labels() -> nn.Module:
    network = Labelled()
    network.layer = nn.Linear(1, 1).double()
    return network


def _of_16() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1), nn.Flatten(0)).double()


def test_top_level_name():
    assert fastgan.GANStep is GANStep
