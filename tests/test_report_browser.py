"""The page of a run in a browser: no console messages, nothing wider than the screen, usable by keyboard."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fastgan.report import write
from tests import test_report
from tests.browser import BINARY, Browser

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
folder = test_report.folder  # a run with everything


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        one = Browser(Path(profile))
        yield one
        one.close()


@pytest.fixture
def report(folder: Path) -> Path:
    test_report.log(folder, [*test_report.records(200), {"step": 2000, "fid": 3.5}])
    return write(folder)


def test_a_run_without_anything_yet(browser, tmp_path):
    test_report.options(tmp_path)
    browser.open(write(tmp_path), 360)
    assert browser.complaints == []
    assert "No pictures of fakes yet." in browser.ask("document.querySelector('#samples').textContent")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_fits_and_can_be_read(browser, report, width, dark):
    browser.open(report, width, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert browser.complaints == []
    assert browser.ask("document.documentElement.scrollWidth") == width
    alts = browser.ask("[...document.images].map(image => image.alt)")
    assert alts and all(len(alt) > 8 for alt in alts)
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    paper, ink = (browser.ask(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert luminance(paper) < 0.05 if dark else luminance(paper) > 0.9
    for selector in ("body", "figcaption", "td", "a, strong, p"):
        other = browser.ask(f"getComputedStyle(document.querySelector('{selector}')).color")
        assert contrast(other, paper) >= 4.5, (selector, ink, other)


def test_the_slider_by_keyboard(browser, report):
    browser.open(report, 1400)
    shown = "[...document.querySelectorAll('[data-step]')].filter(one => one.offsetHeight).map(one => one.dataset.step)"
    said = "[document.querySelector('output').textContent, document.querySelector('#step').ariaValueText]"
    browser.ask("document.querySelector('#step').focus()")
    assert browser.ask("document.querySelector('output').ariaLive") == "polite"
    assert browser.ask("document.querySelector('#step').labels[0].textContent") == "Step"
    for key, step, place in (("End", 200, 3), ("ArrowLeft", 100, 2), ("Home", 0, 1), ("ArrowRight", 100, 2)):
        browser.press(key)
        assert browser.ask(shown) == [str(step)]
        assert browser.ask(said) == [f"step {step}, picture {place} of 3", f"step {step}"]
    assert browser.complaints == []


def test_a_hostile_page_runs_nothing(browser, folder):
    """If something were not escaped, the content security policy would block it."""
    page = write(folder)
    page.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'taken'</script>"
                                                       "<img src=x onerror=\"document.title = 'taken'\">"))
    browser.open(page, 1400)
    assert browser.ask("document.title") == "00000-digits: fastgan"
    assert any("Content Security Policy" in one for one in browser.complaints)


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else math.pow((part + 0.055) / 1.055, 2.4) for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
