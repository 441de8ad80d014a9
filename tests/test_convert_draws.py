"""Random modules, with code in many styles of forwards: three training steps in float64, converted and eager.
FASTGAN_DRAWS is the number of modules."""

from __future__ import annotations

import copy
import os
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastgan

DRAWS = int(os.environ.get("FASTGAN_DRAWS", "16"))

# (lines of __init__, lines of forward), all from (N, 4, H, W) to (N, 4, H, W). @: a unique number
PIECES = {
    "sequential": (["self.s@ = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(True))"],
                   ["x = self.s@(x)"]),
    "sequential iterated": (["self.s@ = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1))"],
                            ["for layer in self.s@:", "    x = layer(x)"]),
    "attributes": (["self.c@, self.n@ = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)"],
                   ["x = F.leaky_relu(self.n@(self.c@(x)), 0.2)"]),
    "transposed": (["self.c@, self.n@ = nn.ConvTranspose2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4, affine=False)"],
                   ["x = self.n@(self.c@(x)).tanh()"]),
    "module list": (["self.l@ = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)])",
                     "self.m@ = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3)])"],
                    ["for conv, norm in zip(self.l@, self.m@):", "    x = F.relu(norm(conv(x)), inplace=True)"]),
    "module dict": (["self.d@ = nn.ModuleDict({'c': nn.Conv2d(4, 4, 1), 'n': nn.BatchNorm2d(4)})"],
                    ["for key in ('c', 'n'):", "    x = self.d@[key](x)"]),
    "plain list": (["self.s@ = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())", "self.p@ = [self.s@]"],
                   ["x = self.p@[0](x)"]),
    "training": (["self.c@ = nn.Conv2d(4, 4, 1)"],
                 ["x = self.c@(x) if self.training else x", "if self.training:", "    x = F.relu(x)"]),
    "buffer read": (["self.c@ = nn.Conv2d(4, 4, 1)", "self.register_buffer('b@', torch.tensor(0.3))"],
                    ["x = F.relu(self.c@(x)) * self.b@"]),
    "item": (["self.c@ = nn.Conv2d(4, 4, 1)", "self.register_buffer('b@', torch.tensor(0.3))"],
             ["x = F.relu(self.c@(x)) * self.b@.item()"]),
    "buffer written": (["self.c@ = nn.Conv2d(4, 4, 1)", "self.register_buffer('b@', torch.tensor(1.0))"],
                       ["self.b@ *= 0.9", "x = self.c@(x) + self.b@"]),
    "buffer replaced": (["self.c@ = nn.Conv2d(4, 4, 1)", "self.register_buffer('b@', torch.tensor(1.0))"],
                        ["self.b@ = self.b@ * 0.9", "x = self.c@(x) * self.b@"]),
    "residual": (["self.c@, self.n@ = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)"],
                 ["h = self.n@(self.c@(x))", "h += x", "x = F.relu(h)"]),
    "two branches": (["self.c@, self.e@ = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)",
                      "self.n@, self.o@ = nn.BatchNorm2d(4), nn.BatchNorm2d(4)"],
                     ["a, b = self.c@(x), self.e@(x)", "a, b = self.n@(a), self.o@(b)", "x = F.relu(a) + F.relu(b)"]),
    "reused": (["self.s@ = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())"],
               ["x = self.s@(self.s@(x))"]),
    "norm reused": (["self.c@, self.e@, self.n@ = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                    ["a, b = self.c@(x), self.e@(x)", "b, a = self.n@(b), self.n@(a)", "x = F.relu(a) * F.relu(b)"]),
    "norm first": (["self.n@, self.c@ = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 1, 1)"],
                   ["x = self.c@(F.relu(self.n@(x)))"]),
    "statistics read": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                        ["h = self.n@(self.c@(x))", "m = self.n@.running_mean.mean()", "x = F.relu(h) + m"]),
    "features": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                 ["h = self.n@(self.c@(x))", "self.features = h", "x = F.relu_(h)"]),
    "features before": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                        ["self.features = self.c@(x)", "x = torch.relu(self.n@(self.features))"]),
    "in place": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = self.c@(x)", "x.relu_()", "x = x + 1", "x -= 0.5"]),
    "input overwritten": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                          ["x = x.clone()", "h = self.c@(x).detach()", "x.mul_(0.5)", "x = x + F.relu(self.n@(h))"]),
    "counter": (["self.c@, self.calls@ = nn.Conv2d(4, 4, 1), 0"],
                ["self.calls@ += 1", "x = self.c@(x) / (1 + self.calls@ % 2)"]),
    "class attribute": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["type(self).total += 1", "x = torch.tanh(self.c@(x))"]),
    "global": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = F.relu(self.c@(x)) / bump()"]),
    "class by two names": (["self.c@ = nn.Conv2d(4, 4, 1)"],
                           ["Drawn.total += 1", "type(self).total += 1", "x = torch.tanh(self.c@(x)) * Drawn.total"]),
    "list that grows": (["self.c@, self.seen@ = nn.Conv2d(4, 4, 1), []"],
                        ["x = self.c@(x)", "self.seen@.append(x.detach().mean())"]),
    "dropout": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = F.dropout(F.relu(self.c@(x)), 0.3, self.training)"]),
    "noise": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = self.c@(x) + 0.1 * torch.randn_like(x)"]),
    "random module": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = F.relu(self.c@(x)) * random.random()"]),
    "random branch": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["if random.random() < 0.5:", "    x = F.relu(self.c@(x))"]),
    "numpy": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = F.relu(self.c@(x)) * float(np.random.rand())"]),
    "closure": (["self.slope@, self.c@ = 0.2, nn.Conv2d(4, 4, 1)", "self.f@ = lambda t: F.leaky_relu(t, self.slope@)"],
                ["x = self.f@(self.c@(x))"]),
    "bound method": (["self.c@ = nn.Conv2d(4, 4, 1)", "self.g@ = self.scaled"], ["x = self.g@(self.c@(x))"]),
    "spectral norm": (["self.c@ = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))"],
                      ["x = F.relu(self.c@(x))"]),
    "scaled weight": (["self.c@ = nn.Conv2d(4, 4, 3, 1, 1)"],
                      ["x = F.leaky_relu(F.conv2d(x, self.c@.weight * 0.5, self.c@.bias, padding=1), 0.3)"]),
    "no_grad": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)"],
                ["with torch.no_grad():", "    h = F.relu(self.n@(self.c@(x)))", "x = x + h"]),
    "momentum None": (["self.c@, self.n@ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None)"],
                      ["x = F.relu(self.n@(self.c@(x)))"]),
    "padding": (["self.c@ = nn.Conv2d(4, 4, 3, padding='same', padding_mode='reflect')"], ["x = F.relu(self.c@(x))"]),
    "depthwise": (["self.c@, self.n@ = nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.BatchNorm2d(4)"],
                  ["x = F.relu6(self.n@(self.c@(x)))"]),
    "data decides": (["self.c@ = nn.Conv2d(4, 4, 1)"], ["x = self.c@(x)", "if x.mean() > 0:", "    x = F.relu(x)"]),
    "comprehension": (["self.l@ = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(2))"],
                      ["x = torch.cat([F.relu(layer(x)) for layer in self.l@], 1)"]),
}


