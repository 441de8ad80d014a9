"""The subcommands: each parses its options, calls the library, prints what came of it. torch is imported late."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from fastgan import presets
from fastgan.config import Config, nearest
from fastgan.errors import FastganError

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.models.pretrained import Pretrained
    from fastgan.train import Trainer

Options = TypeVar("Options")


def run(name: str, args: list[str]) -> int:
    """The exit code of the subcommand called `name`."""
    if name not in COMMANDS:
        raise FastganError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}")
    return COMMANDS[name](args)


@dataclass
class Train:
    """Train a GAN in a new run folder. The defaults below are those of the chosen preset."""

    config: OmitArgPrefixes[Config]
    preset: str = "digits"
    """ready-made experiment; `fastgan presets` lists them"""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """print what would run, facts of the data and the memory it needs, and stop"""


def train(args: list[str]) -> int:
    name = _value_of("--preset", args) or "digits"
    chosen = presets.get(name)
    options = _parse(Train, args, "train", Train(chosen, name))
    config = _given_wins(options.config, chosen)
    if options.dry_run:
        return _dry_run(config)
    from fastgan.train import Trainer

    return _fit(lambda: Trainer.launched(config), config)


@dataclass
class Resume:
    """Go on with a run where its newest readable checkpoint left it; options may only prolong or relocate it."""

    config: OmitArgPrefixes[Config]
    folder: Positional[Path] = Path()
    """a run folder; the newest one in runs/ when not given"""


def resume(args: list[str]) -> int:
    from fastgan.train import Trainer, runs

    given = args and not args[0].startswith("-")
    asked_for_help = any(word in args for word in ("-h", "--help"))
    folder = Path(args[0]) if given else Path() if asked_for_help else runs.newest(Path("runs"))
    before = Config() if asked_for_help and not given else runs.read_options(folder)
    options = _parse(Resume, args, "resume", Resume(before, folder))
    config = _given_wins(options.config, before)
    return _fit(lambda: Trainer.resume(folder, config), config)


@dataclass
class Sample:
    """Draw a grid of images from a trained generator."""

    folder: Positional[Path | None] = None
    """a run folder, any with generator.safetensors and config.json, or a netG.pth; the newest run when not given"""
    seeds: str = "0-63"
    """latents by seed, such as 0,1,4-6: a seed is the same picture in every grid"""
    label: str | None = None
    """class name or number, for a conditional generator; each in turn when not given"""
    columns: int | None = None
    """images in a row"""
    out: Path = Path("samples.png")
    """picture to write"""


def sample(args: list[str]) -> int:
    from fastgan import pictures
    from fastgan.data import to_uint8

    options = _parse(Sample, args, "sample")
    if options.columns is not None and options.columns < 1:
        raise FastganError(f"--columns {options.columns}: expected 1 or more")
    source, seeds = _load(options.folder), _parse_seeds(options.seeds)
    images = source.draw(source.noise.from_seeds(seeds), _labels(source, options.label, len(seeds)))
    _writable(options.out)
    if len(source.shape) == 1:
        pictures.scatter(options.out, generated=images)
    else:
        pictures.save(pictures.grid(to_uint8(images, source.unit_range), options.columns), options.out)
    print(f"{len(seeds)} samples: {options.out}")
    return 0


@dataclass
class Interpolate:
    """Walk from latent to latent: a strip (png) and an animation (gif)."""

    folder: Positional[Path | None] = None
    """a run folder, any with generator.safetensors and config.json, or a netG.pth; the newest run when not given"""
    seeds: str = "0,1"
    """two or more latents by seed, such as 0,5,7"""
    frames: int = 10
    """images from one latent to the next"""
    label: str | None = None
    """class name or number, for a conditional generator"""
    out: Path = Path("interpolation")
    """writes OUT.png and OUT.gif"""


def interpolate(args: list[str]) -> int:
    from fastgan import pictures
    from fastgan.data import to_uint8

    options = _parse(Interpolate, args, "interpolate")
    source, seeds = _load(options.folder), _parse_seeds(options.seeds)
    if len(seeds) < 2 or options.frames < 2:
        raise FastganError(f"--seeds {options.seeds} --frames {options.frames}: expected at least 2 of each")
    if len(source.shape) == 1:
        raise FastganError("interpolate draws images; this generator makes points, which `fastgan sample` plots")
    z = source.noise.walk(seeds, options.frames)
    images = to_uint8(source.draw(z, _labels(source, options.label or "0", len(z))), source.unit_range)
    strip, moving = options.out.with_suffix(".png"), options.out.with_suffix(".gif")
    _writable(strip)
    pictures.save(pictures.grid(images, options.frames), strip)
    pictures.animation(images, moving)
    print(f"strip: {strip}\nanimation: {moving}")
    return 0


@dataclass
class Evaluate:
    """Measure how good a run's generator is; a table, and metrics.json in the run's folder."""

    folder: Positional[Path | None] = None
    """a run folder; the newest one in runs/ when not given"""
    metrics: str = ""
    """some of fid,kid,is,score, as in `fastgan train`; the run's own when not given, or score where its data has labels
    and fid where not"""
    images: int = 2000
    """fakes that are measured; only measures of equally many can be compared"""
    metrics_weights: str | None = None
    """file with InceptionV3's weights, which fid, kid and is need"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""


