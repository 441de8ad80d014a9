"""Convolutions of random shapes and strides, computed by each engine, against float64 in NCHW.

    make faults         or: python -m proofs.convolutions [--shapes 3000] [--seed 0] [--impl reference native ...]

Libraries have bugs that occur only with a few shapes: reads beyond a tensor, and writes beyond a workspace. So shapes
are drawn at random: both kinds of convolution, strides larger than a kernel, few channels, output_padding, both memory
formats, slices, and arbitrary strides for sides of 1. The result, its gradients and a second derivative are compared
with float64. Shapes run in separate processes with two threads, under glibc's heap checks if they are installed, with
new memory filled with large numbers. The exit code is 1 if a result is wrong or a process dies.

    eager        PyTorch's layers, without workarounds
    layer        the same layers in a `Chain`, which calls them unchanged
    reference    the reference engine, by autograd
    passes       the definition of each pass, with explicit gradients
    library      the native engine with the library's convolution
    native       the native engine with its default variants
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.errors import first_line
from fastgan.nn import Chain
from fastgan.ops import reference, torch_ops
from fastgan.ops.native import passes as native
from fastgan.ops.specs import BlockSpec, BlockTensors, ConvSpec

BATCH = 100  # shapes per process
PATIENCE = 300.0  # timeout of a process in seconds; it needs a few
GLIBC = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
# each new byte is 0x7e: 8e37 in float32
CHECKS = {"LD_PRELOAD": str(GLIBC), "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.perturb=129"}
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # maximum error, relative to the largest exact value


class Case(NamedTuple):
    """A convolution and the memory order of its tensors."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    transposed: bool
    dilation: int
    groups: int
    dtype: torch.dtype
    orders: tuple[str, ...]  # of x, weight and the result's gradient

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The result of eager PyTorch."""
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding, self.groups,
                                      self.dilation)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def plain(self) -> bool:
        """Whether engines support it."""
        return self.groups == self.dilation == 1


def _known(x: Sequence[int], weight: Sequence[int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0),
           output_padding: tuple[int, int] = (0, 0), transposed: bool = False, dilation: int = 1,
           dtype: torch.dtype = torch.float32, orders: tuple[str, ...] = ("NHWC",) * 3) -> Case:
    return Case(tuple(x), tuple(weight), stride, padding, output_padding, transposed, dilation, 1, dtype, orders)


# cases that fail in eager PyTorch 2.14; the last three need a processor with AMX
FOUND = (
    _known((3, 7, 12, 24), (3, 7, 1, 1), (3, 3)),
    _known((3, 7, 12, 24), (3, 7, 1, 1), (2, 2)),
    _known((3, 3, 4, 8), (3, 7, 1, 1), (3, 3), output_padding=(2, 2), transposed=True),
    _known((3, 8, 48, 66), (1, 8, 1, 1), (2, 3), dilation=2),
    _known((4, 1, 9, 4), (22, 1, 3, 3), (1, 3), orders=("NHWC", "NCHW", "NHWC")),
    _known((4, 1, 10, 3), (40, 1, 3, 3), (1, 3), (2, 1), orders=("NCHW", "NHWC", "NHWC")),
    _known((3, 9, 12, 1), (9, 1, 4, 5), (1, 3), (1, 1), (0, 2), True, orders=("NHWC", "NHWC", "NCHW")),
    _known((4, 18, 16, 4), (8, 18, 5, 5), (3, 4), (1, 1), dtype=torch.bfloat16, orders=("NCHW",) * 3),
    _known((4, 24, 1, 1), (1, 24, 3, 3), (2, 2), (1, 1), dtype=torch.bfloat16),
    _known((3, 32, 5, 3), (28, 32, 4, 3), (4, 4), (2, 2), dtype=torch.bfloat16),
)


def draw(seed: int, index: int) -> Case:
    """The case of that index: first those in `FOUND`, then random ones, whose results have at least one pixel."""
    if index < len(FOUND):
        return FOUND[index]
    chance = random.Random(f"{seed} {index}")
    pair = lambda low, high: (chance.randint(low, high), chance.randint(low, high))  # noqa: E731
    while True:
        transposed = chance.random() < 0.4
        kernel = (1, 1) if chance.random() < 0.3 else pair(1, 5)
        stride = pair(1, 4) if chance.random() < 0.5 else (chance.randint(1, 4),) * 2
        padding = (0, 0) if chance.random() < 0.5 else pair(0, 2)
        longer = (chance.randrange(stride[0]), chance.randrange(stride[1])) if transposed else (0, 0)
        groups = 2 if chance.random() < 0.1 else 1
        dilation = 2 if chance.random() < 0.1 else 1
        channels = [chance.choice((1, chance.randint(1, 8), chance.randint(1, 40))) * groups for _ in "io"]
        coarse = tuple(chance.choice((1, 2, chance.randint(1, 16))) for _ in "hw")
        sides = coarse if transposed else tuple(
            side * step if kernel == (1, 1) else (side - 1) * step + k - 2 * pad + chance.randrange(step)
            for side, step, k, pad in zip(coarse, stride, kernel, padding, strict=True))
        orders = tuple(chance.choice(("NCHW", "NHWC", "NHWC", "slice", "any")) for _ in range(3))
        case = Case((chance.randint(1, 4), channels[0], *sides),
                    (channels[not transposed], channels[transposed] // groups, *kernel), stride, padding, longer,
                    transposed, dilation, groups, torch.bfloat16 if chance.random() < 0.15 else torch.float32, orders)
        if min(*sides, *_size(case)) > 0:
            return case


def _size(case: Case) -> list[int]:
    reach = [case.dilation * (k - 1) + 1 for k in case.weight[2:]]
    sides = zip(case.x[2:], reach, case.stride, case.padding, case.output_padding, strict=True)
    return [(side - 1) * step - 2 * pad + k + extra if case.transposed else (side + 2 * pad - k) // step + 1
            for side, k, step, pad, extra in sides]


def laid_out(x: Tensor, order: str) -> Tensor:
    """x (N, C, H, W) with its memory in that order."""
    n, c, h, w = x.shape
    if order == "slice":
        return x.new_zeros((n, h, w + 1, c + 1)).permute(0, 3, 1, 2)[:, :c, :, 1:].copy_(x)
    strides = (c * h * w, h * w, w, 1) if order == "NCHW" else (c * h * w, 1, w * c, c)
    y = x.new_empty_strided(x.shape, strides).copy_(x)  # `contiguous` treats one channel as contiguous in any order
    return y.as_strided(x.shape, (strides[0], 7 if c == 1 else 1, *strides[2:])) if order == "any" else y


def by_autograd(function: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor,
                g: Tensor) -> list[Tensor]:
    """The result, its gradients, and gradients of the square of x's gradient."""
    inputs = [part.detach().requires_grad_() for part in (x, weight, bias, g)]
    y = function(*inputs[:3])
    gradients = torch.autograd.grad(y, inputs[:3], inputs[3], create_graph=True)
    second = torch.autograd.grad((gradients[0].double() / gradients[0].detach().double().square().sum()
                                  .sqrt().clamp(min=1e-30)).square().sum(), (inputs[1], inputs[3]))
    return [y, *gradients, *second]


