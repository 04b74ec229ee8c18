"""The timing loop, and that everything that travels to a device runs there."""

from __future__ import annotations

import ast
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.device import timing
from kdpipe.targets.device.decision import DECISIONS
from kdpipe.targets.device.timing import MOST, time_calls, time_together, warm_up

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


def test_callers_call_at_the_same_time() -> None:
    """Three callers meet inside their calls, which one after the other never could."""
    meeting = threading.Barrier(3, timeout=20)

    found = time_together([lambda _: meeting.wait()] * 3, [0], 4, 0.0)

    assert 3 <= len(found.latency_ms) <= 12
    assert (found.latency_ms > 0).all()
    assert found.seconds > 0


def test_calls_of_the_last_caller_alone_do_not_count() -> None:
    """One caller is a hundred times slower: what it does after the others have ended is no load."""
    calls: list[float] = []

    def slow(pause: float) -> None:
        time.sleep(pause)
        calls.append(pause)

    found = time_together([lambda _: slow(0.0001), lambda _: slow(0.03)], [0], 10, 0.0)

    assert len(calls) == 20
    assert 10 <= len(found.latency_ms) < 20
    assert found.latency_ms.max() / 1e3 <= found.seconds


def test_each_caller_starts_elsewhere() -> None:
    """Callers take the feeds in turn, each from its own place."""
    seen: list[list[int]] = [[], []]
    time_together([seen[0].append, seen[1].append], [10, 20, 30], 3, 0.0)

    assert seen == [[10, 20, 30], [20, 30, 10]]


def test_a_call_that_fails_is_an_error() -> None:
    """What a caller raises is raised, and not a shorter measurement."""

    def fails(_: object) -> None:
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        time_together([lambda _: None, fails], [0], 3, 0.0)


def test_decisions_are_those_of_an_application() -> None:
    """The highest of the second axis, for vectors and for maps."""
    decide = DECISIONS["argmax over axis 1"]
    maps = np.random.default_rng(0).normal(size=(2, 5, 3, 4))

    assert decide(np.array([[0.1, 0.9], [2.0, -1.0]])).tolist() == [1, 0]
    assert decide(maps).shape == (2, 3, 4)
    assert (np.take_along_axis(maps, decide(maps)[:, None], 1)[:, 0] == maps.max(axis=1)).all()


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
