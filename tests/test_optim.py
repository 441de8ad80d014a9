"""Both Adams compared with their formulas and with PyTorch's, with found_inf, on fixed tensors; the moving average."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastgan.config import TrainConfig
from fastgan.train.ema import EMA
from fastgan.train.optim import DeviceAdam, make_adam

STEPS = 50


def gradient_at(step: int) -> Tensor:
    """A gradient with sizes from 1e-9 to 10, so that epsilon matters for some elements."""
    torch.manual_seed(step)
    return torch.randn(3, 5, dtype=torch.float64) * torch.logspace(-9, 1, 15, dtype=torch.float64).view(3, 5)


def run(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    for step in range(STEPS):
        parameter.grad = gradient_at(step)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("beta1", "eps"), [(0.5, 1e-8), (0.9, 1e-3)])
def test_epsilon_hat_formula(beta1, eps):
    ours = nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
    theirs, m, v = torch.ones(3, 5, dtype=torch.float64), 0.0, 0.0
    for t in range(1, STEPS + 1):
        g = gradient_at(t - 1)
        m = beta1 * m + (1 - beta1) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        theirs = theirs - 0.01 * math.sqrt(1 - 0.999**t) / (1 - beta1**t) * m / (v.sqrt() + eps)
    run(DeviceAdam([ours], 0.01, (beta1, 0.999), eps, hat=True), ours)
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hat", [True, False], ids=["hat", "plain"])
@pytest.mark.parametrize(("betas", "eps"), [((0.5, 0.999), 1e-8), ((0.0, 0.99), 1e-3)])
def test_fused_equals_the_definition(betas, eps, hat):
    results = []
    for fused in (True, False):
        parameter = nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
        results.append(run(DeviceAdam([parameter], 0.01, betas, eps, hat=hat, fused=fused), parameter))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_plain_is_pytorchs():
    ours, theirs = (nn.Parameter(torch.ones(3, 5, dtype=torch.float64)) for _ in range(2))
    run(DeviceAdam([ours], 0.01, (0.5, 0.999), 1e-3), ours)
    run(torch.optim.Adam([theirs], 0.01, (0.5, 0.999), 1e-3), theirs)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hat", [True, False], ids=["hat", "plain"])
def test_learning_rate_on_the_device(hat):
    """An update uses the current value of the tensor."""
    parameter = nn.Parameter(torch.ones(3, 5))
    adam = DeviceAdam([parameter], 0.01, (0.5, 0.999), 1e-8, hat=hat)
    parameter.grad = torch.ones(3, 5)
    adam.rate.zero_()
    adam.step()
    assert torch.equal(parameter.detach(), torch.ones(3, 5))
    adam.rate.fill_(0.25)
    adam.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 5), 0.75))


@pytest.mark.parametrize("hat", [True, False], ids=["hat", "plain"])
def test_no_tensor_is_ever_replaced(hat):
    left, right = (nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    trained, fresh = (DeviceAdam([p], 0.01, (0.5, 0.999), 1e-8, hat=hat) for p in (left, right))
    before = [tensor.data_ptr() for tensor in fresh.tensors()]
    for step in range(4):
        left.grad = gradient_at(step).float()
        trained.step()
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    right.data.copy_(left.data)
    for parameter, adam in ((left, trained), (right, fresh)):
        parameter.grad = gradient_at(5).float()
        adam.step()
    assert torch.equal(left, right)
    assert [tensor.data_ptr() for tensor in fresh.tensors()] == before
    with pytest.raises(ValueError, match="state of 0 parameters, expected 1"):
        fresh.load_state_dict({**trained.state_dict(), "state": {}})


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "definition"])
def test_parameters_without_a_gradient_are_pytorchs(fused):
    """They are neither updated nor counted: each parameter's bias correction begins with its first gradient."""
    pairs = [[nn.Parameter(torch.ones(3, 5, dtype=torch.float64)) for _ in range(3)] for _ in range(2)]
    adams = DeviceAdam(pairs[0], 0.01, (0.5, 0.999), 1e-3, fused=fused), torch.optim.Adam(
        pairs[1], 0.01, (0.5, 0.999), 1e-3)
    for step, used in enumerate([(0, 1), (0, 1), (1, 2), (0,), (0, 1, 2)]):
        for params, adam in zip(pairs, adams, strict=True):
            for i, parameter in enumerate(params):
                parameter.grad = gradient_at(step) if i in used else None
            adam.step()
    torch.testing.assert_close(*([p.detach() for p in params] for params in pairs), rtol=1e-12, atol=1e-14)
    assert adams[0].updates.tolist() == [adams[1].state[p]["step"].item() for p in pairs[1]] == [4, 4, 2]


