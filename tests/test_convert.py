"""convert and to_eager: which layers are fused, why others are not, and that results do not change."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan
import fastgan.nn as fnn
from fastgan import ops
from fastgan.errors import FastganError
from fastgan.models import DCGANDiscriminator, DCGANGenerator, OReillyGenerator, TFDiscriminator
from fastgan.ops import engines
from fastgan.ops.native import extension
from tests.test_nn import CHANGES, image, layers
from tests.test_ops import assert_same, results

pytestmark = pytest.mark.usefixtures("one_thread")


class ByAttributes(nn.Module):
    """Blocks as attributes, in a list, with functions and modules as activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.slope, self.drop = 0.3, 0.0
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5)
        self.ups = nn.ModuleList([nn.ConvTranspose2d(5, 5, 4, 2, 1), nn.Conv2d(5, 5, 3)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(5)])
        self.act, self.last = nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(5, 2, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn1(self.conv1(x)), self.slope)
        for up, norm in zip(self.ups, self.norms):  # noqa: B905 (strict would be a keyword for fx to know)
            x = self.act(norm(up(x)))
        return self.last(F.dropout(x, self.drop, self.training))


def both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """`model` in float64, and a converted copy."""
    model = model.double()
    return model, fastgan.convert(copy.deepcopy(model))


def assert_equal_networks(eager: nn.Module, other: nn.Module, x: Tensor) -> None:
    assert_same(results(eager, x, eager), results(other, x, other))
    assert list(eager.state_dict()) == list(other.state_dict())
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key])


def test_sequential_becomes_a_chain():
    model = nn.Sequential(*layers())
    eager, converted = both(model)
    assert type(converted) is fnn.Chain and type(model) is nn.Sequential
    expected = ["0, 1, 2: Conv2d + BatchNorm2d + LeakyReLU{} as PyTorch operators (engine: reference)",
                "3, 4, 5: Conv2d + BatchNorm2d + ReLU{} as PyTorch operators (engine: reference)",
                "6, 7: ConvTranspose2d + Tanh{} as PyTorch operators (engine: reference)"]
    assert converted.fastgan_report == [line.format(", to run") for line in expected]
    for _ in range(2):
        assert_equal_networks(eager, converted, image())
        assert converted.fastgan_report == [line.format("") for line in expected]
    back = fastgan.to_eager(converted)
    assert type(back) is nn.Sequential and not hasattr(back, "fastgan_report") and not hasattr(back, "impl")
    assert_equal_networks(eager, back, image())


def test_the_default_engine_of_a_cpu_is_native_where_it_was_compiled(monkeypatch):
    """Without measurements and without `impl`, the compiled kernels run, and the report names them."""
    ran: list[str] = []
    resolve = engines.resolve
    monkeypatch.setattr(engines, "resolve", lambda *given: (ran.append(resolve(*given)), resolve(*given))[1])
    network = fastgan.convert(nn.Sequential(*layers()).float())
    expectation = list(network.fastgan_report)
    network(image().float())
    expected = "reference" if extension.why_not(torch.device("cpu")) else "native"
    assert ran == [expected]
    report = network.fastgan_report
    assert (", to be fused (engine: native)" in expectation[0]) == (expected == "native")
    assert all(line.endswith(f"(engine: {expected})") for line in report) and len(report) == 3
    assert (": fused Conv2d + BatchNorm2d + LeakyReLU (" in report[0]) == (expected == "native")
    reference = fastgan.convert(nn.Sequential(*layers()).float(), impl="reference").fastgan_report
    assert all("to run as PyTorch operators (engine: reference)" in line for line in reference)


def test_attributes_used_in_sequence():
    eager, converted = both(ByAttributes())
    assert type(converted).__name__ == "ByAttributes" and isinstance(converted, ByAttributes)
    kinds = {"conv1": "Conv2d", "bn1": "BatchNorm2d", "ups.0": "ConvTranspose2d", "ups.1": "Conv2d",
             "norms.0": "BatchNorm2d", "norms.1": "BatchNorm2d", "last.0, last.1": "Conv2d + Tanh"}
    assert converted.fastgan_report == [f"{names}: {kind}, to run as PyTorch operators (engine: reference)"
                                        for names, kind in kinds.items()]
    assert type(converted.last) is fnn.Chain
    for training in (True, False, True):
        assert_equal_networks(eager.train(training), converted.train(training), image())
    assert sorted(converted.fastgan_report) == [
        f"{line} as PyTorch operators (engine: reference)" for line in (
            "conv1, bn1: Conv2d + BatchNorm2d + LeakyReLU", "last.0: Conv2d + Tanh",
            "ups.0, norms.0: ConvTranspose2d + BatchNorm2d + ReLU", "ups.1, norms.1: Conv2d + BatchNorm2d + ReLU")]
    back = fastgan.to_eager(converted)
    assert type(back) is ByAttributes and type(back.last) is nn.Sequential and "_fastgan" not in vars(back)
    assert_equal_networks(eager, back, image())


