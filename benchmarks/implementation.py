"""An implementation of workloads, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastgan.train.step import Savings

SAVINGS = ("frozen", "fused_adam", "foreach_ema", "keep_casts")  # all of `Savings` but `together`


@dataclass(frozen=True)
class Implementation:
    """
    Args:
        engine: "pytorch" (eager layers in the loop of PyTorch's example), or fastgan's step on "reference", "native",
            "triton" or "auto".
        precision: "fp32", "tf32", "bf16" or "fp16". nchw: images and weights in NCHW, else channels_last.
        savings: names of fields of `Savings`; PyTorch's loop supports only "frozen" and "fused_adam".
        together: the field of `Savings`.
        converted: whether the networks of PyTorch's loop are converted, with the default engine.
        reads_losses: whether losses are read in every step, as in PyTorch's example.
        cudnn_benchmark: torch.backends.cudnn.benchmark. compiled: mode of torch.compile, "" for none.
        graph: whether the step is one CUDA graph. dependent_launch: whether Triton's kernels use programmatic dependent
            launch (`fastgan/ops/triton/launch.py`). usual: whether it is measured by default.
    """

    name: str
    engine: str = "pytorch"
    precision: str = "fp32"
    nchw: bool = False
    savings: tuple[str, ...] = ()
    together: bool | None = None
    converted: bool = False
    reads_losses: bool = False
    cudnn_benchmark: bool = False
    compiled: str = ""
    graph: bool = False
    dependent_launch: bool = False
    usual: bool = True

    def step_savings(self) -> Savings:
        return Savings(**{name: name in self.savings for name in SAVINGS}, together=self.together)

    def but(self, name: str, **changes: object) -> Implementation:
        """A copy with another name and other fields."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]