def test_a_frozen_parameter_has_no_moments_until_it_trains():
    params = [nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))]
    adam = DeviceAdam(params, 0.01, (0.5, 0.999), 1e-8)
    frozen = adam.tensors()
    assert adam.state.keys() == {params[1]}
    params[0].requires_grad_()
    assert len(adam.tensors()) == len(frozen) + 2 and adam.state.keys() == set(params)


@pytest.mark.parametrize("hat", [True, False], ids=["hat", "plain"])
def test_state_of_an_older_version(hat):
    """It has the parameters that require gradients, and one count for all."""
    made = []
    for older in (False, True):
        params = [nn.Parameter(torch.ones(3, 5), requires_grad=i > 0) for i in range(3)]
        first, then = (DeviceAdam(params, 0.01, (0.5, 0.999), 1e-8, hat=hat) for _ in range(2))
        for step in range(3):
            params[1].grad = params[2].grad = gradient_at(step).float()
            first.step()
        state = copy.deepcopy(first.state_dict())
        if older:
            state["state"] = {key - 1: moments for key, moments in state["state"].items()}
            state["param_groups"][0]["params"] = [0, 1]
            state["updates"] = torch.tensor(3.0)
        then.load_state_dict(state)
        params[1].grad = params[2].grad = gradient_at(4).float()
        then.step()
        made.append([*params, then.updates])
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
    with pytest.raises(ValueError, match="state of 1 parameters, expected 2"):
        then.load_state_dict({**state, "param_groups": [{"params": [0]}]})


def test_the_two_adams_agree_where_epsilon_is_negligible_and_only_there():
    results = {}
    for eps in (1e-30, 1e-3):
        for eps_hat in (True, False):
            parameter = nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
            config = TrainConfig(adam_eps=eps, adam_eps_hat=eps_hat)
            results[eps, eps_hat] = run(make_adam([parameter], 0.01, config), parameter)
    torch.testing.assert_close(results[1e-30, True], results[1e-30, False], rtol=1e-12, atol=1e-14)
    assert (results[1e-3, True] - results[1e-3, False]).abs().max() > 1e-3


@pytest.mark.parametrize("eps_hat", [True, False])
def test_found_inf_skips_everything_and_the_next_step_goes_on(eps_hat):
    """A skipped step in the middle changes nothing, including the step count."""
    config = TrainConfig(adam_eps_hat=eps_hat)
    left, right = (nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    with_fault, without = (make_adam([p], 0.01, config) for p in (left, right))
    for step in range(6):
        with_fault.found_inf = torch.tensor(float(step == 3))
        left.grad = torch.full((3, 5), math.nan) if step == 3 else gradient_at(step).float()
        with_fault.step()
        if step != 3:
            right.grad = gradient_at(step).float()
            without.step()
    assert torch.equal(left, right)
    for key, value in without.state[right].items():
        assert torch.equal(with_fault.state[left][key], value), key


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "one by one"])
@pytest.mark.parametrize("decay", [0.999, 0.5])
def test_moving_average(decay, foreach):
    """a += (1 - d)(p - a), d = min(decay, (1 + t) / (10 + t)); running statistics are the network's."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    ema = EMA(network, decay, foreach=foreach)
    expected = [p.detach().clone() for p in network.parameters()]
    assert not any(p.requires_grad for p in ema.module.parameters())
    for t in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(5, 3, dtype=torch.float64))
        ema.update(torch.zeros(()))
        d = min(decay, (1 + t) / (10 + t))
        expected = [d * a + (1 - d) * p.detach() for a, p in zip(expected, network.parameters(), strict=True)]
    # the decay is stored in float32
    torch.testing.assert_close(list(ema.module.parameters()), [nn.Parameter(e) for e in expected], rtol=0, atol=1e-6)
    for mine, theirs in zip(ema.module.buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert ema.updates == 12


def test_moving_average_does_not_move_where_skipped():
    network = nn.Linear(3, 2)
    ema = EMA(network, 0.9)
    before = copy.deepcopy(ema.module.state_dict())
    nn.init.ones_(network.weight)
    ema.update(torch.ones(()))
    assert ema.updates == 0
    assert all(torch.equal(before[key], value) for key, value in ema.module.state_dict().items())
