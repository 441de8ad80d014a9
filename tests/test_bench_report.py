"""What is made of results: the ablation's check, tables, pictures, one page with nothing outside of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli
from fastgan.bench import ablation, report, results, run, table
from fastgan.bench.results import Row
from fastgan.errors import FastganError
from tests.test_bench import row

CHAIN = {"textbook, NCHW": 1000.0, "+ channels_last": 800.0, "+ fused Adam": 1000.0, "+ fastgan's plan": 500.0,
         "fastgan without frozen": 700.0}


def timed(contender: str, ms: float, workload: str = "step/dcgan-64", batch: int = 64,
          moved: float | None = None) -> Row:
    flops = 1e9 if workload.startswith("operations") else None
    seconds = [ms / 900, ms / 1000, ms / 1100]
    return row(contender, workload=workload, batch=batch).timed(seconds, batch, flops, moved, None)


def chain(**changed: float) -> list[Row]:
    return [timed(name, ms, "ablation/dcgan-64") for name, ms in {**CHAIN, **changed}.items()]


def ends(first: float, last: float) -> list[Row]:
    return [timed(name, ms, "ablation/dcgan-64/total")
            for name, ms in (("textbook, NCHW", first), ("+ fastgan's plan", last))]


def test_an_ablation_that_closes():
    made = ablation.of(chain(), ends(950, 500))
    assert made is not None and made.closes
    assert [link.name for link in made.links] == list(CHAIN)[:4]
    assert [round(link.gain, 3) for link in made.links] == [1, 1.25, 0.8, 2]
    assert made.product == pytest.approx(2) and made.total == pytest.approx(1.9)
    assert "accounts for the whole gain" in made.verdict and "5% apart" in made.verdict


@pytest.mark.parametrize(("rows", "total", "words"), [
    (chain(), ends(1000, 600), "does NOT account for the whole gain"),
    (chain(), [], "was not measured by itself"),
    ([*chain()[:2], row("+ fused Adam", error="wrong: D"), *chain()[3:]], ends(1000, 500), "+ fused Adam: wrong: D")],
    ids=["apart", "without a whole", "without a link"])
def test_an_ablation_that_does_not_close(rows, total, words):
    made = ablation.of(rows, total)
    assert made is not None and not made.closes and words in made.verdict


def test_an_ablation_of_which_nothing_was_timed_does_not_close():
    made = ablation.of([row(name, error="lost") for name in CHAIN], ends(1000, 500))
    assert made is not None and not made.closes and made.missing[0] == "textbook, NCHW: lost"


def test_no_ablation_of_one_link():
    assert ablation.of(chain()[:1], []) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of every kind."""
    path = results.check(tmp_path)
    results.append(path, [timed(name, ms * batch / 64, batch=batch) for batch in (32, 64, 128)
                          for name, ms in (("textbook, NCHW", 1000.0), ("fastgan, plan", 600.0))])
    results.append(path, [row("fastgan, native", batch=64, error="wrong: D | has 3 x the allowed error")])
    results.append(path, [*chain(), *ends(1000, 700)])
    results.append(path, [timed(name, ms, f"operations/dcgan-64/{kind} conv 3x64x64 -> 64", 64, 1e8)
                          for kind in ("conv_forward", "dgrad", "wgrad")
                          for name, ms in (("eager, NCHW", 9.0), ("fastgan, native", 5.0))])
    results.append(path, [timed(name, 4000.0, "training/d2l-dcgan-pokemon", 256)
                          for name in ("textbook, channels_last", "fastgan, native")])
    return tmp_path


def test_tables(folder):
    text = "\n".join(table.tables(results.read(folder / "bench.csv")))
    assert "| fastgan, plan | fp32 | 600 | 545 - 667 | 107 | 1.67 | 1.67 |" in text
    assert "| fastgan, native | fp32 | wrong: D / has 3 x the allowed error |" in text
    assert "| conv_forward conv 3x64x64 -> 64 | 9 | **5** | 0.2 |" in text
    assert "🔴 dcgan-64, batch 64: the ablation does NOT account for the whole gain" in text
    assert "commit abc" in text and "2026-11-23" in text


def test_what_was_published_is_not_what_was_measured(folder):
    lines = "\n".join(table.tables(results.read(folder / "bench.csv"))).splitlines()
    assert [line for line in lines if "2466.6" in line] == [
        "| *published: Dive into Deep Learning, section 17.2; its device is not named* |  |  |  | *2466.6* |  |  |"]
    assert "2466" not in (folder / "bench.csv").read_text()


@pytest.fixture
def written(folder: Path, drawn: dict[str, bytes]) -> Path:
    """With what `report.write` makes of them, which takes seconds, once."""
    if not drawn:
        drawn.update({path.name: path.read_bytes() for path in report.write(folder)})
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return {}


