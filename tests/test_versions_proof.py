"""proofs.versions: the requirements of a pair, and the counts."""

from __future__ import annotations

import sys

import pytest

from proofs import versions


@pytest.mark.parametrize(("told", "expected"), [
    ("....\n180 passed in 2.31s\n", (180, 0, 0)), ("x\n1 failed, 3 passed, 2 skipped, 1 error in 9s\n", (3, 2, 2)),
    ("ImportError while loading conftest\n", (0, 1, 0)), ("", (0, 1, 0))],
    ids=["passed", "failed", "not-begun", "killed"])
def test_counts(told, expected):
    assert versions.counts(told) == expected


def test_requirements():
    assert versions.requirement("newest") == "torch"
    assert versions.requirement("2.11") == "torch==2.11.*"
    assert versions.requirement("lowest").startswith("torch==2.")


def test_interpreters_are_found():
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert versions.version_of(versions.interpreter(ours)) == ours
    with pytest.raises(SystemExit, match=r"Python 2\.99: expected it on PATH or in "):
        versions.interpreter("2.99")


def test_its_tests_are_there():
    assert all((versions.ROOT / "tests" / f"test_{name}.py").is_file() for name in versions.TESTS)
