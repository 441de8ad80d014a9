"""Correctness: passes compared with float64, repeats and assemblers bit for bit, replays with eager steps."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from torch import Tensor

from proofs.gpu import jobs, library
from proofs.gpu.child import Worker
from proofs.ptx import batch

BATCH = int(jobs.CHECKED)
STEPS = 10


def passes(worker: Worker) -> None:
    """Each pass of one engine. Variants of Triton's: "triton:ptxas" uses PyTorch's ptxas, "triton:stages1" does not
    pipeline."""
    variant = worker.options["engine"]
    engine = variant.partition(":")[0]
    reason = library.missing(engine)
    if variant.endswith(":ptxas") and not library.torch_ptxas():
        reason = "PyTorch has no ptxas here"
    if reason:
        worker.row("all passes", engine=variant, result="not run", note=reason)
        return
    torch.backends.cudnn.deterministic = True  # otherwise weight gradients are summed in any order
    if variant.endswith(":stages1"):
        library.one_stage()
    for precision in worker.options["precisions"].split():
        found = library.passes(precision, BATCH)
        worker.each([(name, partial(_examine, worker, name, problem, variant, precision))
                     for name, problem in found.items()], engine=variant, precision=precision)
    if variant == "triton":
        worker.each([(run.words, partial(_batch, worker, run)) for run in batch.runs(quick=True)], engine=variant)


def _batch(worker: Worker, run: batch.Run) -> None:
    """A batch gathered from a data set on the device."""
    ours, eager = (batch.gathered(run, gather, library.DEVICE) for gather in (batch.by_kernel, None))
    used, wrong = batch.compare(ours, eager, run.unit_range)
    worker.row(run.words, "of the allowed error", used, engine="triton", result="wrong" if wrong else "ok",
               note="; ".join(wrong))


def _examine(worker: Worker, name: str, problem: object, variant: str, precision: str) -> None:
    engine, given = variant.partition(":")[0], library.Pass(problem)  # type: ignore[arg-type]
    key = {"engine": variant, "precision": precision, "batch": str(BATCH)}
    with library.poisoned():
        first = given(engine)
    used, worst = given.used(first)
    worker.row(name, "of the allowed error", used, result="ok" if used <= 1 else "wrong", note=worst, **key)
    worker.row(name, "bits", _digest(first), result="fact", **key)
    apart = int(sum((_bits(one) != _bits(other)).any().long()
                    for _ in range(library.REPEATS) for one, other in zip(given(engine), first, strict=True)))
    worker.row(name, f"of {library.REPEATS} repeats differ", apart, result="wrong" if apart else "ok", **key)


def _bits(x: Tensor) -> Tensor:
    flat = x.detach().contiguous().view(-1)
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _digest(outputs: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for x in outputs:
        digest.update(_bits(x).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def replays(worker: Worker) -> None:
    """10 replays and 10 eager steps of one engine, in each precision, must have bit for bit the same state."""
    engine = worker.options["engine"]
    if reason := library.missing(engine):
        worker.row("replays", engine=engine, result="not run", note=reason)
        return
    torch.backends.cudnn.deterministic = True
    for precision in worker.options["precisions"].split():
        worker.each([(f"{engine} {precision}", partial(_replay, worker, engine, precision))], engine=engine,
                    precision=precision)


def _replay(worker: Worker, engine: str, precision: str) -> None:
    reals = [library.images(BATCH, seed) for seed in range(STEPS)]
    states: list[list[Tensor]] = []
    for in_graph in (False, True):
        step = library.step(engine, precision, BATCH)
        call = library.graphed(step) if in_graph else step
        torch.manual_seed(7)
        for real in reals:
            call(real)
        if reason := getattr(call, "failure", ""):
            raise RuntimeError(f"no graph: {reason}")
        states.append([tensor.detach().clone() for tensor in step.state()])
    apart = sum(not torch.equal(_bits(one), _bits(other)) for one, other in zip(*states, strict=True))
    moments = [tensor for tensor in step.optimizer_g.tensors() if tensor.is_floating_point()]
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in moments)
    worker.row("10 replays, 10 eager steps", f"of {len(states[0])} tensors differ", apart, engine=engine,
               precision=precision, batch=str(BATCH), result="ok" if apart == 0 and finite else "wrong",
               note="" if finite else "not finite")
