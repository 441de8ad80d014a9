"""Chains compared with `nn.Sequential`: every kind of layer, and every change of layers between calls."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastgan.nn as fnn
from fastgan import ops
from fastgan.errors import FastganError
from fastgan.models import DCGANDiscriminator
from tests.test_ops import assert_same, results

pytestmark = pytest.mark.usefixtures("one_thread")


def layers(**norm: Any) -> list[nn.Module]:
    """Three blocks of odd sizes, (6, 3, 17, 19) -> (6, 2, 20, 23)."""
    torch.manual_seed(0)
    made = [nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5, **norm), nn.LeakyReLU(0.3, inplace=True),
            nn.Conv2d(5, 7, (2, 3), 1, 1), nn.BatchNorm2d(7, **norm), nn.ReLU(),
            nn.ConvTranspose2d(7, 2, 4, 2, 1), nn.Tanh()]
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.3), nn.init.normal_(layer.bias, 0.7)
    return made


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 17, 19, dtype=torch.float64)


def change(index: int, action: Callable[[nn.Module], Any]) -> Callable[[nn.Sequential], Any]:
    return lambda network: action(network[index])


def replace(index: int, layer: Callable[[], nn.Module]) -> Callable[[nn.Sequential], Any]:
    def act(network: nn.Sequential) -> None:
        torch.manual_seed(3)
        network[index] = layer().double()
    return act


def hook_doubling(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: output * 2)


class Doubling(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


CHANGES: dict[str, tuple[Callable[[nn.Sequential], Any], int]] = {
    # a change of a network of `layers()`, and the number of blocks that then still run as stages
    "nothing": (lambda network: None, 3),
    "evaluation": (lambda network: network.eval(), 3),
    "one-norm-in-evaluation": (change(1, lambda m: m.eval()), 3),
    "frozen-gamma": (change(4, lambda m: m.weight.requires_grad_(False)), 3),
    "frozen-convolution": (change(3, lambda m: m.weight.requires_grad_(False)), 3),
    "negative-slope": (replace(2, lambda: nn.LeakyReLU(-0.5)), 3),
    "momentum-none": (replace(1, lambda: nn.BatchNorm2d(5, momentum=None)), 3),
    "untracked": (replace(4, lambda: nn.BatchNorm2d(7, track_running_stats=False)), 3),
    "tracking-switched-off": (change(4, lambda m: setattr(m, "track_running_stats", False)), 3),
    "not-affine": (replace(1, lambda: nn.BatchNorm2d(5, affine=False)), 3),
    "unusual-eps": (replace(1, lambda: nn.BatchNorm2d(5, eps=0.5)), 3),
    "shared-activation": (lambda network: network.__setitem__(5, network[2]), 3),
    "hook-on-convolution": (change(3, hook_doubling), 2),
    "hook-on-norm": (change(1, hook_doubling), 3),
    "hook-on-activation": (change(2, hook_doubling), 3),
    "pre-hook": (change(4, lambda m: m.register_forward_pre_hook(lambda m, x: (x[0] + 1,))), 3),
    "backward-hook": (change(3, lambda m: m.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))), 2),
    "backward-pre-hook": (change(5, lambda m: m.register_full_backward_pre_hook(lambda m, go: (go[0] * 2,))), 3),
    "spectral-norm": (change(0, nn.utils.spectral_norm), 2),
    "weight-norm": (change(0, nn.utils.parametrizations.weight_norm), 3),
    "spectral-parametrization": (change(3, nn.utils.parametrizations.spectral_norm), 3),
    "parametrized-norm": (change(1, lambda m: parametrize.register_parametrization(m, "weight", nn.Softplus())), 3),
    "parametrized-and-padding-same": (replace(3, lambda: nn.utils.parametrizations.spectral_norm(
        nn.Conv2d(5, 7, 3, padding="same"))), 2),
    "replaced-forward": (change(2, lambda m: setattr(m, "forward", torch.sin)), 3),
    "dilation": (replace(0, lambda: nn.Conv2d(3, 5, 3, 2, 1, dilation=2)), 2),
    "grouped": (replace(3, lambda: nn.Conv2d(5, 5, 3, 1, 1, groups=5)), 2),
    "reflect": (replace(0, lambda: nn.Conv2d(3, 5, 3, 2, 1, padding_mode="reflect")), 2),
    "same": (replace(3, lambda: nn.Conv2d(5, 7, 3, padding="same")), 2),
    "large-kernel": (replace(3, lambda: nn.Conv2d(5, 7, 9, padding=4)), 2),
    "subclass": (replace(0, lambda: Doubling(3, 5, 5, 2)), 2),
    "other-activation": (replace(5, lambda: nn.GELU()), 3),
    "dropout-of-nothing": (replace(5, lambda: nn.Dropout(0.0)), 3),
}


def pair(name: str = "nothing") -> tuple[nn.Sequential, fnn.Chain]:
    eager = nn.Sequential(*layers()).double()
    if name == "grouped":
        eager[4] = nn.BatchNorm2d(5).double()
        eager[6] = nn.ConvTranspose2d(5, 2, 4, 2, 1).double()
    CHANGES[name][0](eager)
    chain = fnn.Chain(*copy.deepcopy(eager))
    chain.training = eager.training
    return eager, chain


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of blocks in each call of `ops.chain`."""
    seen: list[int] = []
    chain = ops.chain
    monkeypatch.setattr(ops, "chain", lambda x, run, impl: (seen.append(len(run)), chain(x, run, impl))[1])
    return seen