def evaluate(args: list[str]) -> int:
    options = _parse(Evaluate, args, "evaluate")
    from fastgan.train import evaluate as measuring
    from fastgan.train import runs

    folder = options.folder or runs.newest(Path("runs"))
    found = measuring.evaluate(folder, options.metrics, images=options.images, weights=options.metrics_weights,
                               device=options.device)
    print(*measuring.lines(found), f"metrics: {folder / measuring.FILE}", sep="\n")
    return 0


@dataclass
class Export:
    """Write a trained generator as files that need no fastgan, with a model card that says how to draw from them.

    The images are compared with fastgan's before anything is written.
    """

    folder: Positional[Path | None] = None
    """a run folder, any with generator.safetensors and config.json, or a netG.pth; the newest run when not given"""
    format: Literal["safetensors", "torch.export", "onnx", "pytorch-example"] = "safetensors"
    """weights and config.json, which ten lines of PyTorch build again | a program for torch.export.load | onnx |
    netG.pth and netD.pth of PyTorch's DCGAN example"""
    out: Path | None = None
    """folder for the files; export/FORMAT in the run folder when not given"""
    push: str | None = None
    """a repository of the Hugging Face Hub, such as NAME/digits, to which the files are uploaded then"""


def export(args: list[str]) -> int:
    options = _parse(Export, args, "export")
    from fastgan.models import exported
    from fastgan.train import runs, trained

    if options.push is not None:
        exported.need("hub", "--push")
    folder = runs.newest(Path("runs")) if options.folder is None else options.folder
    home = folder.parent if folder.is_file() else folder
    out = options.out or home / "export" / options.format
    is_run = home == folder
    files = exported.export(
        _load(folder), options.format, out, facts=trained.facts(folder) if is_run else None,
        discriminator=trained.discriminator(folder) if is_run and options.format == exported.EXAMPLE else None)
    print(*(out / name for name in files), sep="\n")
    if options.push is not None:
        from fastgan.models.exported import hub

        print(f"pushed: {hub.push(options.push, out, files)}")
    return 0


@dataclass
class Presets:
    """List the presets, or explain one."""

    name: Positional[str | None] = None
    """a preset to explain"""


def list_presets(args: list[str]) -> int:
    name = _parse(Presets, args, "presets").name
    if name is None:
        for key, function in presets.PRESETS.items():
            print(f"{key:20}{(function.__doc__ or '').splitlines()[0]}")
        return 0
    values, usual = presets.get(name).flat(), Config().flat()
    print((presets.PRESETS[name].__doc__ or "").replace("\n    ", "\n"))
    print("Options that differ from the defaults:")
    print("\n".join(f"  {key} = {value}" for key, value in values.items() if value != usual[key] and key != "preset"))
    return 0


