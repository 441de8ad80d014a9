"""`train`, `resume` and `presets`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from fastgan import combinations, presets
from fastgan.cli import help, parsing
from fastgan.config import Config
from fastgan.errors import FastganError
from fastgan.options import option

if TYPE_CHECKING:
    from fastgan.data import Dataset
    from fastgan.trainer import Trainer


@dataclass
class Train:
    """Train a GAN in a new run folder. The defaults are those of the chosen preset."""

    config: OmitArgPrefixes[Config]
    preset: str = "digits"
    """a ready-made experiment; `fastgan presets` lists them"""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """print the settings, the data and the memory of a step, and exit"""


def train(args: list[str]) -> int:
    """`fastgan train`."""
    name = parsing.value_of("--preset", args) or "digits"
    source = parsing.value_of("--data", args) or parsing.value_of("--dataset", args)
    chosen = presets.get(name) if source is None else presets.get(name, source=source)
    if help.wanted(args):
        print("usage: fastgan train [--preset NAME] [options]\n", f"{Train.__doc__}\n",
              *help.entry("--preset NAME", "a ready-made experiment; `fastgan presets` lists them", name),
              *help.entry("-n, --dry-run", "print the settings, the data and the memory of a step, and exit", ""),
              *help.lines(chosen, help.COMMON), "\n--help-all lists all options.", sep="\n")
        return 0
    if "--help-all" in args:
        args = ["--help" if word == "--help-all" else word for word in args]
        help.all_options(lambda: parsing.parse(Train, args, "train", Train(chosen, name)))
    if args and not args[0].startswith("-"):
        raise FastganError(f"unknown argument {args[0]!r}; {_option_for(args[0])}")
    options = parsing.parse(Train, args, "train", Train(chosen, name))
    config = _with_partners(_given_wins(options.config, chosen), chosen, args)
    for values, why in presets.chosen_for(name, source):
        if values.items() <= config.flat().items():  # not overridden by given options
            words = ", ".join(option(key) if value is True else f"{option(key)} {value or 'none'}"
                              for key, value in values.items())
            print(f"{name} chooses {words}: {why}")
    if options.dry_run:
        with _shortage_in_words(config):
            return _dry_run(config)
    from fastgan.trainer import Trainer

    return _fit(lambda: Trainer.launched(config), config)


@dataclass
class Resume:
    """Continue a run from its newest readable checkpoint. Options that affect the results must not change."""

    config: OmitArgPrefixes[Config]
    folder: Positional[Path] = Path()
    """a run folder; the newest in runs/ if not given"""


def resume(args: list[str]) -> int:
    """`fastgan resume`."""
    from fastgan.trainer import run_files

    given = args and not args[0].startswith("-")
    asked_for_help = help.wanted(args)
    folder = Path(args[0]) if given else Path() if asked_for_help else run_files.newest(Path("runs"))
    before = Config() if asked_for_help and not given else run_files.read_options(folder)
    if asked_for_help:
        print("usage: fastgan resume [FOLDER] [options]\n", Resume.__doc__,
              f"\nThese options can change; the defaults are those of {folder if given else 'a new run'}:\n",
              *help.lines(before, run_files.MAY_CHANGE), sep="\n")
        return 0
    options = parsing.parse(Resume, args, "resume", Resume(before, folder))
    config = _given_wins(options.config, before)
    from fastgan.trainer import Trainer

    return _fit(lambda: Trainer.resume(folder, config), config)


@dataclass
class Presets:
    """List the presets, or describe one."""

    name: Positional[str | None] = None
    """preset to describe"""


def list_presets(args: list[str]) -> int:
    """`fastgan presets`."""
    name = parsing.parse(Presets, args, "presets").name
    if name is None:
        for key, function in presets.PRESETS.items():
            print(f"{key:20}{(function.__doc__ or '').splitlines()[0]}")
        return 0
    values, usual = presets.get(name).flat(), Config().flat()
    print((presets.PRESETS[name].__doc__ or "").replace("\n    ", "\n"))
    print("Options that differ from the defaults:")
    print("\n".join(f"  {key} = {value}" for key, value in values.items() if value != usual[key] and key != "preset"))
    return 0


def _option_for(word: str) -> str:
    """A suggestion for an argument that was given without its option."""
    if word in presets.PRESETS:
        return f"did you mean --preset {word}?"
    if Path(word).exists():
        return f"did you mean --data folder:{word}?"
    return "expected options such as --preset digits"


def _given_wins(given: Config, base: Config) -> Config:
    """Let given --epochs and --lr override the more specific `steps`, `lr_g` and `lr_d` of the base."""
    changed = {key for key, value in given.flat().items() if value != base.flat()[key]}
    forget = {"steps": "epochs", "lr_g": "lr", "lr_d": "lr"}
    return given.replace(**{fine: None for fine, coarse in forget.items() if coarse in changed and fine not in changed})


def _with_partners(config: Config, chosen: Config, args: list[str]) -> Config:
    """Set the options whose default depends on the given ones (`combinations.partners`), and print them."""
    before, after = chosen.flat(), config.flat()
    given = {key: value for key, value in after.items()
             if value != before[key] or parsing.value_of(option(key), args) is not None}
    values = combinations.partners(given, config)
    for key, value in values.items():
        print(f"{option(key)} {value}: selected because of other options; give {option(key)} to change it")
    return config.replace(**values)


def _fit(make: Callable[[], Trainer], config: Config) -> int:
    from fastgan.trainer import distributed

    with _shortage_in_words(config), distributed.group() as world:
        trainer = make()
        if world.first and trainer.step.steps < trainer.total:
            facts = _facts(config, trainer.dataset, str(trainer.device), trainer.step.precision, world.size)
            begun = f", of which {trainer.step.steps} are done" * (trainer.step.steps > 0)
            _print_facts({**facts, "steps": facts["steps"] + begun, "folder": str(trainer.folder)})
        folder = trainer.fit()
    if not world.first:
        return 128 + trainer.stopped_by if trainer.stopped_by is not None else 0
    where = [("pictures", f"fakes{trainer.step.steps:06d}.png"), ("loss curves", "losses.png"),
             ("checkpoint", f"checkpoints/step{trainer.step.steps:06d}.pt"), ("generator", "generator.safetensors")]
    print("\n".join(f"{what + ':':13}{folder / name}" for what, name in where))
    if trainer.stopped_by is not None:
        print(f"stopped by {trainer.stopped_by.name}; to continue: fastgan resume {folder}")
        return 128 + trainer.stopped_by
    return 0


@contextmanager
def _shortage_in_words(config: Config) -> Iterator[None]:
    """A context manager that turns an out-of-memory error into a `FastganError` with the batch size that would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from fastgan import memory
        from fastgan.trainer.step_memory import shortage

        if not memory.ran_out(error):
            raise
        raise FastganError(shortage(config)) from error


