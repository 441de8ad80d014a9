"""Part four: operations and bytes of each launch of one training step of dcgan-64, relative to those of its layer.

    mma_flops     of the tensor cores / those of the cost model (`benchmarks.launches`), which counts every tap
    load, store   bytes of all accessed 32-byte sectors, each counted once / the bytes of the tensors in the cost model
    l2            bytes of the accessed sectors, counted once per program / the same bytes: L2 reads with a perfect L1
    conflicts     share of the accesses to shared memory that wait for a bank

Limits: tensor cores compute at least what the model counts, and at most 30 % more (layers with fewer than 16 channels
are limited by memory and not checked); accessed memory is within 3 % of the model's bytes. So `benchmarks.counters`
counts what the compiled code does.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import launches
from fastgan import presets
from fastgan.ops.triton.launch import by_name
from fastgan.train.step import GANStep
from proofs.ptx.simulator import PLAIN, Launch, executing
from proofs.ptx.training import given, variants

BATCH, SECTOR = 32, 32
MOST_FLOPS, NEAR, FEW_CHANNELS = 1.3, 0.03, 16
SMALL = 64 * 1024  # bytes; smaller tensors are not checked, because of the unused ends of their sectors


class Row(NamedTuple):
    """One launch; ratios as in the module's docstring, nan if the divisor is 0."""

    launch: int
    kernel: str
    layer: str
    tile: str
    mma_flops: float
    load: float
    store: float
    l2: float
    conflicts: float
    read: float  # MB
    written: float
    million_instructions: float
    instructions_per_mma: float


def row(index: int, launch: Launch) -> Row:
    given, result = by_name(launch.arguments), launch.result
    flops = launches.flops(launch.kernel, given) if min(given.get("CI", 0), given.get("CO", 0)) >= FEW_CHANNELS else 0
    read, written = launches.moved(launch.kernel, given)
    tile = "x".join(str(given[side]) for side in ("BM", "BN", "BK", "BT", "BC") if side in given)
    sectors = {key: SECTOR * result[f"global_{key}"] for key in (
        "load_sectors_unique", "store_sectors_unique", "load_sectors_cta", "store_sectors_cta")}
    return Row(index, launch.kernel.removesuffix("_kernel"), launches.layer(launch.kernel, given), tile,
               _over(result["mma_flops"], flops), _over(sectors["load_sectors_unique"], read),
               _over(sectors["store_sectors_unique"], written),
               _over(sectors["load_sectors_cta"] + sectors["store_sectors_cta"], read + written),
               _over(result["shared_conflicts"], result["shared_wavefronts"]), read / 1e6, written / 1e6,
               result["warp_instructions"] / 1e6, _over(result["warp_instructions"], result["mma_count"]))


def _over(a: float, b: float) -> float:
    return a / b if b else float("nan")


def excess(row: Row) -> Iterator[str]:
    """Messages for the limits that a launch exceeds."""
    if row.mma_flops > MOST_FLOPS or 0 < row.mma_flops < 1:
        yield f"tensor cores compute {row.mma_flops:.2f} x the layer"
    for what, ratio, megabytes in (("load", row.load, row.read), ("store", row.store, row.written)):
        if megabytes * 1e6 > SMALL and abs(ratio - 1) > NEAR:
            yield f"{what}s touch {ratio:.2f} x the tensors' bytes"


def measure(ptxsim: Any) -> list[Row]:
    """Every launch of one step in bfloat16 on sm_80, with D on real and fake images in separate calls."""
    variant = variants(ptxsim, "bf16", 80)["ours"]
    config = presets.get("dcgan-64")
    step = GANStep(variant.generator, variant.discriminator, config.model, config.train)
    rows: list[Row] = []
    with torch.autocast("cpu", torch.bfloat16), executing(
            ptxsim, 80, PLAIN, sectors=True, each=lambda launch: rows.append(row(len(rows), launch))):
        step(given(BATCH).images[0])
    return rows


def prove(ptxsim: Any, out: Path) -> list[str]:
    torch.set_num_threads(2)
    begin = time.perf_counter()
    rows = measure(ptxsim)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in rows)
    print(f"one step of dcgan-64, batch {BATCH}, bf16, sm_80: {len(rows)} launches, "
          f"{time.perf_counter() - begin:.0f} s; {out}")
    print(f"{'':2} {'kernel':13} {'layer':58} {'tile':12} {'mma':>5} {'load':>5} {'store':>5} {'l2':>6} {'bank':>5} "
          f"{'MB':>6}")
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for one in rows:
        kinds.setdefault((one.kernel, one.layer, one.tile), []).append(one)
    for (kernel, layer, tile), (one, *others) in kinds.items():
        print(f"{1 + len(others):2} {kernel:13} {layer:58} {tile:12} {one.mma_flops:5.2f} {one.load:5.2f} "
              f"{one.store:5.2f} {one.l2:6.2f} {one.conflicts:5.2f} {one.read + one.written:6.2f}")
    return [f"traffic: {one.kernel} {one.layer}, tile {one.tile}: {words}" for one in rows for words in excess(one)]