@pytest.mark.parametrize("alter", [
    lambda m: setattr(m, "slope", 0.7), lambda m: setattr(m, "bn1", nn.BatchNorm2d(5, eps=0.5).double()),
    lambda m: m.norms.__setitem__(1, nn.Identity()), lambda m: m.bn1.register_forward_hook(lambda m, x, y: y * 2),
    lambda m: m.eval(), lambda m: setattr(m.last, "0", nn.Conv2d(5, 2, 3, bias=False).double()),
], ids=["attribute", "child", "child-of-a-list", "hook", "evaluation", "child-of-a-child"])
def test_what_changes_after_the_first_call_counts(alter):
    eager, converted = both(ByAttributes())
    results(eager, image(), eager), results(converted, image(), converted)
    for model in (eager, converted):
        torch.manual_seed(4)
        alter(model)
    assert_equal_networks(eager, converted, image())


def test_the_given_model_stays_and_shares():
    model = ByAttributes()
    children, attributes = dict(model.named_modules()), set(model.__dict__)
    converted = fastgan.convert(model)
    assert dict(model.named_modules()) == children and set(model.__dict__) == attributes
    assert all(p is q for p, q in zip(model.parameters(), converted.parameters(), strict=True))
    assert converted.bn1 is model.bn1 and type(model.last) is nn.Sequential
    converted.double()
    assert all(b.dtype != torch.float32 for b in model.buffers())


def test_checkpoints_move_both_ways():
    eager, other = ByAttributes().double(), ByAttributes().double()
    nn.init.ones_(eager.conv1.weight)
    converted = fastgan.convert(other)
    converted.load_state_dict(eager.state_dict())
    assert_equal_networks(eager, converted, image())
    fresh = ByAttributes().double()
    fresh.load_state_dict(converted.state_dict())
    assert_equal_networks(fresh, converted, image())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [ByAttributes, lambda: nn.Sequential(*layers())], ids=["attributes", "sequential"])
def test_copies_of_converted_networks(make, clone):
    eager, converted = both(make())
    converted(image()), eager(image())
    twin = clone(converted)
    assert twin.fastgan_report == converted.fastgan_report
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert_equal_networks(eager, twin, image())


def test_converting_twice_and_reverting_twice():
    eager, converted = both(ByAttributes())
    again = fastgan.convert(converted)
    assert again.fastgan_report == converted.fastgan_report
    assert_equal_networks(eager, again, image())
    assert_equal_networks(eager, fastgan.to_eager(fastgan.to_eager(again)), image())


LEFT = {  # a change of tests.test_nn -> the report's line
    "hook-on-convolution": "3: not fused: it has hooks",
    "hook-on-norm": "1: not fused: it has hooks",
    "pre-hook": "4: not fused: it has hooks",
    "backward-hook": "3: not fused: it has hooks",
    "spectral-norm": "0: not fused: it has hooks",
    "parametrized-and-padding-same": "3: not fused: its padding is 'same'",
    "parametrized-norm": "1: not fused: it is a ParametrizedBatchNorm2d, not a BatchNorm2d",
    "dilation": "0: not fused: it has dilation (2, 2)",
    "reflect": "0: not fused: its padding_mode is 'reflect'",
    "same": "3: not fused: its padding is 'same'",
    "large-kernel": "3: not fused: its kernel of 9x9 is larger than 7",
    "subclass": "0: not fused: it is a Doubling, a subclass of Conv2d",
}


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_are_left(name):
    model = nn.Sequential(*layers()).double()
    CHANGES[name][0](model)
    eager, converted = both(model)
    assert LEFT[name] in converted.fastgan_report
    assert_equal_networks(eager, converted, image())


@pytest.mark.parametrize(("name", "line"), [
    ("weight-norm", "0, 1, 2: ParametrizedConv2d + BatchNorm2d + LeakyReLU as PyTorch operators (engine: reference)"),
    ("spectral-parametrization",
     "3, 4, 5: ParametrizedConv2d + BatchNorm2d + ReLU as PyTorch operators (engine: reference)")])
def test_parametrized_convolutions_are_fused(name, line):
    model = nn.Sequential(*layers()).double()
    CHANGES[name][0](model)
    eager, converted = both(model)
    assert_equal_networks(eager, converted, image())
    assert line in converted.fastgan_report
    assert_equal_networks(eager, fastgan.to_eager(converted), image())


