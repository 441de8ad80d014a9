"""Converted networks in user code: attributes that forwards read and write, and modifications of networks."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan
import fastgan.nn as fnn
from fastgan.nn import compiled, dynamo
from tests.test_ops import assert_same, results

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 9, 8, dtype=torch.float64)


class Net(nn.Module):
    """conv -> norm -> leaky_relu as attributes, then a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5)
        self.last = nn.Sequential(nn.Conv2d(5, 2, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.leaky_relu(self.norm(self.conv(x)), 0.2))


def both(kind: type[nn.Module] = Net) -> tuple[Any, Any]:
    eager = kind().double()
    return eager, fastgan.convert(copy.deepcopy(eager))


def fused(network: Any) -> list[str]:
    return [line for line in network.fastgan_report if line.split(": ", 1)[1].startswith(("Conv", "fused"))
            and "to run" not in line and "to be fused" not in line]


class BoundForward(Net):
    """Chooses its forward in __init__."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.run

    def run(self, x: Tensor) -> Tensor:
        return F.dropout(self.last(F.relu(self.norm(self.conv(x)))), 0.5, self.training)


class ClosureOverItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.2
        self.act = lambda t: F.leaky_relu(t, self.slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.conv(x)))


class BufferRead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.alpha.item()


class BufferWritten(BufferRead):
    def forward(self, x: Tensor) -> Tensor:
        self.alpha *= 0.5
        return F.relu(self.norm(self.conv(x)))


class FeaturesInAttribute(Net):
    features: Any = None
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.features = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        return self.last(self.features)


class FeaturesByHook(Net):
    """A hook of a layer that is a method of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = output

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.features.mean()


class BySuper(Net):
    """A forward that calls super with arguments."""

    def forward(self, x: Tensor) -> Tensor:
        assert type(self) is BySuper
        return super(self.__class__, self).forward(x)


@pytest.mark.parametrize("kind", [Net, ClosureOverItself, BufferRead, BufferWritten, FeaturesInAttribute,
                                  FeaturesByHook, BySuper])
def test_forwards(kind):
    """Calls, with changes of the attributes that they read."""
    eager, converted = both(kind)
    for step in range(4):
        expected, found = eager(image()), converted(image())
        torch.testing.assert_close(found, expected)
        if hasattr(eager, "features"):
            torch.testing.assert_close(converted.features, eager.features)
            assert getattr(converted, "calls", 0) == getattr(eager, "calls", 0)
        for network in (eager, converted):
            network.train(step % 2 == 0)
            network.slope = step
            if kind is BufferRead:
                network.alpha.fill_(step)
    assert_same(eager.state_dict(), converted.state_dict())
    assert fused(converted)


def test_forward_chosen_in_init():
    eager, converted = both(BoundForward)
    converted.eval()
    assert torch.equal(converted(image()), converted(image()))
    torch.testing.assert_close(converted(image()), eager.eval()(image()))
    assert not converted.training and converted.forward.__self__ is converted


def test_the_given_network_is_neither_run_nor_changed():
    given = FeaturesInAttribute()
    before = dict(vars(given))
    children = dict(given.named_modules())
    converted = fastgan.convert(given)
    assert vars(given) == before and dict(given.named_modules()) == children and type(given) is FeaturesInAttribute
    converted(image().float())
    assert given.calls == 0 and given.features is None and converted.calls == 1
    pickle.dumps(given)


def test_modules_that_are_no_children_stay_themselves():
    """Modules in a list, whose parameters do not belong to the network."""
    given, other = Net(), fastgan.convert(Net())
    given.others, given.chain = [other], fnn.Chain(nn.Conv2d(2, 2, 1), impl="reference")
    converted = fastgan.convert(given, impl="native")
    assert converted.others[0] is other and "fastgan_report" in vars(other)
    assert converted.chain is not given.chain and (converted.chain.impl, given.chain.impl) == ("native", "reference")
    eager = fastgan.to_eager(converted)
    assert eager.others[0] is other and "fastgan_report" in vars(other) and not hasattr(eager.chain, "impl")


def test_parametrizations_are_not_computed():
    """Each read of the weight runs one iteration of a spectral norm."""
    given = Net()
    nn.utils.parametrizations.spectral_norm(given.conv)
    before = copy.deepcopy(given.state_dict())
    fastgan.to_eager(fastgan.convert(given))
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("wrap", [
    lambda net, x: torch.export.export(net.eval(), (x,)).module()(x),
    lambda net, x: torch.jit.trace(net.eval(), x)(x),
    lambda net, x: torch.jit.script(net.eval())(x),
    lambda net, x: torch.fx.symbolic_trace(net.eval())(x),
    lambda net, x: torch.compile(net.eval(), backend="aot_eager", fullgraph=True)(x),
    lambda net, x: torch.func.functional_call(net.eval(), dict(net.named_parameters()), (x,)),
    lambda net, x: torch.utils.checkpoint.checkpoint(net.eval(), x, use_reentrant=False),
    lambda net, x: torch.func.vmap(lambda one: net.eval()(one[None])[0])(x),
    lambda net, x: net.eval()._replicate_for_data_parallel()(x),
    lambda net, x: copy.deepcopy(net.eval())(x),
    lambda net, x: pickle.loads(pickle.dumps(net.eval()))(x),
    lambda net, x: net.eval().half().double()(x),
], ids=["export", "jit.trace", "jit.script", "fx", "torch.compile", "functional_call", "checkpoint", "vmap", "replica",
        "deepcopy", "pickle", "half"])
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.parametrize("kind", [Net, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())],
                         ids=["module", "sequential"])