def _dry_run(config: Config) -> int:
    """Print the configuration and facts of the run; write nothing."""
    from fastgan.data import open_dataset
    from fastgan.data.folder import RULES
    from fastgan.device import pick_device
    from fastgan.train.precision import choose
    from fastgan.trainer.evaluate import open_metrics

    device = pick_device(config.validate().run.device)
    precision = choose(config.run.precision, device)
    dataset = open_dataset(config.data, config.run.seed)
    open_metrics(config, dataset, device)
    print(json.dumps(config.flat(), indent=2))
    facts = _facts(config, dataset, str(device), precision)
    if config.data.source.startswith("folder:"):
        facts["folder rules"] = RULES
    _print_facts(facts)
    return 0


def _facts(config: Config, dataset: Dataset, device: str, precision: str, processes: int = 1) -> dict[str, str]:
    """Facts of the run, and the memory that a step needs in each process."""
    from fastgan.data import Loader
    from fastgan.trainer.step_memory import estimate

    per_epoch = Loader(dataset, config.data, config.run.seed).steps_per_epoch
    classes = len(dataset.classes) if config.data.cond else 0
    need = estimate(config, config.data.batch // processes, precision, dataset.shape, classes)
    return {"data": dataset.summary(),
            "networks": f"generator {need.generator:,} parameters, discriminator {need.discriminator:,}",
            "device": f"{device}{f', {processes} processes' * (processes > 1)}; precision {precision}, "
                      f"engine {config.run.impl}",
            "steps": f"{config.train.total_steps(per_epoch)} ({per_epoch} an epoch)",
            "memory (model)": f"{need.peak / 2**20:,.0f} MB at the peak of a step, including {need.state / 2**20:,.0f} "
                              "MB of weights, gradients and Adam state"}


def _print_facts(facts: dict[str, str]) -> None:
    print("\n".join(f"{what + ':':17}{fact}" for what, fact in facts.items()), flush=True)