def _eager(case: Case, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> list[Tensor]:
    return by_autograd(case, x, weight, bias, g)  # type: ignore[arg-type]


def _layer(case: Case, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> list[Tensor]:
    ci, co = case.x[1], len(bias)
    kind, more = (nn.ConvTranspose2d, (case.output_padding,)) if case.transposed else (nn.Conv2d, ())
    layer = kind(ci, co, case.weight[2:], case.stride, case.padding, *more, groups=case.groups, dilation=case.dilation)  # type: ignore
    layer.register_forward_hook(lambda *_: None)
    chain = Chain(layer)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(chain, {"0.weight": weight, "0.bias": bias}, (x,))

    return by_autograd(run, x, weight, bias, g)


def _spec(case: Case) -> ConvSpec:
    return ConvSpec(case.stride, case.padding, case.output_padding, case.transposed)


def _reference(case: Case, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> list[Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch_ops.conv_bn_act(x, BlockTensors(weight, bias), BlockSpec(_spec(case)))

    return by_autograd(run, x, weight, bias, g)


def _by_passes(engine: Any, case: Case, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor,
               **variant: str) -> list[Tensor]:
    conv = _spec(case)
    y, _ = engine.conv_forward(x, weight, bias, conv, 0, **variant)
    return [y, engine.dgrad(g, x, weight, conv, **variant), engine.wgrad(g, x, weight, conv, **variant)]


IMPLEMENTATIONS: dict[str, Callable[..., list[Tensor]]] = {
    "eager": _eager, "layer": _layer, "reference": _reference, "passes": partial(_by_passes, reference),
    "library": partial(_by_passes, native, variant="library"), "native": partial(_by_passes, native)}
NAMES = ("y", "gx", "gweight", "gbias", "gradient of a gradient: weight", "gradient of a gradient: gy")


def errors(case: Case, impl: str, seed: int) -> list[str]:
    """The errors in the results of one implementation."""
    generator = torch.Generator().manual_seed(seed)
    co = case.weight[1] * case.groups if case.transposed else case.weight[0]
    shapes = case.x, case.weight, (co,), (case.x[0], co, *_size(case))
    given = [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]
    exact = by_autograd(case, *(part.double() for part in given))  # type: ignore[arg-type]
    x, weight, bias, g = given
    x, weight, g = (laid_out(part, order) for part, order in zip((x, weight, g), case.orders, strict=True))
    try:
        results = IMPLEMENTATIONS[impl](case, x, weight, bias, g)
    except RuntimeError as error:
        return [f"raises {first_line(error)}"]
    found = []
    for name, got, right in zip(NAMES, results, exact, strict=False):
        if got.shape != right.shape:
            found.append(f"{name} has the shape {tuple(got.shape)}")
            continue
        scale = right.abs().max().item()
        off = (got.double() - right).abs().max().item()
        if not off <= ALLOWED[case.dtype] * scale:
            found.append(f"{name} is off by {off:.1e} of {scale:.1e}")
    return found


def work(impl: str, seed: int, first: int, last: int) -> None:
    """Run the cases first .. last - 1, with a line when each begins and one for each error."""
    torch.set_num_threads(2)
    for index in range(first, last):
        print(index, flush=True)
        case = draw(seed, index)
        if case.plain or impl in ("eager", "layer"):
            told = errors(case, impl, index)
            if told:
                print(index, ", ".join(told), flush=True)


def search(impl: str, seed: int, count: int) -> list[str]:
    """A line for each of `count` cases in which `impl` is wrong or its process dies."""
    found, first = [], 0
    while first < count:
        last = min(count, first - first % BATCH + BATCH)
        lines, code = _process([impl, str(seed), str(first), str(last)])
        wrong = {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines if " " in line}
        found += [f"{impl}, case {index}: WRONG: {told}: {draw(seed, index)}" for index, told in wrong.items()]
        if code:
            last = 1 + max((int(line.split(" ", 1)[0]) for line in lines), default=first)
            found.append(f"{impl}, case {last - 1}: DIED with {code}: {draw(seed, last - 1)}")
        first = last
    return found


def _process(arguments: Sequence[str]) -> tuple[list[str], int]:
    command = [sys.executable, "-m", "proofs.convolutions", "--work", *arguments]
    env = {**os.environ, **(CHECKS if GLIBC.exists() else {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        told, _ = process.communicate()
        timer.cancel()
    return told.splitlines(), process.returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.convolutions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=3000, help="cases of each implementation (3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (0)")
    parser.add_argument("--impl", nargs="+", choices=list(IMPLEMENTATIONS), default=list(IMPLEMENTATIONS)[1:],
                        help="implementations to check (default: all but eager)")
    parser.add_argument("--work", nargs=4, metavar=("IMPL", "SEED", "FIRST", "LAST"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work[0], *map(int, options.work[1:]))
        return 0
    found = []
    for impl in options.impl:
        told = search(impl, options.seed, options.shapes)
        print(*told, f"{impl}: {len(told)} faults in {options.shapes} cases of seed {options.seed}", sep="\n",
              flush=True)
        found += told
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
