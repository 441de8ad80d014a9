"""The preparations of CI before its checks, with replacements for the commands of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import browser

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="a script for bash")


def run(folder: Path, commands: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """CI's script on a machine that has only `commands`, with these bodies."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci")
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "env", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return subprocess.run([str(shutil.which("bash")), ".ci/run"], cwd=folder, env={"PATH": str(folder)},
                          capture_output=True, text=True)


@pytest.mark.parametrize(("browser_name", "apt_ends_with", "asked", "told"), [
    ("", 0, True, False), ("", 1, True, True), *((name, 0, False, False) for name in browser.NAMES)])
def test_a_browser_is_installed_or_its_tests_are_said_to_be_skipped(tmp_path, browser_name, apt_ends_with, asked, told):
    commands = {name: f'echo {name} "$@"' for name in ("make", "g++", "python3", browser_name) if name}
    done = run(tmp_path, {**commands, "apt-get": f'echo apt-get "$@"\nexit {apt_ends_with}'})
    assert done.returncode == 0
    for target in ("check", "test", "draws", "aot AOT=--quick", "ptx PTX=--quick"):
        assert f"make {target}" in done.stdout
    assert ("apt-get update" in done.stdout) == asked
    assert ("the browser's tests will be skipped" in done.stderr) == told


@pytest.mark.parametrize("failing", ["check", "test", "draws", "aot", "ptx"])
def test_it_fails_where_one_part_does(tmp_path, failing):
    make = f'echo "$@"\ntest "$1" != {failing}'
    done = run(tmp_path, {"make": make, "g++": "", "python3": "", browser.NAMES[0]: ""})
    assert done.returncode == 1 and failing in done.stdout
