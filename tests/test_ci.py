"""What CI does before its checks, with stand-ins for the commands of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import browser

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="a script for bash")


@pytest.mark.parametrize(("browser_name", "apt_ends_with", "asked", "told"), [
    ("", 0, True, False), ("", 1, True, True), *((name, 0, False, False) for name in browser.NAMES)])
def test_a_browser_is_installed_or_its_tests_are_said_to_be_skipped(tmp_path, browser_name, apt_ends_with, asked, told):
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    names = filter(None, ("make", "g++", "python3", "apt-get", browser_name))
    for name, status in ((name, apt_ends_with if name == "apt-get" else 0) for name in names):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {status}\n')
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "env", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run([str(shutil.which("bash")), ".ci/run"], cwd=tmp_path, env={"PATH": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 0 and "make test" in done.stdout
    assert ("apt-get update" in done.stdout) == asked
    assert ("the browser's tests will be skipped" in done.stderr) == told