@dataclass
class Verify:
    """Prove that fastgan computes on this device what eager PyTorch computes, and write a certificate.

    Each stage of a preset's networks, forward and backward, and whole training steps: both by fastgan's engines and by
    eager PyTorch, against float64. The exit code is 1 when something is further from float64 than the rule allows.
    """

    preset: str = "digits"
    """whose networks and training steps; `fastgan presets` lists them"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    impl: Literal["auto", "reference", "native", "triton"] = "auto"
    """the engine to examine: auto is every one that runs here"""
    batch: int | None = None
    """images, an even number; 32 on a GPU and 4 elsewhere when not given"""
    steps: int = 3
    """how many training steps"""
    out: Path = Path("certificate.json")
    """certificate to write: device, versions, and all numbers"""


def verify(args: list[str]) -> int:
    options = _parse(Verify, args, "verify")
    _writable(options.out)
    from fastgan.files import replacing
    from fastgan.train.host import pick_device
    from fastgan.verify import certificate, table

    if pick_device(options.device).type == "cpu":
        # kernels have only Triton's interpreter to run in there, which is chosen before they are imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    found = certificate(options.preset, device=options.device, impl=options.impl, batch=options.batch,
                        steps=options.steps, progress=True)
    print(*table.lines(found), sep="\n")
    with replacing(options.out) as stream:
        stream.write(table.as_json(found).encode())
    print(f"certificate: {options.out}")
    return 0 if found["passed"] else 1


@dataclass
class PlanOptions:
    """Measure which engine is fastest for each pass of each stage here, and remember it: what `--plan auto` does.

    Every candidate is checked against float64 first; a line for each, * for what is taken. The whole training step is
    then timed with the plan and by eager PyTorch, and the faster of the two is what --impl auto will mean.
    """

    preset: str = "digits"
    """whose networks and training step; `fastgan presets` lists them"""
    batch: int | None = None
    """images per step; the preset's own when not given"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N | mps"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """arithmetic of the convolutions, as in `fastgan train`"""
    rounds: int = 5
    """how often each candidate is timed; the median counts"""
    tune: bool = False
    """on a GPU, try Triton's convolutions with several tiles, each of which is compiled first: minutes"""
    export: Path | None = None
    """file for the plan: `fastgan train --plan FILE` computes by it, and measures nothing"""


def plan(args: list[str]) -> int:
    options = _parse(PlanOptions, args, "plan")
    if options.rounds < 1:
        raise FastganError(f"--rounds {options.rounds}: expected 1 or more")
    if options.export is not None:
        _writable(options.export, "--export")
    config = presets.get(options.preset)
    config = config.replace(batch=options.batch or config.data.batch).validate()
    import torch

    from fastgan.models import build
    from fastgan.ops.plan import stored, table
    from fastgan.train import planned
    from fastgan.train.host import pick_device
    from fastgan.train.precision import choose
    from fastgan.train.step import GANStep
    from fastgan.verify.checks import shape_of

    device, shape = pick_device(options.device), shape_of(config)
    generator, discriminator = (network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                                for network in build(config.model, shape))
    step = GANStep(generator, discriminator, config.model, config.train, precision=choose(options.precision, device))
    facts, batch = stored.machine(device), planned.like_a_batch(config.data.batch, shape, False, device)
    made = planned.make(step, batch, facts, anew=True, rounds=options.rounds, tune=options.tune, progress=True)
    print(*(f"{name:14}{fact}" for name, fact in facts.items()), *table.lines(made), sep="\n")
    if options.export is not None:
        stored.export(options.export, made, facts)
        print(f"plan: {options.export}")
    return 0


