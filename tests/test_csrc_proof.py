"""The checks of csrc/cuda can fail."""

from __future__ import annotations

import pytest

from proofs import csrc

REPORT = """ptxas info    : Compiling entry function '_ZN7fastgan4cuda12_GLOBAL__N__121bn_act_forward_kernel\
I13__nv_bfloat16Li8ELNS_10ActivationE3EEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN7fastgan
    {} bytes stack frame, {} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {} registers, used 1 barriers, {} bytes smem
"""
PTX = """.visible .entry _ZN7fastgan14measure_kernelI6__halfLi8EEEvPKT_(
\tld.global.nc.v4.u32 \t{%r1, %r2, %r3, %r4}, [%rd1];
}
.visible .entry _ZN7fastgan21bn_act_forward_kernelIfLi4ELNS_10ActivationE0EEEvPKT_(
\tld.global.nc.v4.u32 \t{%r1, %r2, %r3, %r4}, [%rd1];
\tst.global.v4.f32 \t[%rd2], {%f1, %f2, %f3, %f4};
}
"""


@pytest.mark.parametrize(("given", "words"), [
    ((0, 0, 128, 32768), []), ((8, 0, 40, 0), ["8 bytes of stack, 0 of spills"]),
    ((0, 4, 40, 0), ["0 bytes of stack, 4 of spills"]), ((0, 0, 129, 0), ["129 registers"]),
    ((0, 0, 40, 32769), ["32769 bytes of shared memory"])], ids=["good", "stack", "spills", "registers", "shared"])
def test_gates(given, words):
    (found,) = csrc.parsed(REPORT.format(*given))
    assert (found.kernel, found.arch) == ("bn_act_forward bf16 x 8 tanh", 90)
    failed = list(csrc.failures(found))
    assert len(failed) == len(words) and all(map(str.startswith, failed, words))


def test_report_in_another_form_is_no_success():
    with pytest.raises(ValueError, match="unexpected output of ptxas"):
        list(csrc.parsed(REPORT.replace("stack frame", "frame").format(0, 0, 1, 1)))


@pytest.mark.parametrize(("right", "wrong", "found"), [
    ("", "", []), ("st.global.v4.f32", "st.global.f32", ["bn_act_forward fp32 x 4 none"]),
    ("ld.global.nc.v4.u32", "ld.global.nc.v2.u16", ["measure fp16 x 8", "bn_act_forward fp32 x 4 none"])],
    ids=["good", "store", "load"])
def test_narrow_accesses(right, wrong, found):
    assert list(csrc.narrow(PTX.replace(right, wrong))) == [f"{each}: pieces of less than 16 bytes in PTX"
                                                            for each in found]


def test_architectures_are_those_that_the_compiler_knows():
    assert csrc.architectures("compute_80\ncompute_87\ncompute_90\n") == [80, 90]
