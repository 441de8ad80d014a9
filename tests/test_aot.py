"""The checks of compiled kernels can fail, and the recorder records every launch of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastgan import ops, presets
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.nn import Chain, use
from fastgan.ops.numerics import products
from fastgan.ops.triton.launch import by_name
from fastgan.train.step import GANStep, Savings
from proofs import aot, assembly, gates
from proofs.compiled import Binary, Job, inspect
from proofs.launches import Launch, Pointer, record, training_step

pytest.importorskip("triton")

RESOURCES = ("Resource usage:\n Common:\n  GLOBAL:0\n Function wgrad_kernel:\n"
             "  REG:146 STACK:{} SHARED:1024 LOCAL:{} CONSTANT[0]:672 TEXTURE:0 SURFACE:0 SAMPLER:0\n")
PTX = """
    .param .u64 .ptr .global .align 1 wgrad_kernel_param_0,
    ld.param.b64 %rd1, [wgrad_kernel_param_0];
    ld.param.b64 %rd2, [wgrad_kernel_param_1];
    ld.param.b64 %rd3, [wgrad_kernel_param_2];
    mul.wide.s32 %rd4, %r1, 2;
    add.s64 %rd5, %rd1, %rd4;
    cp.async.cg.shared.global [ %r35 + 0 ], [ %rd5 + 0 ], 0x10, %r45;
    add.s64 %rd6, %rd2, %rd4;
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd6 + 0 ];
    mov.b64 %rd7, %rd3;
    ld.global.L1::evict_last.b32 %r5, [ %rd7 + 16 ];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
"""
NAMES = ["coarse", "fine", "b0"]


def job(**changes: Any) -> Job:
    pointer = Pointer(torch.bfloat16, (8, 8))
    given = {"CO": 64, "CI": 128, "KH": 4, "KW": 4, "SH": 2, "RUN": 0, "LARGE": False,
             "PRECISION": "ieee", "BM": 64, "BN": 64, "BK": 64, "coarse": pointer, "fine": pointer, **changes}
    return Job("m", "wgrad_kernel", given, {"num_warps": 4, "num_stages": 3}, 90, "key")


def compiled(resources: str = RESOURCES.format(0, 0), ptx: str = PTX, listing: str = "HGMMA.64x64x16.F32",
             shared: int = 0, **changes: Any) -> Binary:
    registers, stack, local = assembly.resources(resources)
    return Binary(job(**changes), registers, stack, local, shared, ptx=assembly.tensor_ptx(ptx),
                  sass=assembly.tensor_sass(listing), loads=assembly.loads(ptx, NAMES), seconds=1.0)


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the limits of the newest Triton under any version."""
    monkeypatch.setattr(gates, "version", lambda package: "3.8.0")


def test_a_good_kernel_passes_every_gate() -> None:
    good = compiled()
    assert good.loads == {"coarse": 16, "fine": 16, "b0": 4}
    assert (good.ptx, good.sass) == (("mma.sync",), ("HGMMA",))
    assert gates.failures(good) == []


@pytest.mark.parametrize(("change", "words"), [
    ({"resources": RESOURCES.format(8, 0)}, "spills: 8 bytes of stack"),
    ({"resources": RESOURCES.format(0, 4)}, "4 of local memory"),
    ({"shared": 227 * 1024 + 16}, "227.0 KiB of shared memory, sm_90 has 227"),
    ({"resources": RESOURCES.format(0, 0).replace("146", "256")}, "256 registers"),
    ({"ptx": PTX.replace("mma.sync", "fma.rn")}, "no matrix multiplication on tensor cores: none in PTX"),
    ({"listing": "FFMA R1, R2, R3, R4"}, "none in machine code"),
    ({"ptx": PTX.replace("0x10", "0x4")}, "coarse is loaded 4 bytes at a time"),
    ({"ptx": PTX.replace("v4.b32 {", "b16 {")}, "fine is loaded 2 bytes at a time"),
    ({"ptx": PTX.replace("%rd6 + 0 ]", "%rd99 + 0 ]")}, "no load of fine found"),
], ids=["stack", "local", "shared", "registers", "ptx-without-mma", "sass-without-mma", "narrow-copy", "narrow-load",
        "lost-operand"])
