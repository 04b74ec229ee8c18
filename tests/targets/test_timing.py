"""The timing loop, and that everything that travels to a device runs there."""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.device import timing
from kdpipe.targets.device.timing import MOST, time_calls, warm_up

FILES = sorted(Path(timing.__file__).parent.glob("*.py"))


def test_makes_the_calls_asked_for() -> None:
    """With no time to fill, exactly as many calls are made and each has its own time."""
    seen: list[int] = []

    taken = time_calls(seen.append, [10, 20, 30], 7, 0.0)

    assert seen == [10, 20, 30, 10, 20, 30, 10]
    assert taken.shape == (7,)
    assert taken.dtype == np.float64
    assert (taken > 0).all()


def test_starts_where_it_is_told() -> None:
    """`first` continues the turn of the feeds where an earlier loop left it."""
    seen: list[int] = []
    time_calls(seen.append, [10, 20, 30], 2, 0.0, first=2)

    assert seen == [30, 10]


def test_fills_the_time_asked_for() -> None:
    """When the calls are made too soon, it goes on until the time is up."""
    started = time.perf_counter()
    taken = time_calls(time.sleep, [0.001], 1, 0.02)

    assert len(taken) > 1
    assert time.perf_counter() - started >= 0.02


def test_stops_at_most_calls() -> None:
    """A fast model does not fill an hour with measurements, unless so many were asked for."""
    assert len(time_calls(lambda _: None, [0], 1, 3600.0)) == MOST
    assert len(time_calls(lambda _: None, [0], MOST + 1, 3600.0)) == MOST + 1


def test_times_are_milliseconds() -> None:
    """A call that sleeps 2 ms takes at least 2, and not 2000."""
    taken = time_calls(time.sleep, [0.002], 3, 0.0)

    assert (taken >= 2).all()
    assert (taken < 1000).all()


def test_warm_up_ends_when_steady() -> None:
    """A call that takes the same time again and again is steady once the time is up."""
    warmup = warm_up(time.sleep, [0.001], 0.05, tolerance=0.5, limit=100)

    assert warmup.steady
    assert warmup.seconds >= 0.05
    assert warmup.calls >= 10


def test_warm_up_gives_up() -> None:
    """A call that takes longer each time is never steady, and the warm-up ends nevertheless."""
    pause = 0.0005

    def slower(_: object) -> None:
        nonlocal pause
        pause *= 1.1
        time.sleep(pause)

    assert not warm_up(slower, [0], 0.02).steady


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_device_files_are_python_3_8(file: Path) -> None:
    """Each file parses as Python 3.8 and imports the standard library and numpy only."""
    tree = ast.parse(file.read_text("utf-8"), feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }

    assert imported <= {*sys.stdlib_module_names, "numpy"} - {"__future__"}
