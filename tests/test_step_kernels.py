"""Triton's kernels for updates and for the end of a step, interpreted, against PyTorch's operators in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastgan.config import TrainConfig
from fastgan.errors import KernelError
from fastgan.models import DCGANDiscriminator, DCGANGenerator
from fastgan.nn import use
from fastgan.ops.casts import Casts
from fastgan.train.ema import EMA
from fastgan.train.kernels import MOST, StepKernels
from fastgan.train.metrics_buffer import FIELDS, MetricsBuffer
from fastgan.train.optim import DeviceAdam, make_adam
from fastgan.train.static_buffers import StaticBuffers
from fastgan.train.step import GANStep

pytest.importorskip("triton")
from fastgan.ops.triton import finish, update
from fastgan.ops.triton.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels run in proofs.ptx, and on a GPU")
CPU = torch.device("cpu")
NAN = math.nan


class Network(nn.Module):
    """Parameters with several sizes and memory orders, one of which no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(5, 24, 4).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(24)
        self.large = nn.Parameter(torch.randn(2, 2049))
        self.unused = nn.Parameter(torch.randn(3))

    def used(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if name != "unused"]


def gradients(params: list[Tensor], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.empty_like(p).normal_() for p in params]


def make(hat: bool) -> tuple[Network, DeviceAdam, EMA, Casts]:
    network = Network()
    adam = make_adam(network.parameters(), 2e-3, TrainConfig(beta1=0.5, beta2=0.99, adam_eps=1e-3, adam_eps_hat=hat))
    ema = EMA(network, 0.3)
    return network, adam, ema, Casts(network.parameters(), torch.float16)


def descend(kernels: StepKernels, network: Network, adam: DeviceAdam, ema: EMA, casts: Casts, grads: list[Tensor],
            skip: float = 0.0, loss: float = 1.0, clip: float = 0.0):
    for p, grad in zip(network.used(), grads, strict=True):
        p.grad = grad
    found = kernels.update(torch.tensor(loss), list(network.parameters()), adam, torch.tensor(skip), clip, casts, ema)
    adam.zero_grad()
    return found


@pytest.mark.parametrize("clip", [0.0, 3.0])
@pytest.mark.parametrize("hat", [False, True])
def test_updates_are_those_of_the_definition(hat, clip):
    network, adam, ema, casts = make(hat)
    wide, plain = copy.deepcopy(network).double(), copy.deepcopy(network)
    config = TrainConfig(beta1=0.5, beta2=0.99, adam_eps=1e-3, adam_eps_hat=hat)
    references = [(one, make_adam(one.parameters(), 2e-3, config, fused=False), EMA(one, 0.3)) for one in (wide, plain)]
    kernels = StepKernels("triton", CPU)
    for seed in range(4):
        grads = gradients(network.used(), seed)
        norm = torch.linalg.vector_norm(torch.cat([grad.double().flatten() for grad in grads]))
        found = descend(kernels, network, adam, ema, casts, grads, clip=clip)
        assert found is not None and found.skip == 0
        assert found.norm.item() == pytest.approx(norm.item(), rel=1e-6)
        factor = min(1.0, clip / (norm.item() + 1e-6)) if clip else 1.0
        for one, optimizer, average in references:
            for p, grad in zip(one.used(), grads, strict=True):
                p.grad = (grad.double() * factor).to(p.dtype)
            optimizer.step()
            average.update(torch.zeros(()))
    assert adam.updates.tolist() == references[0][1].updates.tolist() and ema.updates == 4
    sets = [[*one.parameters(), *average.module.parameters(), *optimizer.tensors()[3:]] for one, optimizer, average in
            ((network, adam, ema), *references)]
    for ours, exact, eager in zip(*sets, strict=True):
        assert torch.dist(ours.double(), exact) <= 1.5 * torch.dist(eager.double(), exact) + 1e-7 * exact.norm()
    assert torch.equal(casts.copy_of(network.conv.weight), network.conv.weight.half())
    assert torch.equal(network.unused, plain.unused)


@pytest.mark.parametrize(("skip", "loss", "bad"), [(1.0, 1.0, 0.0), (0.0, NAN, 0.0), (0.0, math.inf, 0.0),
                                                   (0.0, 1.0, NAN), (0.0, 1.0, math.inf)])