@dataclass
class Bench:
    """Measure what is fast here, and what earned it; results are appended to OUT/bench.csv.

    Everyone does the same work, each in a process of its own: fastgan's engines, eager PyTorch, torch.compile, and the
    textbook's step with and without the work that fastgan saves. A contender is compared with float64 first, and who is
    wrong is not timed. They take turns in a random order; the medians of the rounds count.

    fastgan bench                                        every suite, until it is done: a quarter of an hour or more

    fastgan bench --suite step --batch 64 128            one suite, two batch sizes

    fastgan bench --suite step --match native --rounds 3     some contenders; --list names all of them

    fastgan bench --suite step --device cuda --out DIR

    fastgan report DIR                                   tables, pictures and one page of it
    """

    suite: tuple[str, ...] = ()
    """step | ablation | training | start | networks | operations | stages | memory; the usual ones when not given"""
    workload: str = ""
    """preset whose networks and steps; dcgan-64 when not given"""
    batch: tuple[int, ...] = ()
    """images per step; what suits the device when not given"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """arithmetic of the convolutions, as in `fastgan train`; the textbook as it stands has fp32 or tf32"""
    contenders: tuple[str, ...] = ()
    """names of those who take part; the usual ones when not given"""
    match: str = ""
    """those whose name has this in it take part"""
    rounds: int = 9
    """turns of each contender"""
    minutes: float | None = None
    """end after about so long: fewer rounds, at least 3, and what is left over is named; no limit when not given"""
    out: Path = Path("bench")
    """folder for bench.csv, to which results are appended as soon as they are there"""
    list: bool = False
    """name suites, workloads and contenders, and measure nothing"""


def bench(args: list[str]) -> int:
    options = _parse(Bench, args, "bench")
    if options.rounds < 1 or (options.minutes is not None and not options.minutes > 0):
        raise FastganError(f"--rounds {options.rounds} --minutes {options.minutes}: expected 1 or more, and above 0")
    if any(batch < 2 for batch in options.batch):
        raise FastganError(f"--batch {' '.join(map(str, options.batch))}: expected 2 or more; statistics need 2 images")
    from fastgan.bench import results, run, table
    from fastgan.train.host import pick_device
    from fastgan.train.precision import choose

    device = pick_device(options.device)
    order = run.Order(device, options.suite, options.workload, options.batch, choose(options.precision, device),
                      options.rounds, options.contenders, options.match, minutes=options.minutes or math.inf)
    run.check(order)
    if options.list:
        print(*run.lines(order), sep="\n")
        return 0
    done = run.Done(results.check(options.out))
    try:
        run.measure(order, done)
    except KeyboardInterrupt:
        print(f"fastgan: interrupted: {len(done.rows)} results are kept in {done.path}", file=sys.stderr)
        return 130
    print(*table.tables(done.rows), sep="\n")
    print(*(f"no time was left: {words}" for words in done.late), f"results: {done.path}",
          f"to draw them: fastgan report {options.out}", sep="\n")
    return 0


@dataclass
class Report:
    """Draw what lies in a folder: a run, or results of `fastgan bench`. Measures nothing.

    Of a run, which may still be going on: report.html with pictures over time, curves, plan, certificate and options.
    Of results, the last run of each workload: README.md with tables, pictures, and report.html, which holds all of it.
    """

    folder: Positional[Path] = Path("bench")
    """a run folder, or one where bench.csv lies"""
    out: Path | None = None
    """page of a run to write; report.html in the folder when not given"""


def report(args: list[str]) -> int:
    options = _parse(Report, args, "report")
    from fastgan.bench import report as results
    from fastgan.report import run

    if run.is_run(options.folder):
        if options.out is not None:
            _writable(options.out)
        print(run.write(options.folder, options.out))
        return 0
    if not (options.folder / results.results.NAME).is_file():
        raise FastganError(f"{options.folder}: neither a run nor results lie there; expected a folder such as "
                           "runs/00000-digits, or one in which `fastgan bench --out` has left bench.csv")
    if options.out is not None:
        raise FastganError(f"--out {options.out}: the pages of results go into their own folder; expected no --out")
    print(*results.write(options.folder), sep="\n")
    return 0


@dataclass
class Cost:
    """Say what a training step must cost at least on a GPU, kernel by kernel: eager PyTorch, fused, and fastgan.

    A model, counted from the step itself; nothing is computed and no GPU is asked. With --gpu cpu the ceilings of this
    machine are measured, and so are steps on it, to stand beside the model.
    """

    preset: str = "dcgan-64"
    """whose networks and training step; `fastgan presets` lists them"""
    batch: int | None = None
    """images per step; the preset's own when not given"""
    gpu: str = "h100"
    """t4 | v100 | a100 | l4 | 4090 | h100 | h200 | b200, or cpu for this machine"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """arithmetic of the convolutions: auto is bf16 where the GPU has it, else fp16; fp32 on a CPU"""
    memory: bool = False
    """the peak memory of a step, which batches fit, and what is saved for the backward passes, instead of time"""


def cost(args: list[str]) -> int:
    options = _parse(Cost, args, "cost")
    from fastgan.verify import cost as model
    from fastgan.verify.cost import measured, memory, table

    found = model.count(options.preset, options.batch, options.gpu, options.precision)
    if options.memory:
        print(*memory.report(found), sep="\n")
        return 0
    times = measured.steps(found.what) if options.gpu == "cpu" else None
    print(*table.lines(found, times), sep="\n")
    return 0


@dataclass
class Doctor:
    """Say what is installed, what can be used, and whether fastgan is ready."""


def doctor(args: list[str]) -> int:
    _parse(Doctor, args, "doctor")
    from fastgan.verify.doctor import report as findings

    for subject, finding in findings():
        print(f"{subject:14}{finding}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train, "resume": resume, "sample": sample, "interpolate": interpolate, "evaluate": evaluate,
    "export": export, "presets": list_presets, "verify": verify, "plan": plan, "bench": bench, "report": report,
    "cost": cost, "doctor": doctor}


def _fit(make: Callable[[], Trainer], config: Config) -> int:
    from fastgan.train import distributed

    try:
        with distributed.group() as world:
            trainer = make()
            folder = trainer.fit()
    except (MemoryError, RuntimeError) as error:
        from fastgan.verify.cost import shortage

        if not shortage.is_one(error):
            raise
        raise FastganError(shortage.words(config)) from error
    if not world.first:
        return 128 + trainer.stopped_by if trainer.stopped_by is not None else 0
    where = [("pictures", f"fakes{trainer.step.steps:06d}.png"), ("loss curves", "losses.png"),
             ("checkpoint", f"checkpoints/step{trainer.step.steps:06d}.pt"), ("generator", "generator.safetensors")]
    print("\n".join(f"{what + ':':13}{folder / name}" for what, name in where))
    if trainer.stopped_by is not None:
        print(f"stopped by {trainer.stopped_by.name}; to go on: fastgan resume {folder}")
        return 128 + trainer.stopped_by
    return 0


def _dry_run(config: Config) -> int:
    """What would run; nothing is written."""
    from fastgan.data import Loader, open_dataset
    from fastgan.train.host import pick_device
    from fastgan.train.loop import length, open_metrics
    from fastgan.train.precision import choose
    from fastgan.verify.cost.counted import Experiment
    from fastgan.verify.cost.memory import estimate

    device = pick_device(config.validate().run.device)
    precision = choose(config.run.precision, device)
    dataset = open_dataset(config.data, config.run.seed)
    open_metrics(config, dataset, device)
    per_epoch = Loader(dataset, config.data, config.run.seed).steps_per_epoch
    classes = len(dataset.classes) if config.data.cond else 0
    need = estimate(Experiment(config, config.data.batch, precision, dataset.shape, classes))
    facts = {"data": dataset.summary(), "device": str(device), "precision": precision,
             "steps": f"{length(config, per_epoch)} ({per_epoch} an epoch)",
             "parameters": f"generator {need['generator']:,}, discriminator {need['discriminator']:,}",
             "memory (model)": f"{need['peak'] / 2**20:,.0f} MB at the peak of a step, {need['state'] / 2**20:,.0f} of "
                               "them weights, gradients and Adam"}
    print(json.dumps(config.flat(), indent=2))
    print("\n".join(f"{what + ':':17}{fact}" for what, fact in facts.items()))
    return 0


def _parse(kind: type[Options], args: list[str], command: str, default: Options | None = None) -> Options:
    """tyro's parse, with its framed error messages brought to one line."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            known = {} if default is None else {"default": default}
            return tyro.cli(kind, args=args, prog=f"fastgan {command}", **known)  # type: ignore[call-overload]
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise FastganError(_one_line(words.getvalue())) from None