def test_tools(kind, wrap, called):
    eager, converted = both(kind)
    x = image()
    if called:
        for network in (eager, converted):
            network.eval()(x)
    expected = eager.half().double().eval()(x) if "half" in wrap.__code__.co_names else eager.eval()(x)
    torch.testing.assert_close(wrap(converted, x), expected)


def test_export_to_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    _, converted = both()
    for dynamo_exporter in (True, False):
        torch.onnx.export(converted.eval().float(), (image().float(),), tmp_path / "net.onnx", dynamo=dynamo_exporter)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=["deepcopy", "pickle"])
def test_copies_stay_fused(clone):
    _, converted = both()
    converted(image())
    twin = clone(converted)
    count = dynamo.runs.count
    twin(image())
    assert dynamo.runs.count == count + 1 and type(twin) is type(converted)
    assert twin.fastgan_report == converted.fastgan_report and twin.fastgan_report is not converted.fastgan_report


def test_replica_runs_its_own_layers():
    _, converted = both()
    converted(image())
    replica = converted._replicate_for_data_parallel()
    for key, child in list(replica._modules.items()):
        replica._modules[key] = copy.deepcopy(child)
        for parameter in replica._modules[key].parameters():
            parameter.data.zero_()
    assert not replica(image()).any()


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_added_later_run(register):
    seen: list[Any] = []
    _, converted = both()
    converted(image())
    getattr(converted.conv, register)(lambda *given: seen.append(given) and None)
    for _ in range(2):
        converted(image()).sum().backward()
    assert len(seen) == 2


def test_global_hooks_see_every_layer():
    _, converted = both()
    converted(image())
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        converted(image())
    finally:
        handle.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "Conv2d", "Tanh", "Chain", "Net"]


