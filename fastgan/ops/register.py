"""Registration of operators in `torch.library`, as torch.ops.fastgan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_library = torch.library.Library("fastgan", "FRAGMENT")  # operators exist as long as it does


def register(schemas: Mapping[str, str], implementations: Mapping[str, Callable[..., Any]],
             fakes: Mapping[str, Callable[..., Any]]) -> None:
    """Define operators for all devices, by name. fakes: their implementations for tensors without data."""
    for name, schema in schemas.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, implementations[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastgan::{name}", fakes[name], lib=_library)
