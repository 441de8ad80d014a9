"""Each loss against its formula in float64, its gradient, its behavior for large logits, and the penalties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from fastgan.train.losses import LOSSES, Loss, gradient_penalty, r1_penalty


def discriminator(loss: Loss, real: Tensor, fake: Tensor, *smoothing: float) -> Tensor:
    return loss.real(real, *smoothing)[0] + loss.fake(fake)[0]


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def log_softmax(pair: list[float], label: int) -> float:
    return pair[label] - math.log(math.exp(pair[0]) + math.exp(pair[1]))


# for single logits: D's term for a real, D's term for a fake, G's term for a fake, probability of being real
TERMS = {
    "bce": (lambda r: -log_sigmoid(r), lambda f: -log_sigmoid(-f), lambda f: -log_sigmoid(f),
            lambda x: 1 / (1 + math.exp(-x))),
    "minimax": (lambda r: -log_sigmoid(r), lambda f: -log_sigmoid(-f), lambda f: log_sigmoid(-f),
                lambda x: 1 / (1 + math.exp(-x))),
    "softmax": (lambda r: -log_softmax(r, 1), lambda f: -log_softmax(f, 0), lambda f: -log_softmax(f, 1),
                lambda x: math.exp(log_softmax(x, 1))),
    "least-squares": (lambda r: (r - 1) ** 2 / 2, lambda f: f**2 / 2, lambda f: (f - 1) ** 2 / 2, lambda x: x),
    "hinge": (lambda r: max(0, 1 - r), lambda f: max(0, 1 + f), lambda f: -f, lambda x: 1 / (1 + math.exp(-x))),
    "wgan": (lambda r: -r, lambda f: f, lambda f: -f, lambda x: x),
    "wgan-gp": (lambda r: -r, lambda f: f, lambda f: -f, lambda x: x),
}


def logits(name: str, seed: int, count: int = 7) -> Tensor:
    torch.manual_seed(seed)
    shape = (count, 2) if name == "softmax" else (count,)
    return (2 * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def mean(term, values: Tensor) -> float:
    return sum(map(term, values.tolist())) / len(values)


def test_every_loss_has_its_formula():
    assert TERMS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_value(name):
    loss, (real_term, fake_term, generator_term, probability) = LOSSES[name], TERMS[name]
    real, fake = logits(name, 0), logits(name, 1, count=5)
    value, d_real, d_fake = discriminator(loss, real, fake), loss.real(real)[1], loss.fake(fake)[1]
    assert value.item() == pytest.approx(mean(real_term, real) + mean(fake_term, fake), 1e-12)
    assert loss.generator(fake).item() == pytest.approx(mean(generator_term, fake), 1e-12)
    for told, given in ((d_real, real), (d_fake, fake)):
        assert told.item() == pytest.approx(mean(probability, given), 1e-12) and not told.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name):
    real, fake = logits(name, 2), logits(name, 3)
    assert gradcheck(lambda *logits: discriminator(LOSSES[name], *logits), (real, fake))
    assert gradcheck(LOSSES[name].generator, (fake,))


def test_bce_gradient_is_sigmoid_minus_label():
    real, fake = logits("bce", 4), logits("bce", 5)
    to_real, to_fake = torch.autograd.grad(discriminator(LOSSES["bce"], real, fake), (real, fake))
    torch.testing.assert_close(to_real, (torch.sigmoid(real) - 1) / 7)
    torch.testing.assert_close(to_fake, torch.sigmoid(fake) / 7)
    (to_fake,) = torch.autograd.grad(LOSSES["bce"].generator(fake), fake)
    torch.testing.assert_close(to_fake, (torch.sigmoid(fake) - 1) / 7)


@pytest.mark.parametrize("name", ["bce", "minimax"])
def test_label_smoothing(name):
    """Real images have target 0.9: PyTorch's cross-entropy with that target."""
    real, fake = logits(name, 6), logits(name, 7)
    expected = (nn.functional.binary_cross_entropy_with_logits(real, torch.full_like(real, 0.9))
                + nn.functional.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))
    torch.testing.assert_close(discriminator(LOSSES[name], real, fake, 0.1), expected)


