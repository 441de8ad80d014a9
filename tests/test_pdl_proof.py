"""Programmatic dependent launch: when it is used, and that every kernel waits before it accesses memory."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan import ops
from fastgan.ops.triton import launch
from proofs import pdl

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
PTX = "ld.param.b64 %rd1, [k_param_0];\n{}\ngriddepcontrol.wait;\n{}\nld.global.b32 %r1, [%rd1];\n$L__BB0_2:\nret;"


@pytest.mark.parametrize(("before", "after", "found"), [
    ("", "", ""),
    ("ld.shared.b32 %r2, [global_smem];", "", ""),
    ("@%p1 bra $L__BB0_1;\ntcgen05.alloc;\n$L__BB0_1:", "", ""),
    ("@%p1 bra $L__BB0_2;", "", "a branch to $L__BB0_2, around the wait"),
    ("@%p1 ld.global.b32 %r2, [%rd1];", "", "@%p1 ld.global.b32 %r2, [%rd1]; before the wait"),
    ("cp.async.cg.shared.global [%r3], [%rd1], 16;", "",
     "cp.async.cg.shared.global [%r3], [%rd1], 16; before the wait"),
])
def test_finds_what_precedes_the_wait(before, after, found):
    assert pdl.early(PTX.format(before, after), *pdl.PTX) == found


def test_finds_a_kernel_without_a_wait():
    assert pdl.early("LDG.E R2, [R4];", *pdl.SASS) == "it does not wait"
    assert pdl.early("LDC R1, c[0x0][0x28];\nACQBULK ;\nLDG.E R2, [R4];", *pdl.SASS) == ""


@pytest.mark.parametrize("path", sorted((ROOT / "fastgan" / "ops" / "triton").glob("*.py")), ids=lambda path: path.stem)
def test_kernels_begin_with_it(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") and node.name != "product_kernel":
            assert ast.unparse(node.body[1]) == "begin(PDL)", node.name


@pytest.mark.parametrize(("on", "arch", "expected"), [(True, 90, True), (True, 89, False), (False, 90, False)])
def test_is_asked_for_where_a_device_has_it(on, arch, expected):
    seen: list[tuple[Any, Any]] = []
    with launch.dependent_launch(on), launch.through(lambda kernel, grid, arguments, options: seen.append(
            (arguments["PDL"], options.get("launch_pdl", False))), arch):
        ops.conv_bn_act(torch.ones(2, 3, 8, 8), torch.ones(8, 3, 4, 4), impl="triton")
    assert set(seen) == {(expected, expected)}


def test_compiled_kernels_wait_first():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "proofs.pdl"], cwd=ROOT, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("waits first") >= 14