def test_every_picture_is_there_and_none_is_empty(written, drawn):
    folder, files = written, set(drawn)
    assert files == {"README.md", "report.html", "bars-step-dcgan-64-32.png", "bars-step-dcgan-64-64.png",
                     "bars-step-dcgan-64-128.png", "scaling-step-dcgan-64.png", "bars-ablation-dcgan-64-64.png",
                     "ablation-dcgan-64-64.png", "roofline-dcgan-64-64.png", "bars-training-d2l-dcgan-pokemon-256.png"}
    for name in files:
        if name.endswith(".png"):
            pixels = np.asarray(Image.open(folder / name).convert("RGB"))
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, name
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (border == 255).all(), f"{name}: something is cut off"


def test_the_page_holds_all_and_asks_for_nothing(written):
    folder = written
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(list(folder.glob("*.png"))) == page.count('src="data:image/png;base64,')
    assert not re.search(r"https?:|src=\"(?!data:)|href=|@import|url\(|<script", page)
    assert '<p class="bad">dcgan-64' in page and "<strong>5</strong>" in page and "<em>2466.6</em>" in page
    heads = re.findall(r"<tr>(.*?)</tr>", page)
    assert heads[0].count('<th scope="col">') == heads[1].count("<td>") + heads[1].count('<th scope="row">')
    assert all(alt.startswith("Chart: ") for alt in re.findall(r'<img alt="(.*?)"', page))
    for name in folder.glob("*.png"):
        assert f"]({name.name})" in (folder / "README.md").read_text()


def test_nothing_to_report(tmp_path):
    with pytest.raises(FastganError, match="no such file"):
        report.write(tmp_path)
    results.check(tmp_path)
    with pytest.raises(FastganError, match="holds no results yet"):
        report.write(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastgan: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("args", "words"), [
    (["--device", "cuda"], "--device cuda: expected auto or one that is here: --device cpu"),
    (["--suite", "stepp"], "unknown suite 'stepp'; did you mean step"),
    (["--workload", "dcgan64"], "unknown workload 'dcgan64'; did you mean dcgan-64"),
    (["--contenders", "fastgan, nativ"], "unknown contender 'fastgan, nativ'; did you mean fastgan, native"),
    (["--precision", "tf32", "--device", "cpu"], "--precision tf32 on cpu"),
    (["--rounds", "0"], "--rounds 0"), (["--batch", "1"], "--batch 1"), (["--minutes", "-1"], "--minutes -1")])
def test_options_that_cannot_be(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, "bench", *args)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_are_found_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    assert "cannot write there" in fails(capsys, "bench", "--device", "cpu", "--out", str(tmp_path / "file"))
    (tmp_path / "bench.csv").write_text("another,version\n")
    assert "bench.csv has other columns" in fails(capsys, "bench", "--device", "cpu", "--out", str(tmp_path))
    assert "bench.csv has other columns" in fails(capsys, "report", str(tmp_path))
    assert "expected no --out" in fails(capsys, "report", str(tmp_path), "--out", str(tmp_path / "page.html"))


def test_the_command_and_its_report(capsys, monkeypatch, tmp_path):
    def measure(order: run.Order, done: run.Done) -> None:
        done.rows += [timed("textbook, NCHW", 1000.0), timed("fastgan, plan", 500.0)]
        done.late.append("start/dcgan-64, batch 64")
        results.append(done.path, done.rows)
        if order.rounds == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", measure)
    out = str(tmp_path / "out")
    assert cli.main(["bench", "--suite", "step", "--device", "cpu", "--minutes", "5", "--out", out]) == 0
    text = capsys.readouterr().out
    assert "| fastgan, plan | fp32 | 500 |" in text and "no time was left: start/dcgan-64, batch 64" in text
    assert cli.main(["bench", "--device", "cpu", "--rounds", "1", "--out", out]) == 130
    assert capsys.readouterr().err == f"fastgan: interrupted: 2 results are kept in {out}/bench.csv\n"
    assert cli.main(["report", out]) == 0
    assert f"{out}/report.html" in capsys.readouterr().out


def test_the_list_names_everything(capsys):
    assert cli.main(["bench", "--suite", "step", "start", "--device", "cpu", "--list"]) == 0
    text = capsys.readouterr().out
    for line in ("step: whole steps, D and G", "    step/dcgan-64, batch 64", "        * textbook, NCHW",
                 "          torch.compile max-autotune, same work saved", "        * import torch"):
        assert line in text.splitlines()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_in_the_middle(tmp_path):
    """With processes of its own under way, for real; none of them is left."""
    program = [sys.executable, "-m", "fastgan", "bench", "--suite", "step", "--batch", "2", "--device", "cpu",
               "--contenders", "textbook, NCHW", "--rounds", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               # a shell's background job ignores SIGINT, and so would all that it starts
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        while not (tmp_path / "bench.csv").exists() and process.poll() is None:  # imports start processes, too
            time.sleep(0.2)
        while not (children := _children(process.pid)) and process.poll() is None:
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert re.search(r"fastgan: interrupted: \d+ results are kept in .*bench\.csv\n$", err)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert isinstance(results.read(tmp_path / "bench.csv"), list) and out == ""


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "fastgan bench --suite step" in text and "fastgan report DIR" in text
    assert "bench         measure what is fast here" in cli.HELP