def test_each_gate_can_fail(change: dict[str, Any], words: str) -> None:
    (failure,) = gates.failures(compiled(**change))
    assert words in failure


def test_a_kernel_that_does_not_compile_fails() -> None:
    assert gates.failures(Binary(job(), error="PassManager: failed")) == ["does not compile: PassManager: failed"]


def test_rows_of_three_channels_cannot_be_read_16_bytes_at_a_time() -> None:
    image = compiled(ptx=PTX.replace("v4.b32 {", "b16 {"), CI=3)
    assert gates.failures(image) == []
    assert gates.narrow_operands(image) == {"fine": "row of 6 bytes"}


def test_float32_across_the_depth_may_be_transposed_four_bytes_at_a_time() -> None:
    single = {"coarse": Pointer(torch.float32, (8, 8)), "fine": Pointer(torch.float32, (8, 8)), "PRECISION": "tf32"}
    transposed = PTX.replace("0x10", "0x4")
    assert gates.narrow_operands(compiled(ptx=transposed, **single)) == {"coarse": "transposed"}
    assert gates.failures(compiled(ptx=transposed, **single)) == []
    halves = PTX.replace("0x10", "0x2")
    assert gates.failures(compiled(ptx=halves, **single)) == ["coarse is loaded 2 bytes at a time, expected 4"]


def test_products_of_exact_float32_need_no_tensor_cores() -> None:
    exact = compiled(listing="FFMA", ptx=PTX.replace("mma.sync", "fma.rn"), coarse=Pointer(torch.float32, (8, 8)),
                     fine=Pointer(torch.float32, (8, 8)))
    assert gates.failures(exact) == []
    assert gates.failures(exact._replace(job=job(coarse=Pointer(torch.float32, (8, 8)), PRECISION="tf32")))


LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDGSTS.E.128 [R3], [R4.64] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0050*/              @!P0 BRA `(.L_x_1) ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/               @P1 BRA `(.L_x_3) ;
.L_x_3:
        /*0080*/                   EXIT ;
