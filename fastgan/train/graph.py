"""The training step as one CUDA graph, which the host only replays.

A graph repeats the kernels of one call with the same addresses and scalar arguments. Therefore the first call of each
phase

    warms up    three runs on a side stream; then the state is restored
    captures    one run on that stream, which is recorded and not executed
    checks      three replays against three runs from the same state; then the state is restored

and only then runs the actual step, by a replay. If a step cannot be captured, or its replays differ, steps run eagerly,
as if no capture had been attempted; the reason is logged once.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.errors import FastganError, first_line
from fastgan.train.capture import Capturable, collector_stopped, waiting_is_an_error
from fastgan.train.ema import EMA
from fastgan.train.processes import SingleProcess
from fastgan.train.snapshot import Snapshot, distance

cuda: Any = torch.cuda  # tests replace it
logger = logging.getLogger("fastgan")
RUNS = 3  # number of runs in the warm-up and on each side of the check


class _Captured(NamedTuple):
    graph: Any
    outputs: dict[str, Tensor]


class GraphedStep:
    """A training step that is captured in CUDA graphs, one for each phase, and replayed.

    It is called like the step and gives the same results. Between two calls the state of the step can be read, and
    changed in place. If tensors of the state were replaced, or parameters of a `GANStep` frozen or unfrozen, the next
    call captures the graphs again. If a step cannot be captured, or its replays differ from eager steps, steps run
    eagerly, and the reason is logged by the logger `fastgan`.

    Args:
        step: a `GANStep`, or another step with the methods of `Capturable`.
        processes: the processes that share each batch, if there are several; if one must run eagerly, all do.

    Attributes:
        inputs: the static tensors that the graphs read, after the first call. Writing a batch into them on the current
            stream and passing them to the next call avoids a copy.
        failure: the reason why steps are eager; "" while graphs are in use.
    """

    def __init__(self, step: Capturable, processes: SingleProcess | None = None) -> None:
        self.step, self._processes = step, processes or SingleProcess()
        self.inputs: tuple[Tensor, ...] = ()
        self.failure = ""
        self._captured: dict[Hashable, _Captured] = {}
        self._addresses: list[int] = []  # addresses of the state that the graphs change
        self._side: Any = None
        self._pool: Any = None
        self._calls = 0  # number of replays since graphs were last dropped
        self._moved = False  # whether graphs were dropped because state had moved
        self._over = ""  # the reason why this object can no longer be called

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run one training step on `inputs`, with the shapes, dtypes and device of the first call.

        Returns:
            The metrics of the step, scalars on the device. The next call overwrites these tensors.

        Raises:
            FastganError: if the inputs do not match those of the first call, after `close`, and if the device fails.
        """
        if self._over:
            raise FastganError(self._over)
        if self._captured and self._addresses != _addresses(self.step):
            self._capture_again()
        if self.failure:
            return self.step(*inputs)
        if self.inputs:
            _check_like(self.inputs, inputs)
        phase = self.step.phase()
        if phase not in self._captured and not (self.step.is_ready(phase) and self._try_to_capture(phase, inputs)):
            return self.step(*inputs)
        outputs = self._replay(self._captured[phase], inputs)
        self.step.advance(phase, *inputs)
        self._calls += 1
        return outputs

    @property
    def description(self) -> str:
        """How steps run, for logs: "one CUDA graph a step", or "eager" and the reason."""
        return f"eager: {self.failure}" if self.failure else "one CUDA graph a step"

    @property
    def ema(self) -> EMA | None:
        """The moving average of the generator of a `GANStep`, or None."""
        return getattr(self.step, "ema", None)

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        """The optimizers of a `GANStep`: the generator's, then the discriminator's."""
        found: tuple[Optimizer, Optimizer] = self.step.optimizers  # type: ignore[attr-defined]
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state_dict of the `GANStep`."""
        state: dict[str, Any] = self.step.state_dict()  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state_dict of a `GANStep`. The graphs remain valid unless an optimizer replaces tensors."""
        self.step.load_state_dict(state)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Free the graphs and their memory. Metrics that were returned before can still be read."""
        self._drop()
        self._over = self._over or "this GraphedStep was closed; expected a new one, or a call of the step itself"

    def __enter__(self) -> GraphedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replay(self, captured: _Captured, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        try:
            for mine, theirs in zip(self.inputs, inputs, strict=True):
                if mine.data_ptr() != theirs.data_ptr():
                    mine.copy_(theirs, non_blocking=True)
            captured.graph.replay()
        except Exception as error:
            raise self._untrusted(error) from error
        return dict(captured.outputs)

    def _untrusted(self, error: Exception) -> FastganError:
        """The error after a failure of the device. Later calls raise it too."""
        self._over = (f"the device failed during a step ({first_line(error)}) and its state cannot be trusted; "
                      "resume from the last checkpoint")
        return FastganError(self._over)

    def _try_to_capture(self, phase: Hashable, inputs: tuple[Tensor, ...]) -> bool:
        """Capture and check a phase, and return whether this succeeded. State and random state are restored.

        If one of several processes fails, all do, because they must continue with the same collectives.
        """
        before = None
        try:
            self.step.allocate(*inputs)
            device = _one_device(self.step, inputs)
            before = Snapshot(self.step.state, device, cuda)
            self.inputs = self.inputs or tuple(x.detach().clone() for x in inputs)
            self._addresses = _addresses(self.step)
            self._warm_up(phase, device)
            before.restore()
            self._captured[phase] = self._capture(phase, device)
            if self._addresses != _addresses(self.step):  # a replay would write to freed memory
                raise FastganError("the step replaces tensors of its state; expected a step that changes them in place")
        except Exception as error:
            self._go_on_eagerly(_reason(error))
        self._fail_with_others()
        if before is not None and not self.failure:
            try:
                self._check(phase, before)
            except Exception as error:
                self._go_on_eagerly(_reason(error))
            self._fail_with_others()
        if before is not None:
            self._put_back(before)
        return not self.failure

    def _fail_with_others(self) -> None:
        reason = next(filter(None, self._processes.gather(self.failure)), "")
        if reason and not self.failure:
            self._go_on_eagerly(f"another process cannot: {reason}")

    def _go_on_eagerly(self, reason: str) -> None:
        self.failure = reason
        self._drop()
        logger.warning(f"training continues without CUDA graphs: {reason}")

    def _put_back(self, before: Snapshot) -> None:
        try:
            if self.failure:
                before.renew_generator()
            before.restore()
        except FastganError:
            raise
        except Exception as error:
            raise self._untrusted(error) from error

    def _warm_up(self, phase: Hashable, device: torch.device) -> None:
        """Let libraries initialize and allocate on the stream of the capture. The last run must not synchronize."""
        self._side = self._side or cuda.Stream(device=device)
        main = cuda.current_stream(device)
        self._side.wait_stream(main)
        try:
            with cuda.stream(self._side):
                for _ in range(RUNS - 1):
                    self.step.run(phase, *self.inputs)
                with waiting_is_an_error(cuda):
                    self.step.run(phase, *self.inputs)
        finally:
            main.wait_stream(self._side)  # the state is restored on the main stream

    def _capture(self, phase: Hashable, device: torch.device) -> _Captured:
        self._pool = self._pool or cuda.graph_pool_handle()
        graph, cause = cuda.CUDAGraph(), None
        try:
            # if the end of a capture fails, torch.cuda.graph leaves its stream current; the outer block restores it
            with collector_stopped(), cuda.stream(self._side), cuda.graph(
                    graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                try:
                    outputs = self.step.run(phase, *self.inputs)
                except Exception as error:
                    cause = error  # the end of the capture fails as well, with an error that would hide this one
                    raise
        except Exception as error:
            with suppress(RuntimeError):
                graph.reset()
            raise cause or error from None
        return _Captured(graph, outputs)

    def _check(self, phase: Hashable, before: Snapshot) -> None:
        """Raise `FastganError` if replays differ from runs by more than 4 times the difference between runs."""
        def after(repeat: Any) -> list[Tensor]:
            before.restore()
            for _ in range(RUNS):
                repeat()
            return self.step.state()

        def run() -> None:
            self.step.run(phase, *self.inputs)

        eager = [t.detach().clone() for t in after(run)]
        apart = distance(before.tensors, eager, after(self._captured[phase].graph.replay))
        floor = distance(before.tensors, eager, after(run))
        if not (apart <= 4 * floor + 1e-5 and apart < torch.inf):
            raise FastganError(f"{RUNS} replays differ from {RUNS} eager steps by {apart:.1e} of their change, but "
                               f"eager steps from each other by {floor:.1e}")

    def _capture_again(self) -> None:
        """After tensors were replaced, as by `load_state_dict`; a step whose state moves in each call runs eagerly."""
        self._drop()
        if self._moved and self._calls <= 1:
            self._go_on_eagerly("the step's state moves in memory from call to call")
        else:
            logger.warning("the step's state has moved in memory; capturing its CUDA graphs again")
        self._moved, self._calls = True, 0

    def _drop(self) -> None:
        """Free the graphs and drop their pool, which may still contain outputs; later captures use a new pool."""
        if self._captured:
            with suppress(RuntimeError):  # the device may have failed before
                cuda.synchronize()
            for captured in self._captured.values():
                with suppress(RuntimeError):
                    captured.graph.reset()
        self._captured, self._pool, self.inputs = {}, None, ()


def _addresses(step: Capturable) -> list[int]:
    return [t.data_ptr() for t in step.state()]


def _one_device(step: Capturable, inputs: tuple[Tensor, ...]) -> torch.device:
    """The common device of all tensors. Raises `FastganError` if they are not on one CUDA device."""
    devices = {t.device for t in (*step.state(), *inputs)}
    if len(devices) != 1:
        raise FastganError(f"a CUDA graph needs all tensors on one device, got {', '.join(sorted(map(str, devices)))}")
    if not cuda.is_available():
        raise FastganError("a CUDA graph needs a CUDA device, and there is none")
    return devices.pop()


def _check_like(static: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> None:
    """Raise `FastganError` for inputs that do not match those of the capture."""
    def words(tensors: tuple[Tensor, ...]) -> str:
        return ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}".replace("torch.", "") for t in tensors)

    if [(t.shape, t.dtype, t.device) for t in static] != [(t.shape, t.dtype, t.device) for t in given]:
        raise FastganError(f"this step was captured for {words(static)}, got {words(given) or 'nothing'}; expected "
                           "the same shapes, or a call of the step itself for a short batch")


def _reason(error: Exception) -> str:
    """The message of an error, with its place in the code unless it is a `FastganError`."""
    if isinstance(error, FastganError):
        return first_line(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{first_line(error)} ({type(error).__name__} at {Path(place.filename).name}:{place.lineno})"