@pytest.mark.parametrize(("model", "line"), [
    (nn.Sequential(nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6)), "0: not fused: it has 3 groups"),
    (nn.Sequential(nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6)),
     "1: not fused: no fusable convolution comes before it"),
    (nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6)),
     "1: not fused: it is a SyncBatchNorm, not a BatchNorm2d"),
    (nn.Conv2d(3, 6, 3), "the model: not fused: it is not in an nn.Sequential"),
    (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
     "1: not fused: it is a BatchNorm1d, not a BatchNorm2d"),
], ids=["groups", "norm-after-groups", "sync", "alone", "dense"])
def test_reasons(model, line):
    assert line in fastgan.convert(model).fastgan_report


class Listed(nn.Module):
    """Calls its sequences through `get`, from an attribute that is not a child."""

    def __init__(self, hold: Any, get: Any) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU())
        self.listed, self.get = hold(self), get

    def forward(self, x: Tensor) -> Tensor:
        for part in self.get(self):
            x = part(x)
        return x


@pytest.mark.parametrize(("hold", "get", "fused"), [
    (lambda m: [m.first, m.second], lambda m: m.listed, 2),
    (lambda m: {"a": (m.first,)}, lambda m: [*m.listed["a"], m.second], 2),
    (lambda m: m.second.forward, lambda m: [m.first, m.listed], 2),
    (lambda m: functools.partial(m.second), lambda m: [m.first, m.listed], 2),
    (lambda m: lambda x: m.second(x), lambda m: [m.first, m.listed], 2),
    (lambda m: lambda x, layers=m.second: layers(x), lambda m: [m.first, m.listed], 2),
    (lambda m: [m], lambda m: [m.listed[0].first, m.listed[0].second], 2),
    (lambda m: list(m.first), lambda m: [*m.listed, m.second], 1),
], ids=["list", "dict", "method", "partial", "closure", "default", "itself", "layers"])
def test_sequences_that_are_held_elsewhere(monkeypatch, hold, get, fused):
    """A converted network refers to its own modules, as the original does; the report lists the blocks that ran."""
    net, blocks, chain = fastgan.convert(Listed(hold, get).double()), [], ops.chain
    monkeypatch.setattr(ops, "chain", lambda x, run, impl: (blocks.extend(run), chain(x, run, impl))[1])
    assert not any(" as PyTorch operators" in line and "to run" not in line for line in net.fastgan_report)
    net(image())
    assert len(blocks) == sum("to run" not in line for line in net.fastgan_report) == fused


def test_shared_modules():
    shared = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU())
    eager, converted = both(nn.Sequential(shared, shared, nn.Conv2d(3, 2, 1)))
    assert converted[0] is converted[1]
    assert_equal_networks(eager, converted, image())
    assert converted[0][1].num_batches_tracked == 2


def test_compiles_as_a_full_graph():
    eager, converted = both(ByAttributes())
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    assert_same(results(eager, image(), eager), results(compiled, image(), converted))


def test_disabled(monkeypatch):
    """The environment variable also affects networks that were converted before."""
    before = [fastgan.convert(make().double()) for make in (ByAttributes, lambda: nn.Sequential(*layers()))]
    monkeypatch.setenv("FASTGAN_DISABLE", "1")
    monkeypatch.setattr(engines, "resolve", None)
    for network in (*before, fastgan.convert(ByAttributes().double())):
        assert network(image()).shape[0] == 6
    assert network.fastgan_report == ["FASTGAN_DISABLE=1: all layers run in eager PyTorch"]
    assert type(network) is ByAttributes


@pytest.mark.parametrize(("make", "shape", "blocks"), [
    (lambda: DCGANGenerator(7, 4, 3, 32), (5, 7), 4), (lambda: DCGANDiscriminator(4, 3, 32), (5, 3, 32, 32), 4),
    (OReillyGenerator, (5, 100), 4), (TFDiscriminator, (5, 1, 28, 28), 2),
], ids=["dcgan-generator", "dcgan-discriminator", "oreilly-generator", "tf-discriminator"])
def test_models_of_the_presets(make, shape, blocks):
    model = make().double()
    eager, converted = fastgan.to_eager(copy.deepcopy(model)), fastgan.convert(model)
    assert sum("(engine: " in line for line in converted.fastgan_report) == blocks
    assert not any(isinstance(module, fnn.Chain) for module in eager.modules())
    torch.manual_seed(6)
    x = torch.randn(shape, dtype=torch.float64)
    assert_same(results(eager, x, eager), results(converted, x, converted))
    assert list(eager.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(("model", "options", "error", "message"), [
    ("a string", {}, TypeError, r"model is 'a string' \(str\), expected an nn.Module"),
    (nn.Sequential(), {"impl": "cuda"}, FastganError, "impl 'cuda': expected 'auto', 'reference'"),
    (nn.DataParallel(nn.Sequential()), {}, FastganError, "DataParallel; expected the network inside"),
    (torch.compile(nn.Sequential()), {}, FastganError, "model is compiled; expected the network inside"),
])
def test_refusals(model: Any, options, error, message):
    with pytest.raises(error, match=message):
        fastgan.convert(model, **options)