def _one_line(framed: str) -> str:
    """The text of tyro's box without its frame, its title and its advice on --help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed).split("For full helptext")[0]
    lines = [line.strip("│ ") for line in text.splitlines() if not re.match(r"[╭╰]", line)]
    return re.sub(r"\s+", " ", " ".join(line for line in lines if line.strip("─ "))).replace(" .", ".").strip()


def _value_of(flag: str, args: list[str]) -> str | None:
    """The value that follows `flag`, in either spelling: --preset NAME, --preset=NAME."""
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _given_wins(given: Config, base: Config) -> Config:
    """Let --epochs and --lr win over the finer `steps`, `lr_g`, `lr_d` that only the base has set."""
    changed = {key for key, value in given.flat().items() if value != base.flat()[key]}
    forget = {"steps": "epochs", "lr_g": "lr", "lr_d": "lr"}
    return given.replace(**{fine: None for fine, coarse in forget.items() if coarse in changed and fine not in changed})


def _load(folder: Path | None) -> Pretrained:
    from fastgan.models.pretrained import Pretrained
    from fastgan.train import runs

    return Pretrained.load(runs.newest(Path("runs")) if folder is None else folder)


def _parse_seeds(text: str) -> list[int]:
    """[0, 1, 4, 5, 6] of "0,1,4-6"."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**63:
            raise FastganError(f"--seeds {text}: expected numbers and ranges such as 0,1,4-6")
        if len(seeds) + last - first >= 10_000:
            raise FastganError(f"--seeds {text}: expected at most 10000 of them")
        seeds += range(first, last + 1)
    return seeds


def _labels(source: Pretrained, label: str | None, count: int) -> Tensor | None:
    """The label of each sample: one for all, or each class in turn; none for an unconditional generator."""
    import torch

    classes = source.classes
    if not classes or label is None:
        return source.labels_in_turn(count)
    if label in classes:
        return torch.full((count,), classes.index(label))
    if label.isdecimal() and int(label) < len(classes):
        return torch.full((count,), int(label))
    raise FastganError(f"--label {label}: expected a class, {', '.join(classes)}, or its number")


def _writable(path: Path, option: str = "--out") -> None:
    if not path.parent.is_dir():
        raise FastganError(f"{option} {path}: no such folder: {path.parent}")