@pytest.mark.parametrize("name", CHANGES)
def test_chain_is_sequential(name, blocks):
    eager, chain = pair(name)
    for _ in range(2):
        assert_same(results(eager, image(), eager), results(chain, image(), chain))
    assert sum(blocks) == 2 * CHANGES[name][1]
    assert list(eager.state_dict()) == list(chain.state_dict())
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, chain.state_dict()[key])


@pytest.mark.parametrize("name", ["hook-on-norm", "evaluation", "spectral-norm", "momentum-none", "untracked"])
def test_change_between_calls(name, blocks):
    """Decided in each call, not when the chain is created."""
    eager, chain = pair()
    results(eager, image(), eager), results(chain, image(), chain)
    for network in (eager, chain):
        torch.manual_seed(5)
        CHANGES[name][0](network)
    assert_same(results(eager, image(), eager), results(chain, image(), chain))


def test_global_hooks_see_every_layer():
    eager, chain = pair()
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        assert torch.equal(chain(image()), eager(image()))
    finally:
        handle.remove()
    assert len(seen) == 2 * 9


def test_same_bits_as_sequential():
    eager, chain = pair()
    assert torch.equal(eager(image()), chain(image()))
    assert chain(image()).stride() == eager(image()).stride()


@pytest.mark.parametrize("name", [n for n in CHANGES if n not in ("spectral-norm",)])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_of_statistics_are_calls_in_order(name, groups):
    eager, chain = pair(name)

    def calls(x: Tensor) -> Tensor:
        return torch.cat([eager(part) for part in x.chunk(groups)])

    with fnn.stat_groups(chain, groups):
        assert_same(results(calls, image(), eager), results(chain, image(), chain))
    assert chain.stat_groups == 1
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, chain.state_dict()[key])


class Doubled(fnn.Chain):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_groups_in_a_subclass_with_a_parametrization():
    """Each part passes through the layers, not through the forward of the subclass again."""
    eager, chain = pair("spectral-parametrization")
    doubled = Doubled(*chain)
    with fnn.stat_groups(doubled, 2):
        found = doubled(image())
    torch.testing.assert_close(found, 2 * torch.cat([eager(part) for part in image().chunk(2)]))


def test_discriminator_on_real_and_fake_at_once():
    torch.manual_seed(0)
    whole = DCGANDiscriminator(5, 3, 32).double()
    halves = copy.deepcopy(whole)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    with fnn.stat_groups(whole, 2):
        assert_same(results(whole, x, whole),
                    results(lambda x: torch.cat([halves(part) for part in x.chunk(2)]), x, halves))
    assert whole.main[3].num_batches_tracked == 2
    assert (whole(x) - halves(x)).abs().max() < 1e-9 and (halves(x[:3]) - halves(x)[:3]).abs().max() > 1e-3


def test_nested_blocks_run_as_one_chain(blocks):
    torch.manual_seed(0)
    chain = fnn.Chain(fnn.ConvBNLeakyReLU(3, 5, 4, 2, 1), nn.Sequential(nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7)),
                      nn.ReLU(), fnn.ConvTransposeBNReLU(7, 2, 4, 2, 1)).double()
    eager = nn.Sequential(*(nn.Sequential(*part) if isinstance(part, nn.Sequential) else part
                            for part in copy.deepcopy(chain)))
    assert_same(results(eager, image(), eager), results(chain, image(), chain))
    assert blocks == [3]
    hook_doubling(chain[1]), hook_doubling(eager[1])
    with fnn.stat_groups(chain, 2):
        assert_same(results(lambda x: torch.cat([eager(part) for part in x.chunk(2)]), image(), eager),
                    results(chain, image(), chain))
    assert blocks == [3, 1, 1]


@pytest.mark.parametrize(("block", "keys"), [
    (fnn.ConvBNAct(3, 5, 4, 2, 1, bias=True), ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                                               "1.running_var", "1.num_batches_tracked"]),
    (fnn.ConvBNAct(3, 5, (2, 3), activation="none", norm=False), ["0.weight"]),
    (fnn.ConvTransposeBNAct(3, 5, 3, 2, 1, 1, activation="tanh", norm=False), ["0.weight"]),
], ids=["conv-bias", "conv-alone", "transpose-tanh"])
def test_blocks_are_their_layers(block, keys):
    assert list(block.state_dict()) == keys
    eager = nn.Sequential(*copy.deepcopy(block)).double()
    assert_same(results(eager, image(), eager), results(block.double(), image(), block))
    assert type(block[:1]) is fnn.Chain and block[:1][0] is block[0]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(clone):
    _, chain = pair()
    twin = clone(chain)
    assert twin[1] is not chain[1] and twin.impl == "auto"
    assert torch.equal(twin(image()), chain(image()))


