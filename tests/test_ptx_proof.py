"""The proof in the PTX simulator: rewriting, counting and judging, and that it can fail."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import launches
from fastgan.ops import numerics
from fastgan.verify import kinks
from proofs.ptx import batch, gan_loss, operations, rule, simulator, traffic

KERNEL = """.visible .entry k(
\t.param .u64 k_param_0
)
{
\t.reg .pred \t%p<9>;
\t.reg .b32 \t%r<9>;
\tsetp.gt.bf16x2 %p1|%p2, %r3, %r4;
\t@%p1 setp.neu.f16x2 %p5|%p6, %r7, %r8;
\tsetp.gt.bf16 %p3, %rs1, %rs2;
}
"""


def test_packed_comparisons_become_scalar_ones():
    lines = simulator.lowered(KERNEL).splitlines()
    assert lines[4] == ("\t.reg .b16 %half_left_low, %half_left_high, %half_right_low, %half_right_high;")
    assert lines[7].split("; ") == ["\tmov.b32 {%half_left_low, %half_left_high}, %r3",
                                    " mov.b32 {%half_right_low, %half_right_high}, %r4",
                                    " setp.gt.bf16 %p1, %half_left_low, %half_right_low",
                                    " setp.gt.bf16 %p2, %half_left_high, %half_right_high;"]
    assert lines[8].count("@%p1 ") == 4 and "@%p1 setp.neu.f16 %p6, %half_left_high, %half_right_high;" in lines[8]
    assert lines[9] == "\tsetp.gt.bf16 %p3, %rs1, %rs2;"


def test_tables_of_branches_become_branches():
    table = "\t$L_brx_0: .branchtargets\n\t\t$L__BB0_2,\n\t\t$L__BB0_3;\n\tbrx.idx \t%r11, $L_brx_0;\n$L__BB0_2:\n"
    lines = [line for line in simulator.lowered(f".reg .b32 %r<9>;\n{table}").splitlines() if line]
    assert lines == ["\t.reg .pred %is_entry;", ".reg .b32 %r<9>;",
                     "\tsetp.eq.u32 %is_entry, %r11, 0; @%is_entry bra $L__BB0_2; bra $L__BB0_3;", "$L__BB0_2:"]


@pytest.mark.parametrize("line", ["setp.gt.and.bf16x2 %p1|%p2, %r3, %r4, %p5;", "setp.gt.bf16x2 %p1, %r3, %r4;"])
def test_other_forms_are_left_for_the_simulator_to_refuse(line):
    text = f".reg .b32 %r<9>;\n\t{line}\n"
    assert simulator.lowered(text) == text


def test_rule_can_fail():
    torch.manual_seed(0)
    exact = torch.randn(1000, dtype=torch.float64)
    eager = exact + 1e-3 * torch.randn(1000, dtype=torch.float64)
    assert numerics.used(eager, eager, exact, 0) < 1
    off = exact + 2 * (eager - exact)
    assert numerics.used(off, eager, exact, 0) > 1
    assert numerics.used(off, eager, exact, 2**-8) < 1
    one_wrong = eager.clone()
    one_wrong[7] += 0.02  # the rms hardly changes
    assert numerics.used(one_wrong, eager, exact, 0) > 1
    assert numerics.used(one_wrong, eager, exact, 0, kinks=[one_wrong]) < 1
    assert numerics.used(eager.clone().fill_(math.nan), eager, exact, 1) == math.inf
    zero = torch.zeros(1000, dtype=torch.float64)
    assert numerics.used(zero, zero, zero, 1) == 0
    assert numerics.used(zero + 1e-6, zero, zero, 1) == math.inf
    assert numerics.used(zero + 1e-6, zero, zero, 1, cancelled=2e-6) == pytest.approx(0.5)


def test_few_elements_are_given_more():
    exact, off = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert numerics.used(3 * off, off, exact, 0) == pytest.approx(3 / 1.5 / 2.5)


def test_moved_kinks_move_gradients_and_no_values():
    network = torch.nn.Sequential(torch.nn.LeakyReLU(0.2), torch.nn.ReLU())
    z = torch.tensor([-1.0, -1e-3, 0.5e-3, 2.0], dtype=torch.float64, requires_grad=True)
    slopes = {shift: torch.autograd.grad(kinks.kinked(network[:1], shift)(z).sum(), z)[0] for shift in (-0.01, 0, 0.01)}
    assert slopes[0].tolist() == [0.2, 0.2, 1, 1]
    assert slopes[-0.01].tolist() == [0.2, 1, 1, 1] and slopes[0.01].tolist() == [0.2, 0.2, 0.2, 1]
    torch.testing.assert_close(kinks.kinked(network, 0.01)(z), network(z))


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(3, 5, 3, 2, 1), torch.nn.ConvTranspose2d(3, 5, 3, 2, 1, 1)],
                         ids=["conv", "transpose"])
def test_eager_tf32(layer):
    """Gradients of layers whose factors are exact in tf32 are exact; others are off by about 2^-11."""
    x = torch.randn(2, 3, 7, 5, requires_grad=True)

    def grads(precision):
        with rule.eagerly(precision):
            y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])]

    for exact, off in zip(grads(numerics.PRECISIONS["fp32"]), grads(numerics.PRECISIONS["tf32"]), strict=True):
        assert 1e-5 < (exact - off).norm() / exact.norm() < 2**-9
    assert torch.equal(rule.cut(torch.tensor([1 + 2**-10, 1 + 2**-11, -1 - 2**-11])), torch.tensor([1 + 2**-10, 1, -1]))


CONVOLUTION = {"x": torch.zeros(6, 8, 8, 3), "weight": torch.zeros(5, 4, 4, 3), "y": torch.zeros(6, 4, 4, 5),
               "mask": None, "statistics": None, "bias": None, "CI": 3, "CO": 5, "KH": 4,
               "KW": 4, "TRANSPOSED": False, "ACTIVATION": "relu"}


def test_operations_and_bytes_of_a_layer():
    flops = 2 * 6 * 4 * 4 * 5 * 3 * 4 * 4
    assert launches.flops("convolve_kernel", CONVOLUTION) == flops
    assert launches.flops("convolve_kernel", {**CONVOLUTION, "TRANSPOSED": True}) == 4 * flops
    given = {"coarse": torch.zeros(6, 4, 4, 5), "CO": 5, "CI": 3, "KH": 4, "KW": 4}
    assert launches.flops("wgrad_kernel", given) == flops
    assert launches.flops("bn_act_forward_kernel", {"y": torch.zeros(6)}) == 0
    read, written = 4 * (6 * 8 * 8 * 3 + 5 * 4 * 4 * 3), 4 * (6 * 4 * 4 * 5)
    assert launches.moved("convolve_kernel", CONVOLUTION) == (read, written)
    parts = {"partials": torch.zeros(3, 2, 5), "blocks": torch.zeros(3, 1, 5), "result": torch.zeros(2, 1, 5),
             "statistics": (), "tickets": torch.zeros(9)}
    measured = launches.moved("convolve_kernel", {**CONVOLUTION, **parts})  # it reads y and the parts again
    assert measured == (read + written + 4 * (30 + 15), written + 4 * (30 + 15 + 10))
    norm = {"y": torch.zeros(6), "running_mean": torch.zeros(1), "stats": torch.zeros(2), "a": torch.zeros(6)}
    assert launches.moved("bn_act_forward_kernel", {**norm, "statistics": torch.zeros(2)}) == (24 + 8 + 4, 24 + 8 + 4)
    assert launches.moved("bn_act_forward_kernel", {**norm, "statistics": None}) == (24 + 4, 24 + 8)
    loss = {"logits": torch.zeros(6), "gradient": torch.zeros(6), "loss": torch.zeros(2), "ones": (1.0, 0.0),
            "KIND": 1}
    assert launches.moved("gan_loss_kernel", loss) == (24, 32)
    assert launches.layer("gan_loss_kernel", loss) == "hinge, 2 parts"


def test_gates():
    right = traffic.Row(0, "convolve", "3->5", "64x64x64", 1.0, 1.0, 1.0, 9.0, 0.2, 3.0, 2.0, 1.0, 20.0)
    assert not list(traffic.excess(right))
    for key, value in [("mma_flops", 1.35), ("mma_flops", 0.9), ("load", 1.04), ("load", 0.96),
                       ("store", 1.04)]:
        assert len(list(traffic.excess(right._replace(**{key: value})))) == 1
    assert not list(traffic.excess(right._replace(load=1.2, read=0.01)))


def test_every_shipped_tile_is_tried_in_every_way():
    tried = {(run.arch, run.precision, one["kernel"], *one["tile"], one["warps"], one["stages"])
             for run in operations.runs(quick=False) for one in run.rules}
    expected = {(arch, precision, one["kernel"], *one["tile"], warps, stages)
                for one in operations.shipped() for arch in (80, 90)
                for precision, kind in numerics.PRECISIONS.items() for warps in (2, 4, 8) for stages in (1, 2, 3, 4)
                if one.get("bytes", kind.dtype.itemsize) == kind.dtype.itemsize
                and not (one["kernel"].endswith("tma") and (arch == 80 or warps == 2 or precision == "fp32"))}
    assert tried == expected


def test_without_a_simulator_nothing_is_claimed(tmp_path):
    root = Path(__file__).parent.parent
    compiling = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "proofs.ptx", "--ptxsim", str(tmp_path), "--quick"], cwd=root,
                          env=compiling, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no PTX simulator (ptxsim) at {tmp_path}: nothing was executed\n"


def test_the_loss_is_tried_in_every_way():
    tried = {(run.arch, run.precision, run.warps) for run in gan_loss.runs(quick=False)}
    assert tried == {(arch, precision, warps) for arch in (80, 90) for precision in ("bf16", "fp16", "fp32")
                     for warps in (2, 4, 8)}
    quick = list(gan_loss.runs(quick=True))
    assert {run.arch for run in quick} == {80, 90} and len({run.precision for run in quick}) == 3
    assert {(run.kind, run.targets, run.size, run.sure) for run in quick} == set(gan_loss.PARTS)


def test_a_batch_is_tried_with_and_without_each_option():
    quick = list(batch.runs(quick=True))
    assert [run.shape for run in quick] == batch.SHAPES
    for option in ("flip", "labels", "unit_range"):
        assert {(run.arch, getattr(run, option)) for run in quick} == set(itertools.product((80, 90), (True, False)))


def test_an_inaccurate_or_wrong_batch_is_found():
    run = next(batch.runs(quick=True))
    assert run.flip and run.labels
    eager = batch.gathered(run, None)
    assert batch.compare(eager, eager, run.unit_range)[1] == []
    off = {**eager, "images 1": eager["images 1"] + 1e-6, "labels 2": eager["labels 2"] + 1}
    used, wrong = batch.compare(off, eager, run.unit_range)
    assert used > 1 and len(wrong) == 2 and wrong[0].startswith("labels 2") and wrong[1].startswith("images 1")