def test_nothing_changes_where_something_is_not_finite(skip, loss, bad):
    network, adam, ema, casts = make(hat=False)
    descend(StepKernels("triton", CPU), network, adam, ema, casts, gradients(network.used(), 0))
    tensors = [*network.parameters(), *adam.tensors(), *ema.tensors(), *casts.tensors()]
    before = [tensor.detach().clone() for tensor in tensors]
    grads = gradients(network.used(), 1)
    grads[0].view(-1)[7] += bad
    found = descend(StepKernels("triton", CPU), network, adam, ema, casts, grads, skip, loss, clip=1.0)
    assert found.skip == 1
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("t", [1, 2, 10, 1000, 10**6])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
def test_corrections_do_not_cancel(beta, t):
    """One update of one number from m = v = 0 after t - 1 others changes it by the learning rate for all betas."""
    p, grad, zero = torch.zeros(1), torch.ones(1), (torch.zeros(1),)
    moments = update.Moments((torch.zeros(1),), (torch.zeros(1),), torch.tensor([t - 1.0]), torch.ones(1),
                             torch.ones(()), (0,))
    norm = update.gradient_norm([grad], zero[0][0], zero[0][0], 0.0)
    update.adam([p], [grad], moments, norm, update.AdamOptions(beta, beta, 0.0), [None], None)
    moved = (1 - beta) / (1 - beta**t) / math.sqrt((1 - beta) / (1 - beta**t))
    assert -p.item() == pytest.approx(moved, rel=1e-6)


def finished(images: Tensor, metrics: dict[str, float], t: int, halted: float, skip: float, scaled: bool,
             real_first: bool = True, kernels: StepKernels | None = None, labels: Tensor | None = None):
    buffers = StaticBuffers(3, images[: len(images) // 2], labels, real_first, images.dtype)
    buffers.images.copy_(images)
    log = MetricsBuffer(4, CPU)
    state = torch.tensor(skip), torch.tensor(halted), torch.tensor(t)
    given = {name: torch.tensor(value) for name, value in metrics.items()}
    out = (kernels or StepKernels("triton", CPU)).finish(buffers, given, log, state, scaled)
    return out, log.rows, state[1].item(), state[2].item(), buffers.diversity().item()


@pytest.mark.parametrize("real_first", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (40, 1, 16, 16), (4, 2)])
def test_the_end_of_a_step(shape, real_first):
    torch.manual_seed(1)
    images = torch.randn(shape) + 3
    metrics = {name: float(index) for index, name in enumerate(FIELDS[:-2])}
    out, rows, halted, t, diversity = finished(images, metrics, 6, 0.0, 0.0, scaled=False, real_first=real_first)
    assert out["diversity"].item() == pytest.approx(diversity, rel=1e-5)
    assert rows[2].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, out["diversity"].item(), 1.0]
    assert rows[[0, 1, 3]].isnan().all() and (halted, t) == (0, 7)


def test_a_step_without_the_generator_has_none_of_its_metrics():
    out, rows, *_ = finished(torch.randn(4, 2), {"loss_d": 1.0, "d_real": 2.0}, 0, 0.0, 0.0, scaled=False)
    assert rows[0, :3].tolist()[::2] == [1.0, 2.0] and rows[0, [1, 3, 4, 5]].isnan().all()
    assert list(out) == ["loss_d", "d_real", "diversity", "finite"]


@pytest.mark.parametrize(("scaled", "skip", "loss", "halted", "expected"), [
    (False, 1.0, NAN, 0.0, 1), (False, 0.0, 1.0, 0.0, 0), (True, 1.0, 1.0, 0.0, 0), (True, 1.0, NAN, 0.0, 1),
    (True, 0.0, math.inf, 0.0, 1), (True, 0.0, 1.0, 1.0, 1)])
def test_when_the_device_halts(scaled, skip, loss, halted, expected):
    """A skipped update halts; with a loss scale, only a loss that is not finite does."""
    out, rows, after, t, _ = finished(torch.randn(4, 2), {"loss_d": loss}, 2, halted, skip, scaled)
    assert (after, t, out["finite"], rows[2, -1]) == (expected, 3 - expected, 1 - expected, 1 - expected)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_diversity_of_images_that_are_not_finite(value):
    images = torch.randn(8, 2)
    images[1, 0] = value
    out, *_ = finished(images, {"loss_d": 1.0}, 0, 0.0, 1.0, scaled=False)
    assert out["diversity"].isnan()


