"""Weights from files of other programs: reading a state_dict without executing code, and loading it into a network."""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath

_WRAPPERS = {"module", "_orig_mod"}  # attributes in which DataParallel and torch.compile store a network
_EXPECTED = "expected what torch.save(netG.state_dict(), PATH) writes"


def read(path: StrPath) -> dict[str, Tensor]:
    """The state_dict in a file of safetensors or `torch.save`, on the CPU, with names as returned by `unwrapped`.

    Raises `FastganError` if the file is missing, damaged, or contains anything other than a dictionary of tensors. Code
    in the file is never executed.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return unwrapped(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files, or files of other programs, raise many types
        raise FastganError(f"cannot read weights from {path}: {load_error(error)}; {_EXPECTED}") from error
    if not isinstance(state, dict):
        raise FastganError(f"{path} is not a state_dict, but a {type(state).__name__}; {_EXPECTED}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FastganError(f"{path} is not a state_dict: its {name!r} is a {type(value).__name__}; {_EXPECTED}")
    return unwrapped(state)


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that DataParallel and torch.compile add to names of a network or a submodule.

    It is unchanged if two names would become equal.
    """
    names = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state}
    return {new: state[name] for new, name in names.items()} if len(names) == len(state) else dict(state)


def put(state: dict[str, Tensor], network: nn.Module, path: StrPath) -> None:
    """Load `state`, which was read from `path`, into `network`. A network on the meta device is moved to the CPU.

    Raises `FastganError`, which names the first entry that does not fit the network.
    """
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):  # PyTorch before 0.4.1 did not write it
            state.setdefault(name, torch.zeros((), dtype=tensor.dtype))
        if name not in state:
            raise FastganError(f"{path} has no {name}; expected {_size(tensor)}")
        if state[name].shape != tensor.shape:
            raise FastganError(f"{path}: {name} is {_size(state[name])}, expected {_size(tensor)}")
    for name in state:
        if name not in expected:
            raise FastganError(f"{path} contains an unexpected {name}; expected names up to {list(expected)[-1]}")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        network.to_empty(device="cpu")
    network.load_state_dict(state)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def load_error(error: Exception) -> str:
    """A short reason why `torch.load`, or `load_state_dict` with its result, failed."""
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it contains code ({code[1]}), which fastgan does not execute"
    if key := re.search(r'(Missing|Unexpected) key\(s\) in state_dict: "([^"]+)"', str(error)):
        return f"it has {'no ' * (key[1] == 'Missing')}{key[2]}"
    if size := re.search(r"size mismatch for ([^:]+)", str(error)):
        return f"its {size[1]} has another size"
    # PyTorch's message would recommend weights_only=False, or name an internal step of unpickling
    is_damaged = isinstance(error, (pickle.UnpicklingError, struct.error, LookupError, EOFError, ValueError))
    return "it is damaged or of another type" if is_damaged else first_line(error)