"""


def test_the_hot_loop_is_the_innermost_one_with_products() -> None:
    assert [instruction.split()[0] for instruction in assembly.hot_loop(LISTING)] == [
        "LDGSTS.E.128", "HGMMA.64x128x16.F32.BF16", "WARPGROUP.DEPBAR.LE", "@!P0"]
    assert assembly.hot_loop(LISTING.replace("HGMMA", "FFMA")) == assembly.hot_loop("") == []


def test_the_loop_of_a_gemm_is_gated() -> None:
    wide = compiled(BM=128, BN=128)._replace(loop={"tensor": 8, "other": 187})  # 4 warps
    assert gates.issue(wide) == pytest.approx(195 * 2048 / 128 / 128 / 64)
    assert gates.failures(wide) == gates.failures(wide, strict=True) == []
    assert gates.failures(wide._replace(loop={"tensor": 8, "other": 392})) == [
        "0.78 issue cycles for each cycle of the tensor cores, at most 0.7"]
    assert gates.failures(wide._replace(serialised=True)) == ["ptxas serializes wgmma"]
    single = Pointer(torch.float32, (8, 8))
    exact = compiled(BM=128, BN=128, coarse=single, fine=single)._replace(loop={"other": 400})
    assert gates.issue(exact) is None


def test_an_older_compiler_may_make_longer_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "version", lambda package: "3.6.0")
    wide = compiled(BM=128, BN=128)
    longer = wide._replace(loop={"tensor": 8, "other": 392})
    assert gates.failures(longer) == []
    assert len(gates.failures(longer, strict=True)) == 1
    assert "at most 0.805" in gates.failures(wide._replace(loop={"other": 420}))[0]


@pytest.mark.parametrize(("listing", "stack"), [("STL.64 [R1], RZ ;", 0), ("STL [R1], R2 ;\nLDL R2, [R1] ;", 8)])
def test_a_stack_that_is_never_read_is_no_spill(monkeypatch: pytest.MonkeyPatch, listing: str, stack: int) -> None:
    printed = {"cuobjdump": RESOURCES.format(8, 0), "nvdisasm": listing}
    monkeypatch.setattr(assembly, "run", lambda tool, *arguments: printed[tool])
    assert inspect(job(), PTX, b"", NAMES).stack == stack


def test_a_tile_without_a_limit_fails_where_it_is_asked_for() -> None:
    other = compiled(BM=32, BN=256)._replace(loop={"other": 10})
    assert gates.failures(other) == []
    assert gates.failures(other, strict=True) == ["no limit in `LIMITS` for wgrad with this tile on sm_90"]


@pytest.mark.parametrize(("limit"), gates.LIMITS, ids=lambda limit: f"{limit.kernel} {limit.tile}".strip())
def test_a_limit_of_its_own_has_a_reason(limit: gates.Limit) -> None:
    paths = {"convolve_tma": {0.4}, "wgrad_tma": {0.4}, "convolve_tma tf32": {0.55}, "wgrad_tma tf32": {0.55},
             "convolve": {0.45, 0.55, 0.8}, "wgrad": {0.7}}
    assert limit.why or set(limit.cycles.values()) <= paths[limit.kernel]


def test_resources_in_words_that_are_not_understood() -> None:
    with pytest.raises(ValueError, match="expected REG, STACK and LOCAL"):
        assembly.resources("no kernel image")


def test_occupancy_is_that_of_the_scarcest_resource() -> None:
    of = Binary(job(), registers=168)
    assert gates.occupancy(of) == 3  # 168 * 128 of 65536 registers
    assert gates.occupancy(of._replace(registers=169)) == 2  # allocated in units of 8 per thread
    assert gates.occupancy(of._replace(registers=32)) == 16  # 2048 threads
    assert gates.occupancy(of._replace(registers=32, shared=100 * 1024)) == 2  # 228 KiB, one kept for each
    assert gates.occupancy(of._replace(registers=32, tensor_memory=256)) == 2


def test_collect_merges_what_the_compiler_would_see_twice() -> None:
    one, two = (aot.Case("dcgan-64", batch, "bf16", 90) for batch in (64, 128))
    jobs, users = aot.collect([(one, {"a": job(), "b": job()}), (two, {"a": job()})])
    assert len(jobs) == 2 and users == {"a": [one, two], "b": [one]}


def test_baseline_notices_growth_and_spills_but_only_of_the_same_triton() -> None:
    old = aot.row(compiled(), [])
    assert aot.regressions([old], [old]) == []
    grown = {**old, "registers": str(146 + aot.GROWTH + 1)}
    assert "163 registers, 146 in the baseline" in aot.regressions([grown], [old])[0]
    assert "8 bytes of stack, 0" in aot.regressions([{**old, "stack": "8"}], [old])[0]
    assert aot.regressions([grown], [{**old, "triton": "0"}]) == []
    assert aot.regressions([{**grown, "key": "other"}], [old]) == []
    (narrower,) = aot.regressions([{**old, "loads": "coarse:16 fine:4"}], [old])
    assert "loads coarse:16 fine:4, coarse:16 fine:16 in the baseline" in narrower


def test_quick_covers_every_architecture_and_precision() -> None:
    few = aot.cases(aot.parser().parse_args(["--quick"]))
    assert {case.arch for case in few} == set(gates.DEVICES)
    assert {case.precision for case in few} == set(aot.TENSOR_CORES)


def tiny_step() -> None:
    """Two stages forward and backward: conv, batch normalization, relu, conv; x needs no gradient."""
    network = Chain(nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 4, 2, 1),
                    impl="triton")
    out = network(torch.zeros(2, 8, 16, 16))
    torch.autograd.grad(out.sum(), list(network.parameters()))


def names(launches: list[Launch]) -> list[str]:
    return [launch.name for launch in launches]


def test_the_recorder_sees_every_launch_in_order() -> None:
    launches = record(tiny_step, 80)
    assert [name for name in names(launches) if name != "sum_kernel"] == [
        "convolve_kernel", "bn_act_forward_kernel", "convolve_kernel",  # forward
        "convolve_kernel", "wgrad_kernel",  # second block: dgrad, wgrad
        "bn_backward_sums_kernel", "bn_backward_apply_kernel", "wgrad_kernel"]
    first = launches[0]
    assert first.grid == (1, 1, 1) and first.options["num_warps"] == 4
    assert first.arguments["x"] == Pointer(torch.float32, (2, 16, 16, 8))
    given = [value for launch in launches for value in by_name(launch.arguments).values()]
    assert not any(isinstance(value, torch.Tensor) for value in given)


def test_a_pointer_keeps_the_alignment_of_a_view() -> None:
    from fastgan.ops.triton import launch
    from fastgan.ops.triton.tiles import Tile

    (seen,) = record(lambda: launch.launch(nn.Identity(), (1,), Tile(1, 1, 1), x=torch.zeros(8)[3:]), 80)
    assert seen.arguments["x"].data_ptr() == 12 and seen.arguments["x"].nbytes == 20


@pytest.mark.parametrize(("together", "forward"), [(True, 5), (False, 10)], ids=["together", "apart"])
def test_a_training_step_launches_each_block(together: bool, forward: int) -> None:
    config = presets.get("dcgan-64")
    launches = record(training_step(config, 4, "fp16", together=together), 90)
    arguments = [by_name(launch.arguments) for launch in launches if launch.name.startswith("convolve")]
    # blocks of G, of D on both halves and of D for G; dgrad of all but the first of each, and of G's loss through D
    assert len(arguments) == (5 + forward + 5) + (4 + forward * 4 // 5 + 5)
    wgrads = [launch for launch in launches if launch.name.startswith("wgrad")]
    assert len(wgrads) == 5 + forward  # none of D for G
    assert {given["x"].dtype for given in arguments} == {torch.float16}
    groups = {launch.arguments["groups"] for launch in launches if launch.name == "bn_act_forward_kernel"}
    assert groups == ({1, 2} if together else {1})
    losses = [launch.arguments for launch in launches if launch.name == "gan_loss_kernel"]
    assert [given["ones"] for given in losses] == ([(1, 0), (1,)] if together else [(1,), (0,), (1,)])
    assert {(given["logits"].dtype, given["size"]) for given in losses} == {(torch.float16, 4)}


def test_precisions_of_float32() -> None:
    config, before = presets.get("dcgan-64", image_size="32"), torch.backends.cudnn.allow_tf32
    for precision, products_in in (("tf32", "tf32"), ("fp32", "ieee")):
        launches = record(training_step(config, 2, precision), 80)
        assert {launch.arguments["PRECISION"] for launch in launches
                if "PRECISION" in launch.arguments} == {products_in}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_kernel_of_16_bits_has_one_build_whatever_tf32_is() -> None:
    x, weight = torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), torch.zeros(5, 3, 4, 4, dtype=torch.bfloat16)
    for precision in ("tf32", "fp32"):
        with products(precision):
            launches = record(lambda: ops.conv_bn_act(x, weight, impl="triton"), 90)
        assert [launch.arguments["PRECISION"] for launch in launches if "PRECISION" in launch.arguments] == ["ieee"]


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(FastganError, match="precision 'int8'"):
        training_step(presets.get("dcgan-64"), 2, "int8")
    with pytest.raises(FastganError, match="architecture gaussian: its networks have no chains"):
        training_step(presets.get("d2l-gan-gaussian"), 2, "bf16")


@pytest.mark.parametrize("preset", ["digits", "oreilly-gan-mnist", "tf-dcgan-mnist", "dcgan-128"])
def test_every_image_preset_can_be_recorded(preset: str) -> None:
    assert record(training_step(presets.get(preset), 4, "bf16", together=False), 90)


def test_the_update_of_g_computes_no_weight_gradient_of_d() -> None:
    config = presets.get("dcgan-64", image_size="16", ngf=8, ndf=8)
    generator, discriminator = build(config.model, (3, 16, 16))
    step = GANStep(use(generator, "triton"), use(discriminator, "triton"), config.model, config.train,
                   savings=Savings(together=True))
    launches = record(lambda: step(torch.zeros(4, 3, 16, 16)), 80)
    assert names(launches).count("wgrad_kernel") == 3 + 3  # G's stages, and D's on real and fake together
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
