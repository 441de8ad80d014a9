"""Triton kernels compiled without a GPU, and the properties of the compiled code."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.errors import first_line
from fastgan.ops.specs import GAN_LOSSES
from proofs import assembly
from proofs.launches import Launch, Pointer

GEMMS = ("convolve_kernel", "wgrad_kernel", "convolve_tma_kernel", "wgrad_tma_kernel")


class Job(NamedTuple):
    """The compiler's input for a launch, in values that can be pickled."""

    module: str
    kernel: str
    arguments: dict[str, Any]
    options: dict[str, int]
    arch: int
    key: str  # identifies the build

    @property
    def given(self) -> dict[str, Any]:
        """Arguments by name, with the fields of each NamedTuple, and descriptors replaced by their tensors."""
        from fastgan.ops.triton.launch import by_name

        return by_name(self.arguments)

    def is_gemm(self) -> bool:
        return self.kernel in GEMMS and not self.given.get("NARROW")

    def itemsize(self) -> int:
        """Bytes of an element of a GEMM's operands."""
        given = self.given
        return int(given["x" if "x" in given else "coarse"].dtype.itemsize)

    def has_tensor_cores(self) -> bool:
        """Whether its products can run on tensor cores; those of float32 in full precision cannot."""
        return self.is_gemm() and (self.itemsize() == 2 or self.given["PRECISION"] == "tf32")

    def operands(self) -> dict[str, int]:
        """Bytes of a row of channels, for each operand that a GEMM reads through pointers."""
        given = self.given
        if not self.is_gemm() or self.kernel.endswith("tma_kernel"):
            return {}
        if self.kernel == "wgrad_kernel":
            channels = {"coarse": given["CO"], "fine": given["CI"]}
        else:
            channels = {"x": given["CI"], "weight": given["CO" if given["TRANSPOSED"] else "CI"]}
        return {name: count * given[name].dtype.itemsize for name, count in channels.items()}

    def expected(self, operand: str) -> int:
        """The minimum number of bytes that each load of an operand should have."""
        row, given = self.operands()[operand], self.given
        if row % 16 or (given["RUN"] and operand != "coarse"):
            return 1
        across = self.kernel == "wgrad_kernel" or (operand == "weight" and given["TRANSPOSED"])
        return 4 if across and given[operand].dtype.itemsize == 4 else 16


class Binary(NamedTuple):
    """The compiled code of a job. `stack`: bytes, 0 if none are read. `loads`: bytes of the narrowest load from global
    memory, by argument. `loop`: the number of instructions of each class (`assembly.CLASSES`) in the loop around the
    products. `serialised`: whether ptxas warns that each wgmma waits for the previous one."""

    job: Job
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    tensor_memory: int = 0  # columns, sm_100
    ptx: tuple[str, ...] = ()  # kinds of matrix multiplication
    sass: tuple[str, ...] = ()
    loads: dict[str, int] = {}  # noqa: RUF012
    loop: dict[str, int] = {}  # noqa: RUF012
    serialised: bool = False
    seconds: float | None = None  # of compilation; None if it was in Triton's cache
    error: str = ""


def jobs(launches: list[Launch], arch: int) -> dict[str, Job]:
    """The distinct builds of launches, by key."""
    with Target(arch):
        unique: dict[str, Job] = {}
        for launch in launches:
            key = f"{launch.name} sm_{arch} {_specialisation(launch, arch)}"
            if key not in unique:
                function = launch.kernel.fn
                unique[key] = Job(function.__module__, function.__name__, launch.arguments, launch.options, arch, key)
    return unique


def _specialisation(launch: Launch, arch: int) -> str:
    """Triton's specialization for the arguments: types, divisibility, constants."""
    *_, binder = launch.kernel.device_caches[arch]
    _, specialised, options = binder(**launch.arguments, **launch.options)
    return f"{specialised} {options}"


