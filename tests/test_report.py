"""A run as one page: its content, its size, and damaged, missing or malicious files."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from fastgan import cli, pictures
from fastgan.config import ModelConfig
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.models.pretrained import Pretrained
from fastgan.report import curves, files, write
from fastgan.trainer import Trainer
from fastgan.trainer.lock import Lock

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\" --><!--"


def records(count: int = 20) -> list[dict[str, Any]]:
    return [{"step": 10 * i, "loss_d": 1 / i, "loss_g": float(i), "d_real": 0.9, "d_fake": 0.1,
             "grad_norm_d": 10.0 ** i, "grad_norm_g": 1.0, "diversity": 0.5, "images_per_sec": 100.0 + i}
            for i in range(1, count + 1)]


def log(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def options(folder: Path, config: dict[str, Any] | None = None, **resolved: Any) -> None:
    (folder / "training_options.json").write_text(json.dumps({
        "config": {"preset": "digits", "grid": 4, **(config or {})},
        "resolved": {"device": "cpu", "steps": 200, "shape": [1, 16, 16], **resolved}}))


def draw(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        Image.new("L", (40, 40), 10 * i).save(folder / name)


def generator(folder: Path, classes: list[str]) -> None:
    model = ModelConfig(ngf=4, ndf=4, nz=8)
    made, _ = build(model, (1, 16, 16), len(classes))
    Pretrained(made, model, (1, 16, 16), classes, False).save(folder)


class Tags(HTMLParser):
    """Every tag that a browser would parse, with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small run with every kind of file."""
    run = tmp_path / "00000-digits"
    run.mkdir()
    log(run, [*records(), {"step": 200, "fid": 12.5}])
    options(run, {"snap": 7, "source": HOSTILE}, classes=[HOSTILE, "one"], engine="native")
    draw(run, "fakes_init.png", "fakes000100.png", "fakes000200.png", "reals.png")
    generator(run, [HOSTILE, "one"])
    (run / "metrics.json").write_text(json.dumps({"data": "digits", "images": 500, "fakes": {"score_classes": 9.5},
                                                  "reals": {"score_classes": 10.0}}))
    return run


def told(folder: Path) -> str:
    return write(folder).read_text()


def part(text: str, title: str) -> str:
    """A section as plain text."""
    inside = re.search(rf'<section id="{title}">(.*?)</section>', text, re.S)
    assert inside
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", inside[1])).split())


def test_a_whole_run(folder):
    text = told(folder)
    titles = re.findall("<h3>(.*?)</h3>", text)
    assert titles == ["Losses", "Discriminator output", "Gradient norms", "Diversity", "Throughput", "FID"]
    assert text.count("data:image/png;base64,") == 5 + len(titles), "fakes three times, reals, interpolation, curves"
    assert "200 of 200" in text and "is training" not in text
    assert "score_classes 9.5 10" in part(text, "metrics")
    assert "snap 7 null" in part(text, "options") and "engine native" in part(text, "facts")
    assert "0 to 1, 1 to 2, 2 to 3, class" in part(text, "interpolation")
    assert part(text, "alerts") == "Alerts None in the log."
    assert "Last values: discriminator 0.05, generator 20." in part(text, "curves") and "cannot be" not in text
    assert text.count("<h1>") == 1 and not re.search(r"<img (?!alt=\"\w)", text)
    assert len(re.findall("<th scope=", text)) == len(re.findall("<th[ >]", text))


def test_of_a_real_run(tiny, capsys):
    folder = Trainer(tiny()).fit()
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    text = (folder / "report.html").read_text()
    assert "6 of 6" in text and text.count("data:image/png;base64,") == 10 and "cannot be" not in text


def test_a_run_of_points(tiny):
    folder = Trainer(tiny("d2l-gan-gaussian", source="gaussian")).fit()
    text = told(folder)
    assert "outputs points" in part(text, "interpolation") and "Generated points" in part(text, "samples")


def test_nothing_that_a_folder_says_is_more_than_text(tmp_path):
    folder = tmp_path / "<script>alert(0)<" "\u2044" "script>&<img src=x>"
    folder.mkdir()
    log(folder, [{"step": 1, "loss_d": 1.0, "loss_g": 1.0, "alerts": {"x": HOSTILE}}])
    options(folder, {HOSTILE: HOSTILE, "preset": HOSTILE, "grid": HOSTILE, "pictures": [HOSTILE]}, device=HOSTILE,
            steps=HOSTILE, versions={HOSTILE: HOSTILE}, classes=[HOSTILE], engine=HOSTILE)
    draw(folder, "fakes000001.png", f"fakes000002{HOSTILE.replace('/', '_')}.png")
    generator(folder, [HOSTILE])
    (folder / "metrics.json").write_text(json.dumps({"data": HOSTILE, "images": HOSTILE,
                                                     "fakes": {HOSTILE: HOSTILE}, "reals": {HOSTILE: 1}}))
    text = told(folder)
    assert text.count(html.escape(HOSTILE)) >= 19, "it is shown"
    tags = Tags(text)
    assert [attributes for tag, attributes in tags.found if tag == "script"] == [[]]
    images = [dict(attributes) for tag, attributes in tags.found if tag == "img"]
    assert len(images) == 3 and all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert not any(name.startswith("on") for _, attributes in tags.found for name, _ in attributes)


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched(folder):
    text = told(folder)
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text and "unsafe" not in text
    assert not re.search(r'https?://|src="(?!data:)|href="(?!#)|@import|url\(', text)


def test_an_alert_and_a_step_that_was_not_finite(folder):
    log(folder, [*records(), {"step": 210, "alerts": {"mode collapse": "the fakes grow alike"}}])
    (folder / "nonfinite000211.pt").touch()
    words = part(told(folder), "alerts")
    assert "step 210: the fakes grow alike" in words and "step 211 was not finite" in words


def test_metrics_are_told_with_their_step(folder):
    fid = {"step": 100, "date": "2026-01-02T03:04:05+00:00", "data": "digits", "images": 500, "fakes": {"fid": 7.5}}
    (folder / "metrics.json").write_text(json.dumps({"measured": [
        fid, {**fid, "step": 200, "images": 600, "fakes": {"score_novelty": 0.5}}]}))
    words = part(told(folder), "metrics")
    first, second = words.split("600 fakes")
    assert "500 fakes against digits, after step 100, 2026-01-02" in first and "fid 7.5" in first
    assert "The run has been trained to step 200 since then." in first
    assert "after step 200" in second and "score_novelty 0.5" in second and "since then" not in second


def test_metrics_of_the_log_where_nothing_was_evaluated(folder):
    (folder / "metrics.json").unlink()
    words = part(told(folder), "metrics")
    assert "There is no metrics.json. Metrics in the log, at step 200:" in words and "fid 12.5" in words
    log(folder, records())
    assert part(told(folder), "metrics") == "Metrics There is no metrics.json: the run was not evaluated."


DAMAGES = {
    "training_options.json": [b"", b"{", b"[]", b"\xff\xfe", b'{"config": 3, "resolved": []}', b"[" * 100_000],
    "stats.jsonl": [b"", b"\xff\n3\n{}\n{\"step\": \"x\"}\n", b'{"step": 1, "loss_d": NaN, "loss_g": 1e999}\n' * 3,
                    b'{"step": 1, "loss_d": "<b>", "alerts": [], "images_per_sec": {}}\n', b"[" * 100_000],
    "metrics.json": [b"", b"3", b'{"fakes": 3}'],
    "config.json": [b"", b"{}"], "generator.safetensors": [b"", b"x" * 100], "reals.png": [b"", b"GIF89a"],
    "fakes000100.png": [b"", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>"],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, all_of in DAMAGES.items() for one in all_of],
                         ids=lambda value: value if isinstance(value, str) else repr(value[:12]))
def test_a_damaged_part_costs_nothing_but_itself(folder, name, content):
    log(folder, records(1))
    (folder / name).write_bytes(content)
    text = told(folder)
    assert text.count("<section") == 7 and "</html>" in text
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert re.search('class="missing"|no curves yet', shown), "it says what is missing"


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_missing_part_is_named(folder, name):
    log(folder, records(1))
    (folder / name).unlink()
    text = html.unescape(told(folder))
    told_of = {"fakes000100.png": "picture", "config.json": "no trained generator",
               "generator.safetensors": "no trained generator"}
    assert told_of.get(name, f"There is no {name}") in text


def test_pictures_too_many_are_chosen_evenly(folder):
    for step in range(1, 100):
        draw(folder, f"fakes{step:06d}.png")
    text = told(folder)
    shown = [int(step) for step in re.findall('data-step="(\\d+)"', text)]
    assert len(shown) == 40 and shown[0] == 0 and shown[-1] == 200 and shown == sorted(set(shown))
    assert "40 of 102 pictures are shown, evenly spaced" in text


def test_a_picture_that_declares_too_many_pixels_is_not_decoded(folder):
    header = bytearray((folder / "reals.png").read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = PngImagePlugin._crc32(header[12:29]).to_bytes(4, "big")
    (folder / "reals.png").write_bytes(header)
    with pytest.raises(FastganError, match=r"reals\.png is not a complete PNG"):
        files.picture(folder / "reals.png")


def test_a_log_that_is_being_written(folder):
    with (folder / "stats.jsonl").open("a") as stream:
        stream.write('{"step": 300, "loss_')
    options(folder, steps=1000)
    text = told(folder)
    assert "200 of 1,000" in text and "the run is training or was stopped." in text


def test_a_run_that_goes_on_and_one_that_was_stopped(folder):
    options(folder, steps=1000)
    training = Lock(folder)
    assert "UTC; the run is training." in told(folder)
    training.release()
    assert "UTC; the run was stopped before its end." in told(folder)
    Lock(folder).release()  # the report has released it


def test_facts_are_silent_on_what_there_is_none_of(folder):
    """Ten classes in the data, but none in an unconditional generator."""
    options(folder, classes=[], data="digits: 1797 images, 10 classes")
    words = part(told(folder), "facts")
    assert "10 classes" in words and "none" not in words


@pytest.mark.parametrize(("values", "scale"), [([1.0, 1000.0], "log"), ([1.0, 2.0], "linear"), ([0.0, 1e3], "linear")])
def test_a_logarithmic_scale_only_for_a_large_range(values, scale, monkeypatch):
    scales = []
    monkeypatch.setattr(pictures, "legend_above", lambda axes: scales.append(axes.get_yscale()))
    assert len(list(curves.draw([{"step": i, "grad_norm_d": value} for i, value in enumerate(values)]))) == 1
    assert scales == [scale]


def test_out(folder, tmp_path):
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000 and not (folder / "report.html").exists()


def test_without_a_folder_it_is_of_the_newest_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report"]) == 2 and "no run in runs: expected" in capsys.readouterr().err
    for name in ("00000-digits", "00001-digits"):
        Path("runs", name).mkdir(parents=True)
        options(Path("runs", name))
    assert cli.main(["report"]) == 0 and capsys.readouterr().out == "runs/00001-digits/report.html\n"


def test_a_folder_without_a_run(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert cli.main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert "is not a run folder" in error and error.count("\n") == 1