@pytest.mark.parametrize(("name", "slope"), [("bce", -1.0), ("minimax", 0.0)])
def test_generator_gradient_where_fakes_are_recognised(name, slope):
    """At D(fake) = sigmoid(-30) the minimax loss saturates and the other does not; at +30 it is the reverse."""
    for logit, expected in ((-30.0, slope), (30.0, -1.0 - slope)):
        fake = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(LOSSES[name].generator(fake), fake)
        assert gradient.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bce", "minimax", "softmax"])
def test_extreme_logits_stay_finite(name, dtype):
    """Logits that are wrong by 10,000: a loss of 10,000 for each half and a gradient of 1, not inf and nan."""
    right, wrong = (torch.tensor([x], dtype=dtype) for x in (1e4, -1e4))
    if name == "softmax":
        right, wrong = (torch.stack([torch.zeros_like(x), x], 1) for x in (right, wrong))
    for real, fake, per_half in ((wrong, right, 1e4), (right, wrong, 0.0)):
        real, fake = real.clone().requires_grad_(), fake.clone().requires_grad_()
        loss = discriminator(LOSSES[name], real, fake)
        assert loss.item() == pytest.approx(2 * per_half, rel=1e-2)
        for gradient in torch.autograd.grad(loss, (real, fake)):
            assert gradient.abs().max().item() == (1.0 if per_half else 0.0)
        assert torch.isfinite(LOSSES[name].generator(fake))


class Linear(nn.Module):
    """D(x) = <w, x> + 3: its gradient is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + 3


class Curved(nn.Module):
    """D(x) = 2 tanh(<w, x> + 0.3), with given weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.given = weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.tanh(x.flatten(1) @ self.given + 0.3)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 3, 1, dtype=torch.float64)


def test_gradient_penalty_of_a_linear_critic():
    """(|w| - 1)^2 for any images, with gradient 2 (|w| - 1) w / |w|."""
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5], dtype=torch.float64)
    critic, length = Linear(weight), weight.norm()
    penalty = gradient_penalty(critic, images(), images(), ())
    torch.testing.assert_close(penalty, (length - 1) ** 2)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(gradient, 2 * (length - 1) * weight / length)


def test_gradient_penalty_looks_between_real_and_fake():
    seen = []

    class Spy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    real, fake = torch.zeros(64, 2, 3, 1, dtype=torch.float64), torch.ones(64, 2, 3, 1, dtype=torch.float64)
    gradient_penalty(Spy(torch.ones(6, dtype=torch.float64)), real, fake, ())
    (between,) = seen
    share = between.flatten(1)
    assert torch.all(share == share[:, :1])  # one point on the line for each image
    assert 0 <= share.min() < 0.1 and 0.9 < share.max() <= 1
    assert share[:, 0].unique().numel() == 64


def test_r1_penalty_of_a_linear_discriminator():
    """|w|^2 / 2, with gradient w."""
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5], dtype=torch.float64)
    discriminator, real = Linear(weight), images().requires_grad_()
    penalty = r1_penalty(discriminator(real), real)
    torch.testing.assert_close(penalty, weight.square().sum() / 2)
    (gradient,) = torch.autograd.grad(penalty, discriminator.weight)
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1_penalty"])
def test_penalties_are_differentiated_twice(penalty):
    """Their gradient with respect to the weights is a second derivative; finite differences agree."""
    torch.manual_seed(6)
    real, fake = 0.3 * images(), 0.3 * images()

    def value(weight: Tensor) -> Tensor:
        torch.manual_seed(7)  # the points between real and fake
        discriminator = Curved(weight)
        if penalty == "gradient_penalty":
            return gradient_penalty(discriminator, real, fake, ())
        given = real.clone().requires_grad_()
        return r1_penalty(discriminator(given), given)

    weight = torch.randn(6, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(value(weight), weight)
    assert gradient.abs().min() > 1e-6
    assert gradcheck(value, (weight,))


def test_smooth_losses_have_second_derivatives():
    assert gradgradcheck(lambda *x: discriminator(LOSSES["bce"], *x), (logits("bce", 8), logits("bce", 9)))
