"""The `torch.compile` backend "fastgan": convolution -> [batch normalization] -> [activation] as one operation.

Dynamo passes a graph of calls such as `torch.conv2d`, `F.batch_norm` and `F.relu` to the backend, and checks guards
before each later call. The backend replaces each such sequence by one call and returns the modified graph. The rest
runs in eager PyTorch, and autograd records all operations as usual.

A sequence is not fused further if an intermediate result has another user, including in-place operations, or if another
operation is between its calls, because it is not analyzed what that operation reads or writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._dynamo import register_backend
from torch.nn import functional as F

from fastgan import ops
from fastgan.nn.blocks import why_not_geometry
from fastgan.nn.chain import disabled, in_eager_format
from fastgan.ops import convolutions
from fastgan.ops.arguments import check_impl
from fastgan.ops.specs import Activation, BlockSpec, BlockTensors, ConvSpec, NormSpec


class Layers(NamedTuple):
    """The result for a convolution or batch normalization of a graph: parameters and buffers that identify its layers
    in the network, and the class names of the fused layers, or the reason why they were not fused."""

    tensors: list[Tensor]
    kinds: str
    reason: str


class Runs(threading.local):
    """The activity of the backend in this thread: calls of its graphs, and the layers of the graphs it compiled."""

    def __init__(self) -> None:
        self.count = 0
        self.compiled: list[Layers] = []


runs = Runs()


def fastgan(graph_module: fx.GraphModule, example_inputs: list[Any], *,
            options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """The backend: compile a graph from Dynamo. options: {"impl": engine}, as in `fastgan.ops`."""
    impl = (options or {}).get("impl", "auto")
    check_impl(impl)
    if not disabled():
        inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        runs.compiled += _fuse(graph_module.graph, impl, dict(zip(inputs, example_inputs, strict=True)))
        graph_module.recompile()

    def run(*args: Any) -> Any:
        runs.count += 1
        return graph_module.forward(*args)

    return run


if not entry_points(group="torch_dynamo_backends", name="fastgan"):  # fastgan runs from a clone that is not installed
    register_backend(fastgan)


class _Match(NamedTuple):
    """A block of a graph. Its tensors are nodes. counter: the node that updates num_batches_tracked, if there is one.
    """

    tensors: BlockTensors
    spec: BlockSpec
    last: fx.Node
    norm: fx.Node | None = None
    counter: fx.Node | None = None


def _fuse(graph: fx.Graph, impl: str, inputs: dict[fx.Node, Any]) -> list[Layers]:
    """Replace the blocks of a graph, and return the results for its convolutions and batch normalizations."""
    layers: list[Layers] = []
    matched: set[fx.Node | None] = set()
    for node in list(graph.nodes):
        if node.target in _CONVOLUTIONS:
            match = _match(node)
            if isinstance(match, str):
                layers.append(Layers(_tensors(node.all_input_nodes[1:], inputs), "", match))
                node.target = _GUARDED[node.target]
                continue
            matched.add(match.norm)
            layers.append(Layers(_tensors(match.tensors, inputs), _kinds(match.spec), ""))
            _replace(graph, node, match, impl)
        elif node.target is F.batch_norm and node not in matched:
            reason = "it does not follow a fusable convolution directly, as the only user of its result"
            layers.append(Layers(_tensors(node.all_input_nodes[1:], inputs), "", reason))
    return layers


def _kinds(spec: BlockSpec) -> str:
    names = ["ConvTranspose2d" if spec.conv.transposed else "Conv2d"]
    names += ["BatchNorm2d"] if spec.norm is not None else []
    names += [_NAMES[spec.activation.name]] if spec.activation.name != "none" else []
    return " + ".join(names)


_NAMES = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "tanh": "Tanh"}
_Options = Callable[..., tuple[Any, ...]]
_CONVOLUTIONS: dict[Any, _Options] = {
    torch.conv2d: lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1:
        (input, weight, bias, (stride, padding, 0), dilation, groups),
    torch.conv_transpose2d:
        lambda input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1:
        (input, weight, bias, (stride, padding, output_padding), dilation, groups),
}
_GUARDED = {torch.conv2d: convolutions.conv2d, torch.conv_transpose2d: convolutions.conv_transpose2d}
_relu: _Options = lambda input, inplace=False: (input, Activation("relu", inplace=inplace))  # noqa: E731
_relu_: _Options = lambda input: (input, Activation("relu", inplace=True))  # noqa: E731
_tanh: _Options = lambda input: (input, Activation("tanh"))  # noqa: E731
_ACTIVATIONS: dict[Any, _Options] = {
    F.relu: _relu, torch.relu: _relu, "relu": _relu, F.relu_: _relu_, "relu_": _relu_,
    F.leaky_relu: lambda input, negative_slope=0.01, inplace=False:
        (input, Activation("leaky_relu", negative_slope, inplace)),
    F.leaky_relu_: lambda input, negative_slope=0.01: (input, Activation("leaky_relu", negative_slope, True)),
    F.tanh: _tanh, torch.tanh: _tanh, "tanh": _tanh,
}


def _bind(options: _Options, node: fx.Node) -> tuple[Any, ...] | None:
    try:
        return options(*node.args, **node.kwargs)
    except TypeError:  # an argument that is not supported here, such as out
        return None


def _match(node: fx.Node) -> _Match | str:
    """The longest block that begins with the convolution `node`, or the reason why it is not fused."""
    match = _convolution(node)
    if isinstance(match, str):
        return match
    following = _only_user(node)
    if following is not None and following.target is F.batch_norm:
        normalized = _with_norm(match, following)
        if normalized is None:
            return match
        match, following = normalized, _only_user(following)
    if following is not None and following.target in _ACTIVATIONS:
        bound = _bind(_ACTIVATIONS[following.target], following)
        if bound is not None and bound[0] is match.last and _adjacent(match.last, following, None):
            match = match._replace(spec=match.spec._replace(activation=bound[1]), last=following)
    return match


def _convolution(node: fx.Node) -> _Match | str:
    bound = _bind(_CONVOLUTIONS[node.target], node)
    if bound is None or node.all_input_nodes[0] is not bound[0]:
        return "it is called with unusual arguments"
    x, weight, bias, sizes, dilation, groups = bound
    for value in (x, weight):
        tensor = value.meta.get("example_value") if isinstance(value, fx.Node) else None
        if not isinstance(tensor, Tensor) or tensor.dim() != 4 or not tensor.is_floating_point():
            return "its input or weight is not a floating-point tensor with 4 dimensions"
    geometry: Any = [(value, value) if isinstance(value, int) else value if isinstance(value, str) else tuple(value)
                     for value in (*sizes, dilation)]
    stride, padding, output_padding, dilation = geometry
    conv = ConvSpec(stride, padding, output_padding, node.target is torch.conv_transpose2d)
    reason = why_not_geometry(weight.meta["example_value"].shape[2:], stride, padding, dilation, groups)
    return reason or _Match(BlockTensors(weight, bias), BlockSpec(conv), node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _with_norm(match: _Match, node: fx.Node) -> _Match | None:
    """Extend the match of a convolution by the batch normalization `node`; None if that is not possible."""
    bound = _bind(_batch_norm_options, node)
    if bound is None or bound[0] is not match.last or not isinstance(bound[5], bool):
        return None
    _, gamma, beta, mean, var, training, momentum, eps = bound
    counter = node.prev if training and _counts(node.prev) else None
    if not _adjacent(match.last, node, counter):
        return None
    number: Any = None if counter is None else counter.all_input_nodes[0]
    tensors = BlockTensors(*match.tensors[:2], gamma, beta, mean, var, number)
    return _Match(tensors, match.spec._replace(norm=NormSpec(training, momentum, eps)), node, node, counter)


def _counts(node: fx.Node) -> bool:
    """Whether a node adds 1 to an integer buffer, as `nn.BatchNorm2d` does with num_batches_tracked."""
    if node.target != "add_" or node.args[1:] != (1,) or node.kwargs or node.users:
        return False
    counter = node.all_input_nodes[0]
    example = counter.meta.get("example_value")
    return counter.op == "placeholder" and example is not None and example.dtype == torch.int64 and example.dim() == 0


def _batch_norm_options(input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                        training: Any = False, momentum: Any = 0.1, eps: Any = 1e-5) -> tuple[Any, ...]:
    return input, weight, bias, running_mean, running_var, training, momentum, eps


def _adjacent(node: fx.Node, following: fx.Node, counter: fx.Node | None) -> bool:
    """Whether the first node can be computed together with the second, past the nodes between them."""
    # the result of a convolution has one user, so only operations that write to its input or weight matter
    harmless = (*_CONVOLUTIONS, *_GUARDED.values(), _run) if node.target in _CONVOLUTIONS else ()
    between = node.next
    while between is not following:
        if between is not counter and between.op not in ("placeholder", "get_attr") and between.target not in harmless:
            return False
        between = between.next
    return True


def _replace(graph: fx.Graph, node: fx.Node, match: _Match, impl: str) -> None:
    """Replace the nodes of a match by one call, merged with the call for the blocks before it."""
    spec = tuple(None if part is None else tuple(part) for part in match.spec)  # graphs do not support NamedTuples
    x, blocks, before = node.all_input_nodes[0], [(tuple(match.tensors), *spec)], None
    if x.target is _run and _only_user(x) is node and _adjacent(x, node, None):
        x, blocks, before = x.all_input_nodes[0], [*x.args[1], *blocks], x  # type: ignore[misc]
    with graph.inserting_after(match.last):
        call = graph.call_function(_run, (x, blocks, impl))
    call.meta = dict(match.last.meta)
    match.last.replace_all_uses_with(call)
    for old in dict.fromkeys((match.last, match.norm, node, match.counter, before)):
        if old is not None:
            graph.erase_node(old)


def _run(x: Tensor, blocks: list[tuple[Any, ...]], impl: str) -> Tensor:
    output = ops.chain(x, [(BlockTensors(*tensors), BlockSpec(ConvSpec(*conv), norm and NormSpec(*norm),
                                                              Activation(*activation)))
                           for tensors, conv, norm, activation in blocks], impl)
    return in_eager_format(output, x, [tensors[0] for tensors, *_ in blocks])


def _tensors(nodes: Iterable[Any], inputs: dict[fx.Node, Any]) -> list[Tensor]:
    """The graph inputs from which the nodes are computed, in the order of the nodes."""
    seen = dict[fx.Node, None]()
    rest = [node for node in nodes if isinstance(node, fx.Node)]
    while rest:
        node = rest.pop(0)
        if node not in seen:
            seen[node] = None
            rest[:0] = node.all_input_nodes
    return [inputs[node] for node in seen if isinstance(inputs.get(node), Tensor)]