class Target:
    """A context in which Triton compiles for an architecture: a driver without a GPU."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def __enter__(self) -> None:
        from triton.runtime.driver import driver

        self._before = driver._active
        driver.set_active(self)

    def __exit__(self, *_: object) -> None:
        from triton.runtime.driver import driver

        driver._active = self._before

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels cache their builds by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def map_python_to_cpp_type(self, name: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(name))


def compile_job(job: Job) -> Any:
    """Compile a job for its architecture; the machine needs no GPU."""
    with Target(job.arch):
        kernel = getattr(import_module(job.module), job.kernel)
        return kernel.warmup(grid=(1,), **job.arguments, **job.options)


def build(job: Job) -> Binary:
    """Compile a job, and read the compiled code."""
    import triton

    times: list[bool] = []
    before, triton.knobs.compilation.listener = triton.knobs.compilation.listener, (
        lambda **facts: times.append(facts["cache_hit"]))
    start = time.perf_counter()
    try:
        compiled = compile_job(job)
        seconds = time.perf_counter() - start
        read = inspect(job, compiled.asm["ptx"], compiled.asm["cubin"], _pointers(compiled.src.signature))
        return read._replace(shared=compiled.metadata.shared, seconds=None if times == [True] else seconds,
                             tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0)
    except Exception as error:
        return Binary(job, error=f"{type(error).__name__}: {first_line(error)}")
    finally:
        triton.knobs.compilation.listener = before


def _pointers(signature: dict[str, Any]) -> list[str]:
    """Names of the parameters of a compiled kernel in order; that of a NamedTuple for each of its fields."""
    return [name for name, kinds in signature.items() for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
            if kind != "constexpr"]


def inspect(job: Job, ptx: str, cubin: bytes, names: list[str]) -> Binary:
    """A `Binary` from the compiler's output. names: of the parameters of the kernel, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path, source = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        path.write_bytes(cubin)
        source.write_text(ptx)
        registers, stack, local = assembly.resources(assembly.run("cuobjdump", "--dump-resource-usage", str(path)))
        listing = assembly.run("nvdisasm", "-ndf", "-c", str(path)) if job.is_gemm() or stack else ""
        products = assembly.tensor_ptx(ptx)
        serialised = "wgmma" in products and assembly.serialised(source)
    if "LDL" not in listing:
        stack = 0  # without reads there is no spill: on sm_120 ptxas writes zeros to the stack that nothing reads
    loop = Counter(map(assembly.kind, assembly.hot_loop(listing)))
    return Binary(job, registers, stack, local, ptx=products, sass=assembly.tensor_sass(listing),
                  loads=assembly.loads(ptx, names), loop=dict(loop), serialised=serialised)


def problem(job: Job) -> str:
    """A description of a job, such as "transposed 512->256 4x4/2 statistics"."""
    given = job.given
    if job.kernel in ("convolve_kernel", "convolve_tma_kernel"):
        words = [f"{'transposed ' * given['TRANSPOSED']}{given['CI']}->{given['CO']}",
                 f"{given['KH']}x{given['KW']}/{given['SH']}", *_after(given)]
    elif job.kernel in ("wgrad_kernel", "wgrad_tma_kernel"):
        words = [f"{given['CO']}x{given['CI']}", f"{given['KH']}x{given['KW']}/{given['SH']}"]
    elif job.kernel == "gan_loss_kernel":
        words = [GAN_LOSSES[given["KIND"]], f"{len(given['ones'])} part{'s' * (len(given['ones']) > 1)}"]
    else:
        words = [f"{given['C']} channels"] if "C" in given else []
        words += [str(given[name]) for name in ("DERIVATIVE", "ACTIVATION") if name in given]
    return " ".join(words + [word.lower() for word in ("NARROW", "FOLD", "RUN", "LARGE") if given.get(word)])


def _after(given: dict[str, Any]) -> list[str]:
    """The epilogue of a convolution."""
    words = [given["ACTIVATION"]] if given["ACTIVATION"] != "none" else []
    return words + [name for name in ("mask", "statistics") if given.get(name) is not None]


def precision(job: Job) -> str:
    """"bf16", "fp16", "tf32", "fp32", or "any" for a kernel that reads only float32 vectors and sums."""
    dtypes = {str(value.dtype).removeprefix("torch.") for name, value in job.given.items()
              if isinstance(value, Pointer) and name in ("x", "coarse", "y", "ga", "out", "logits")}
    if "bfloat16" in dtypes:
        return "bf16"
    if "float16" in dtypes:
        return "fp16"
    return str(job.arguments.get("PRECISION", "any"))