CODE = """
COUNT = 0
def bump():
    global COUNT
    COUNT += 1
    return COUNT

class Drawn(nn.Module):
    total = 0
    def __init__(self):
        super().__init__()
        {init}
    def scaled(self, t):
        self.scaled_calls = True
        return t * 0.5
    def forward(self, x):
        {forward}
        return x.mean((1, 2, 3)) + x.flatten(1).square().sum(1)
"""


def draw(seed: int) -> tuple[str, type[nn.Module]]:
    """The code of a module, and the module's class."""
    rng = random.Random(seed)
    names = list(PIECES)
    chosen = [names[seed % len(names)], *rng.sample(names, rng.randint(1, 4))]
    rng.shuffle(chosen)
    init, forward = [], []
    for i, name in enumerate(chosen):
        init += [line.replace("@", str(i)) for line in PIECES[name][0]]
        forward += [line.replace("@", str(i)) for line in PIECES[name][1]]
    code = CODE.format(init="\n        ".join(init), forward="\n        ".join(forward))
    module = sys.modules[f"drawn{seed}"] = ModuleType(f"drawn{seed}")
    vars(module).update(torch=torch, nn=nn, F=nn.functional, random=random, np=np)
    exec(code, vars(module))
    return code, module.Drawn


def train(network: nn.Module, kind: type[Any]) -> dict[str, Any]:
    """All visible results of three steps, and of a call in evaluation."""
    kind.total = kind.forward.__globals__["COUNT"] = 0
    seen: dict[str, Any] = {}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for step in range(4):
        torch.manual_seed(step), random.seed(step), np.random.seed(step)
        network.train(step < 3)
        x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
        y = network(x)
        seen[f"y{step}"] = y.detach().clone()
        optimizer.zero_grad()
        y.sum().backward()
        seen[f"gx{step}"] = x.grad
        seen.update({f"grad {name} {step}": p.grad.clone() for name, p in network.named_parameters()
                     if p.grad is not None})
        optimizer.step()
        seen[f"random {step}"] = (torch.rand(1), random.random(), np.random.rand())
    seen.update({name: tensor.clone() for name, tensor in network.state_dict().items()})
    seen.update({key: value for key, value in vars(network).items() if isinstance(value, int) or key == "features"
                 or key.startswith("seen")}, total=kind.total,
                count=kind.forward.__globals__["COUNT"])
    return seen


@pytest.mark.parametrize("seed", range(DRAWS))
def test_drawn_module(seed, one_thread):
    torch.compiler.reset()
    code, kind = draw(seed)
    torch.manual_seed(seed)
    eager = kind().double()
    converted = fastgan.convert(copy.deepcopy(eager))
    expected, found = train(eager, kind), train(converted, kind)
    assert expected.keys() == found.keys(), code
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9,
                                   msg=lambda text, key=key: f"{key}: {text}\n{code}")
