"""The package: every folder of code is shipped, layers hold, and the version is one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "stages", "targets")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_code_is_packaged() -> None:
    """A sub-package missing from the list would be dropped from the wheel in silence."""
    found = {
        f"kdpipe.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }

    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_types_are_shipped(folder: str) -> None:
    """Each of the three packages says that it is typed."""
    assert (ROOT / folder / "py.typed").exists()


def test_imports_go_down_only() -> None:
    """pipeline -> stages -> targets, never back."""
    kept = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert "1 kept, 0 broken" in kept.stdout, kept.stdout + kept.stderr


@pytest.mark.parametrize("limit", [400])
def test_files_stay_readable(limit: int) -> None:
    """No file of the package is longer than what one sitting takes."""
    long = {
        path.relative_to(ROOT).as_posix(): count
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > limit
    }

    assert long == {}
