"""`import fastgan`: its names, its imports, and its types for a type checker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastgan

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "PIL", "matplotlib", "triton")
STEP = "fastgan.GANStep(net, net, fastgan.config.ModelConfig(), fastgan.config.TrainConfig())"
# imports of torch and other packages are not followed, which would take most of a minute
OPTIONS = """[mypy]
[mypy-torch.*,numpy.*,PIL.*,matplotlib.*,torchvision.*,triton.*,tyro.*]
follow_imports = skip
[mypy-torch.nn,torch.nn.modules,torch.nn.modules.*]
follow_imports = normal
"""


@pytest.mark.parametrize("name", fastgan.__all__)
def test_every_name_is_there(name):
    code = f"import fastgan; thing = fastgan.{name}; from fastgan import {name}; assert thing is {name}"
    exec(code)
    thing = getattr(fastgan, name)
    assert not isinstance(thing, ModuleType) or thing.__name__ == f"fastgan.{name}"


def test_all_names_are_listed():
    assert set(fastgan.__all__) <= set(dir(fastgan))
    namespace: dict[str, object] = {}
    exec("from fastgan import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(fastgan.__all__)
    with pytest.raises(AttributeError, match="module 'fastgan' has no attribute 'nothing'"):
        fastgan.nothing  # noqa: B018


@pytest.mark.parametrize(("code", "there"), [
    ("dir(fastgan), fastgan.__all__, fastgan.__version__", ""),
    ("fastgan.presets.get('digits'), fastgan.Config, fastgan.FastganError", ""), ("fastgan.convert", "torch")])
def test_importing_it_imports_nothing_heavy(code, there):
    program = f"import sys, fastgan; {code}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert there in done.stdout if there else done.stdout.strip() == "[]"


def test_a_type_checker_sees_types(tmp_path):
    lines = {
        "fastgan.convert(net)": "torch.nn.modules.module.Module",
        "fastgan.to_eager(net)": "torch.nn.modules.module.Module",
        "fastgan.Trainer.resume('runs/x').fit()": "pathlib.Path",
        "fastgan.presets.get('digits')": "fastgan.config.Config",
        "fastgan.Pretrained.load('runs/x')": "fastgan.models.pretrained.Pretrained",
        f"fastgan.GraphedStep({STEP})": "fastgan.train.graph.GraphedStep",
        STEP: "fastgan.train.step.GANStep",
        "fastgan.verify.certificate('digits')": "dict[str, Any]",
        "fastgan.FastganError('')": "fastgan.errors.FastganError",
        "fastgan.data.open_dataset(fastgan.Config().data)": "fastgan.data.dataset.Dataset",
        "fastgan.nn.Chain(net).impl": "str", "fastgan.report.write('runs/x')": "pathlib.Path",
        "fastgan.models.DCGANGenerator().nz": "int",
    }
    script, options = tmp_path / "script.py", tmp_path / "mypy.ini"
    script.write_text("import fastgan\nimport torch\n\nnet = torch.nn.Linear(1, 1)\n"
                      + "".join(f"reveal_type({line})\n" for line in lines) + "fastgan.nothing\n")
    options.write_text(OPTIONS)
    arguments = ["--strict", "--config-file", str(options), "--cache-dir", str(tmp_path / "cache"), str(script)]
    done = subprocess.run([sys.executable, "-c", f"from mypy import api; print(api.run({arguments!r})[0])"],
                          capture_output=True, text=True, check=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert re.findall('Revealed type is "(.*)"', done.stdout) == list(lines.values())
    assert re.findall(": error: (.*)", done.stdout) == ['Module has no attribute "nothing"  [attr-defined]']