def test_what_the_kernels_do_not_support_is_left_to_pytorch():
    network, adam, ema, casts = make(hat=False)
    grads = gradients(network.used(), 0)
    for impl in ("native", "reference", "auto"):
        assert descend(StepKernels(impl, CPU), network, adam, ema, casts, grads) is None
    wide = Network().double()
    optimizer = make_adam(wide.parameters(), 1e-3, TrainConfig())
    assert descend(StepKernels("triton", CPU), wide, optimizer, EMA(wide, 0.5), Casts([], None),
                   gradients(wide.used(), 0)) is None
    many = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(MOST + 1)])
    for p in many:
        p.grad = torch.ones(1)
    assert StepKernels("triton", CPU).update(torch.zeros(()), list(many), make_adam(many, 1e-3, TrainConfig()),
                                             torch.zeros(()), 0.0, casts, None) is None


def test_diversity_within_classes_is_left_to_pytorch():
    out, *_ = finished(torch.randn(8, 2), {"loss_d": 1.0}, 0, 0.0, 0.0, scaled=False, labels=torch.tensor([0, 1, 0, 1]))
    assert out is None


def layout(shape: tuple[int, ...], last: bool) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])  # contiguous ones are first copied
@pytest.mark.parametrize("halted", [0.0, 1.0])
def test_inputs(halted, last):
    """One launch fills buffers of several dtypes and sizes, including half of a tensor; none after the step halts."""
    noise, images, labels = torch.randn(6, 700), layout((6, 3, 5, 7), last), torch.arange(6)
    both = torch.zeros(12, 3, 5, 7, dtype=torch.float16).to(memory_format=torch.channels_last)
    targets = [torch.zeros(6, 700), both[6:], torch.full((6,), -1)]
    before = [target.clone() for target in targets]
    sources = [noise, images, labels]
    StepKernels("triton", CPU).copy_unless(torch.tensor(halted), list(zip(sources, targets, strict=True)))
    for target, source, old in zip(targets, sources, before, strict=True):
        assert torch.equal(target, old if halted else source.to(target.dtype))
    assert not both[:6].any()


def test_a_kernel_that_fails_is_named_once_and_changes_nothing(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KernelError("adam_kernel: no")

    network, adam, ema, casts = make(hat=False)
    tensors = [*network.parameters(), *adam.tensors(), *ema.tensors()]
    before = [tensor.detach().clone() for tensor in tensors]
    kernels = StepKernels("triton", CPU)
    for module in (update, finish):
        monkeypatch.setattr(module, "launch", fail)
    with pytest.warns(UserWarning, match="adam_kernel: no; the step continues with PyTorch operators"):
        assert descend(kernels, network, adam, ema, casts, gradients(network.used(), 0)) is None
    assert all(map(torch.equal, tensors, before)) and not kernels.available
    out, *_ = finished(torch.randn(4, 2), {"loss_d": 1.0}, 0, 0.0, 0.0, scaled=False, kernels=kernels)
    assert out is None


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(("impl", "precision"), [("reference", "fp32"), ("native", "bf16"), ("triton", "fp16")])
def test_a_memory_format_that_changes_between_steps(impl, precision, ema):
    """The parameters then have other strides than their moments, 16-bit copies and averages."""
    ours = []
    for changed in (False, True):
        torch.manual_seed(0)
        networks = (use(DCGANGenerator(nz=8, ngf=8, image_size=16), impl),
                    use(DCGANDiscriminator(ndf=8, image_size=16), impl))
        step, real = GANStep(*networks, nz=8, precision=precision, ema=ema), torch.randn(4, 3, 16, 16)
        for scale in step.scale.tensors()[:1]:  # the initial one overflows, and updates would be skipped
            scale.fill_(256.0)
        step(real)
        for network in networks if changed else ():
            network.to(memory_format=torch.channels_last)
        step(real)
        averages = [] if step.ema is None else step.ema.module.parameters()
        ours.append([*networks[0].parameters(), *networks[1].parameters(), *averages])
    assert max(float((a - b).detach().abs().max()) for a, b in zip(*ours, strict=True)) < 1e-6
