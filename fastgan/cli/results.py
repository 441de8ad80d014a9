"""`evaluate`, `export` and `report`: metrics, exported files and a page of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fastgan.cli import parsing
from fastgan.errors import FastganError


@dataclass
class Evaluate:
    """Compute metrics of a run's generator, print a table, and write metrics.json in the run folder."""

    folder: Positional[Path | None] = None
    """a run folder; the newest in runs/ if not given"""
    metrics: str = ""
    """some of fid,kid,is,score, as in `fastgan train`; if not given, the metrics of the run, otherwise score for data
    with labels and fid for other data"""
    images: int = 2000
    """number of generated images; values from different numbers of images are not comparable"""
    metrics_weights: str | None = None
    """file with InceptionV3's weights for fid, kid and is"""
    against: Path | None = None
    """another run on the same data to compare with; * marks the better value of each metric"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""


def evaluate(args: list[str]) -> int:
    """`fastgan evaluate`."""
    options = parsing.parse(Evaluate, args, "evaluate")
    from fastgan import memory
    from fastgan.trainer import evaluate as measuring
    from fastgan.trainer import run_files

    folder = options.folder or run_files.newest(Path("runs"))
    try:
        results = measuring.evaluate_all([folder, *([] if options.against is None else [options.against])],
                                         options.metrics, images=options.images, weights=options.metrics_weights,
                                         device=options.device)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        raise FastganError(f"--images {options.images}: out of memory while computing the metrics; expected fewer "
                           "images, or more free memory") from error
    print(*measuring.lines(results), *(f"metrics: {one / measuring.FILE}" for one in results), sep="\n")
    return 0


@dataclass
class Export:
    """Export a trained generator for use without fastgan, with a model card that contains a program to run it.

    Before the files are written, their images are compared with fastgan's.
    """

    folder: Positional[Path | None] = None
    """a run folder, a folder with generator.safetensors and config.json, or a netG.pth; the newest run if not given"""
    format: Literal["safetensors", "torch.export", "onnx", "pytorch-example"] = "safetensors"
    """weights and config.json for plain PyTorch | a program for torch.export.load | ONNX | netG.pth and netD.pth as in
    PyTorch's DCGAN example"""
    out: Path | None = None
    """output folder; export/FORMAT in the run folder if not given"""
    push: str | None = None
    """repository of the Hugging Face Hub, such as NAME/digits, to upload the files to"""


def export(args: list[str]) -> int:
    """`fastgan export`."""
    options = parsing.parse(Export, args, "export")
    from fastgan import export as exports
    from fastgan import extras
    from fastgan.trainer import run_facts, run_files

    if options.push is not None:
        extras.load("huggingface_hub", "hub", "--push")
    folder = run_files.newest(Path("runs")) if options.folder is None else options.folder
    home = folder.parent if folder.is_file() else folder
    out = options.out or home / "export" / options.format
    is_run = home == folder
    files = exports.export(
        parsing.load(folder), options.format, out, facts=run_facts.facts(folder) if is_run else None,
        discriminator=run_facts.discriminator(folder) if is_run and options.format == exports.PYTORCH_EXAMPLE else None)
    print(*(out / name for name in files), sep="\n")
    if options.push is not None:
        print(f"pushed: {exports.push(options.push, out, files)}")
    return 0


@dataclass
class Report:
    """Write report.html for a finished or running run: alerts, pictures over time, curves, metrics and options."""

    folder: Positional[Path | None] = None
    """a run folder; the newest in runs/ if not given"""
    out: Path | None = None
    """output file; report.html in the run folder if not given"""


def report(args: list[str]) -> int:
    """`fastgan report`."""
    options = parsing.parse(Report, args, "report")
    from fastgan.report import run
    from fastgan.trainer import run_files

    folder = options.folder or run_files.newest(Path("runs"))
    if not run.is_run(folder):
        raise FastganError(f"{folder} is not a run folder; expected one such as runs/00000-digits")
    if options.out is not None:
        parsing.writable(options.out)
    print(run.write(folder, options.out))
    return 0
