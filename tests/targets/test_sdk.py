"""Finding and importing the package of a runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.targets import sdk
from kdpipe.targets.base import Missing
from kdpipe.targets.errors import StageError


@pytest.fixture
def unloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that is installed and misses a library, as happens with every runtime."""
    (tmp_path / "unloadable_runtime.py").write_text("raise ImportError('libfoo.so.1: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    return "unloadable_runtime"


def test_absent_package_has_reason_and_fix() -> None:
    """A package that is not there is named, with the command that brings it."""
    missing = sdk.absent("no_such_runtime", "pip install no-such-runtime")

    assert missing == Missing(
        "the Python package 'no_such_runtime' is not installed", "pip install no-such-runtime"
    )


def test_present_package_is_neither_absent_nor_broken() -> None:
    """A package that imports is fine."""
    assert sdk.absent("json", "") is None
    assert sdk.broken("json") is None


def test_unloadable_package_is_broken_not_absent(unloadable: str) -> None:
    """`missing` stays cheap and does not see it; `broken` tells in the import's own words."""
    assert sdk.absent(unloadable, "") is None

    broken = sdk.broken(unloadable)

    assert broken is not None
    assert "libfoo.so.1: not found" in broken.reason
    assert unloadable in broken.fix


def test_loading_it_is_a_stage_error(unloadable: str) -> None:
    """A target that needs it fails with the import's own words."""
    with pytest.raises(StageError) as caught:
        sdk.load(unloadable, "pip install it")

    assert caught.value.found == "libfoo.so.1: not found"
    assert caught.value.fix == "pip install it"
