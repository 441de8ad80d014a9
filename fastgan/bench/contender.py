"""Who takes part: a way of doing the work, as plain data that travels to other processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastgan.train.step import Savings

USUAL = ("frozen", "fused_adam", "foreach_ema")  # and `together` where it pays, which the step knows


@dataclass(frozen=True)
class Contender:
    """Who does the work, and how.

    Args:
        engine: "textbook" (eager layers in the textbook's loop), "reference", "native", "triton", "auto" (the plan);
            of a single pass, a candidate such as "native/gemm".
        precision: "fp32", "tf32", "bf16" or "fp16". nchw: images and weights in NCHW, else channels_last.
        saved: names of `Savings`; the textbook knows "frozen" and "fused_adam". together: that of `Savings`.
        reads: the textbook reads its losses in every step, as PyTorch's example does.
        tuned: cudnn.benchmark. compiled: the mode of torch.compile, "" for none. graph: the step is one CUDA graph.
        cold: a new process starts without what others have compiled or measured.
        usual: takes part unless others are named.
    """

    name: str
    engine: str = "textbook"
    precision: str = "fp32"
    nchw: bool = False
    saved: tuple[str, ...] = ()
    together: bool | None = None
    reads: bool = False
    tuned: bool = False
    compiled: str = ""
    graph: bool = False
    cold: bool = False
    usual: bool = True

    @property
    def savings(self) -> Savings:
        """Those in `saved`; `together` is apart, as it has three values."""
        return Savings(**{name: name in self.saved for name in USUAL}, together=self.together)

    def named(self, name: str, **changes: object) -> Contender:
        """Another that differs from this one."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Contender:
        return cls(**{**values, "saved": tuple(values["saved"])})
