"""Every preset trains with the kernel engines, Triton's interpreted, as with the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgan import presets
from fastgan.config import parse_size
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops.native import extension
from fastgan.ops.triton import launch
from fastgan.presets import PRESETS
from fastgan.train.step import GANStep

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"ngf": 4, "ndf": 4, "nz": 8}
# those of fixed size have it
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"image_size": "16"}, "mxnet-dcgan-mnist": {"image_size": "16"}, "dcgan-64": {"image_size": "16x32"},
    "d2l-dcgan-pokemon": {"image_size": "16"}, "dcgan-32": {"image_size": "16"}, "dcgan-128": {"image_size": "32"},
    "own-images": {"image_size": "16"},
}
SHAPES = {"oreilly-gan-mnist": (1, 28, 28), "tf-dcgan-mnist": (1, 28, 28), "d2l-gan-gaussian": (2,)}
# Adam turns a gradient that is only rounding into an update of lr. The error in float32 depends on the number of such
# gradients, so the root mean square error of kernels may be this many times that of the reference
FACTOR, FLOOR = 3.0, 1e-6


def trained(name: str, impl: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], int]:
    """Parameters and buffers after a step, or two of small networks, and the number of launches."""
    config = presets.get(name, **({**NARROW, **SMALL[name]} if name in SMALL else {}))
    shape = SHAPES.get(name, (config.data.channels or 1, *parse_size(config.data.image_size)))
    torch.manual_seed(0)
    networks = [use(network, impl).to(dtype) for network in build(config.model, shape)]
    step = GANStep(*networks, config.model, config.train)
    count = 0

    def counted(kernel: Any, grid: Any, arguments: dict[str, Any], options: dict[str, int]) -> None:
        nonlocal count
        count += 1
        kernel[grid](**arguments)

    def compiled(device: torch.device) -> Any:
        nonlocal count
        count += 1
        return of(device)

    of = extension.of
    with launch.through(counted, arch=0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "of", compiled)
        for i in range(2 if name in SMALL else 1):
            torch.manual_seed(i)
            z, real = torch.randn(4, step.noise.nz), torch.rand(4, *shape) * 2 - 1
            step.draw = lambda real, z=z: z.to(real)
            assert all(torch.isfinite(value) for value in step(real.to(dtype)).values())
    return {f"{i}.{key}": value for i, network in enumerate(networks)
            for key, value in network.state_dict().items()}, count


@pytest.mark.parametrize("impl", ["triton", "native"])
@pytest.mark.parametrize("name", PRESETS)
def test_steps(name, impl):
    exact, none = trained(name, "reference", torch.float64)
    reference, _ = trained(name, "reference", torch.float32)
    kernels, some = trained(name, impl, torch.float32)
    assert none == 0 and (some > 20) == (name != "d2l-gan-gaussian")
    for key, value in exact.items():
        error, allowed = ((other[key] - value).double().square().mean().sqrt() for other in (kernels, reference))
        assert error <= FACTOR * allowed + FLOOR, f"{key}: {error} from float64, the reference {allowed}"