class Blocks(nn.Module):
    """Many blocks of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(3 + i, 4 + i) for i in range(10))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm, self.calls = nn.Conv2d(channels, out, 3, 1, 1), nn.BatchNorm2d(out), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.norm(self.conv(x)))


def test_many_blocks_of_one_class():
    """All are fused, and a forward that counts its calls is not recompiled in each call."""
    eager, converted = both(Blocks)
    for _ in range(4):
        torch.testing.assert_close(converted(image()), eager(image()))
    assert len(fused(converted)) == 10 and converted.blocks[3].calls == 4
    count, compiled_before = dynamo.runs.count, torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(8):
        converted(image())
    assert dynamo.runs.count == count + 80
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= compiled_before + 10


def test_settings_of_dynamo_are_left_alone():
    before = {key: getattr(torch._dynamo.config, key) for key in compiled._SETTINGS}
    both()[1](image())
    assert {key: getattr(torch._dynamo.config, key) for key in compiled._SETTINGS} == before


def test_eager_calls_are_reported(caplog):
    _, converted = both()
    with caplog.at_level(logging.WARNING, "fastgan"), torch.compiler.set_stance("force_eager"):
        converted(image()), converted(image())
    text = "Net.forward ran eagerly in a call: torch.compile had no graph for it"
    assert [record.getMessage() for record in caplog.records] == [f"fastgan: the network: {text}"]
    assert f"the network: {text}" in converted.fastgan_report


def test_failures_of_dynamo_are_reported(caplog, monkeypatch):
    eager, converted = both()
    monkeypatch.setattr(dynamo, "_fuse", None)
    with caplog.at_level(logging.WARNING, "fastgan"):
        torch.testing.assert_close(converted(image()), eager(image()))
    assert "runs eagerly from now on, torch.compile failed: backend='fastgan' raised" in caplog.text
    assert_same(results(eager, image(), eager), results(converted, image(), converted))


class Raises(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            raise KeyError("two")
        return super().forward(x)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (4, 4, 9, 8), (1, 3, 2, 2)], ids=["raised", "channels", "one-value"])
def test_errors_are_those_of_eager(shape):
    eager, converted = both(Raises)
    errors = []
    for network in (eager, converted):
        with pytest.raises(Exception) as caught:
            network(torch.zeros(shape, dtype=torch.float64))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    torch.testing.assert_close(converted(image()), eager(image()))


def test_threads():
    eager, converted = both()
    x, found, kind = image(), [], type(converted)
    expected = eager.eval()(x)
    converted.eval()
    threads = [threading.Thread(target=lambda: [found.append(converted(x)) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and type(converted) is kind
    for one in found:
        torch.testing.assert_close(one, expected)


def test_distributed_data_parallel(tmp_path):
    eager, converted = both()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [nn.parallel.DistributedDataParallel(network) for network in (eager, converted)]
        for _ in range(3):
            outputs = [network(image()) for network in wrapped]
            torch.testing.assert_close(*outputs)
            for y in outputs:
                y.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(eager.parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert len(fused(converted)) == 2


def test_data_parallel_on_a_cpu_runs_the_network():
    eager, converted = both()
    torch.testing.assert_close(nn.DataParallel(converted)(image()), eager(image()))


def test_phases_of_training():
    """Frozen and trained, with and without gradients, in evaluation, at three batch sizes."""
    eager, converted = both()
    for size in (4, 2, 3):
        for training, grad, frozen in ((True, True, False), (True, True, True), (False, False, False)):
            x = image()[:size]
            outputs = []
            for network in (eager, converted):
                network.train(training).requires_grad_(not frozen)
                with torch.set_grad_enabled(grad):
                    outputs.append(network(x))
            torch.testing.assert_close(*outputs)
            assert outputs[0].requires_grad == outputs[1].requires_grad


def test_second_derivatives():
    eager, converted = both()
    penalties = []
    for network in (eager, converted):
        x = image().requires_grad_()
        slope, = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), network.conv.weight)[0])
    torch.testing.assert_close(*penalties)


def test_class_that_cannot_be_subclassed(caplog):
    class Final(Net):
        def __init_subclass__(cls, **options: Any) -> None:
            raise TypeError("Final is final")

    eager = Final().double()
    with caplog.at_level(logging.WARNING, "fastgan"):
        converted = fastgan.convert(copy.deepcopy(eager))
    assert "Final cannot be subclassed, so its forward is not fused: Final is final" in caplog.text
    torch.testing.assert_close(converted(image()), eager(image()))
    assert type(converted.last) is fnn.Chain


class Named(nn.Sequential):
    pass


def test_subclass_of_sequential_is_a_chain():
    eager, converted = both(lambda: Named(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert isinstance(converted, Named) and isinstance(converted, fnn.Chain) and type(converted).__name__ == "Named"
    assert_same(results(eager, image(), eager), results(converted, image(), converted))
    assert type(fastgan.to_eager(converted)) is Named and type(copy.deepcopy(converted)) is type(converted)
    with fnn.stat_groups(converted, 2):
        torch.testing.assert_close(converted(image()), torch.cat([eager(part) for part in image().chunk(2)]))


def test_backend_by_name():
    eager = Net().double()
    ours = copy.deepcopy(eager)
    function = torch.compile(ours, backend="fastgan", options={"impl": "reference"})
    count = dynamo.runs.count
    assert_same(results(eager, image(), eager), results(function, image(), ours))
    assert dynamo.runs.count == count + 1


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_engine_of_the_network(impl, monkeypatch):
    from fastgan.ops import engines

    ran: list[str] = []
    resolve = engines.resolve
    monkeypatch.setattr(engines, "resolve", lambda name, x: (ran.append(name), resolve(name, x))[1])
    network = fnn.use(fastgan.convert(Net()), impl)
    network(image().float())
    assert ran and set(ran) == {impl}