def weights_init(module: nn.Module) -> None:
    """That of PyTorch's DCGAN example, which checks class names, and zeros for biases, as in other code."""
    name = type(module).__name__
    if name.find("Conv") != -1:
        nn.init.normal_(module.weight.data, 0.0, 0.02)
        if hasattr(module, "bias") and module.bias is not None:
            nn.init.zeros_(module.bias.data)
    elif name.find("BatchNorm") != -1:
        nn.init.normal_(module.weight.data, 1.0, 0.02)
        nn.init.zeros_(module.bias.data)


@pytest.mark.parametrize("clone", [lambda block: block, copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))],
                         ids=["itself", "deepcopy", "pickle"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [fnn.ConvBNAct, fnn.ConvTransposeBNAct, fnn.ConvBNLeakyReLU, fnn.ConvTransposeBNReLU])
def test_initialisers_that_go_by_the_names_of_classes(kind, bias, clone):
    block = clone(kind(16, 32, 4, 2, 1, bias=bias))
    keys = list(block.state_dict())
    assert "weight" not in keys and len(list(block.parameters())) == 3 + bias
    nn.init.ones_(block[0].weight)
    nn.Sequential(block).apply(weights_init)
    assert list(block.state_dict()) == keys
    assert block.weight is block[0].weight and block.bias is block[0].bias
    assert block.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block[1].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert block.bias is None or not block.bias.any()


def test_compiles_as_a_full_graph():
    eager, chain = pair()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert_same(results(eager, image(), eager), results(compiled, image(), chain))


def test_second_derivatives():
    torch.manual_seed(0)
    chain = fnn.Chain(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 1, 2)).double()
    x = torch.randn(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    for groups in (1, 2):
        with fnn.stat_groups(chain, groups):
            assert torch.autograd.gradcheck(chain, x) and torch.autograd.gradgradcheck(chain, x)


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (3, 17, 19), (2, 4, 17, 19)],
                         ids=["one-value", "unbatched", "channels"])
def test_same_errors_as_sequential(shape):
    chain = fnn.Chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), impl="reference")
    errors = []
    for network in (chain, nn.Sequential(*chain)):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            network(torch.zeros(shape))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
def test_small_transpose(impl):
    """Without output_padding, the result would have no pixels."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.ConvTranspose2d(4, 2, 2, 2, 1, output_padding=1), nn.Tanh())
    chain, x, results = fnn.Chain(*eager, impl=impl), torch.randn(3, 4, 1, 1, requires_grad=True), []
    for network in (eager, chain):
        y = network(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *eager.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
def test_integers_of_numpy_are_integers(impl):
    two, one = np.int64(2), np.int32(1)
    chain = fnn.Chain(fnn.ConvBNAct(3, 5, np.int64(4), two, one, impl=impl),
                      fnn.ConvTransposeBNAct(5, 3, np.int64(3), two, one, one, impl=impl), impl=impl)
    x, usual = image().float(), copy.deepcopy(chain)
    for layer in (usual[0][0], usual[1][0]):
        for name in ("kernel_size", "stride", "padding", "output_padding"):
            setattr(layer, name, tuple(map(int, getattr(layer, name))))
    with fnn.stat_groups(chain, two):
        y = chain(x)
    chain.stat_groups, usual.stat_groups = two, 2
    expected = usual(x)
    assert torch.equal(y, expected) and torch.equal(chain(x), expected)


def test_refusals():
    with pytest.raises(FastganError, match="impl 'cuda': expected 'auto', 'reference'"):
        fnn.Chain(nn.ReLU(), impl="cuda")
    with pytest.raises(FastganError, match="activation 'elu': expected one of 'none', 'relu'"):
        fnn.ConvBNAct(3, 5, 3, activation="elu")
    _, chain = pair()
    with pytest.raises(FastganError, match="stat_groups 4: expected a positive number that divides the batch of 6"), \
            fnn.stat_groups(chain, 4):
        chain(image())
    assert chain.stat_groups == 1
    outside = nn.ModuleDict({"a": chain, "b": nn.Sequential(nn.BatchNorm2d(3))})
    with pytest.raises(FastganError, match=r"b\.0 \(BatchNorm2d\) would use the whole batch"), \
            fnn.stat_groups(outside, 2):
        pass
    with pytest.raises(TypeError, match=r"groups is 2\.0"), fnn.stat_groups(chain, 2.0):
        pass
