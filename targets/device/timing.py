"""The one loop that times a model, on this machine and on the device."""

import time
from typing import Any, Callable, List, NamedTuple, Sequence  # noqa: UP035 (for Python 3.8)

import numpy as np

MOST = 20_000
"""Calls after which timing stops even if its time is not up, unless more were asked for."""


class Warmup(NamedTuple):
    """How a warm-up went; one that is not `steady` was cut off by its limit."""

    calls: int
    seconds: float
    steady: bool


def warm_up(
    run: Callable[[Any], Any],
    feeds: Sequence[Any],
    seconds: float,
    tolerance: float = 0.05,
    limit: float = 5.0,
) -> Warmup:
    """Call `run` until it is steady; caches fill and clocks rise meanwhile.

    Steady: at least `seconds` have passed, and the medians of the last two windows, of a quarter
    of `seconds` and 5 calls at least, differ by `tolerance` at most. Gives up after `limit` times
    `seconds`.
    """
    started = time.perf_counter()
    calls = 0
    before = 0.0
    while True:
        window = time_calls(run, feeds, 5, seconds / 4, first=calls)
        calls += len(window)
        median = float(np.median(window))
        passed = time.perf_counter() - started
        steady = passed >= seconds and abs(median - before) <= tolerance * before
        if steady or passed >= limit * seconds:
            return Warmup(calls, passed, steady)
        before = median


def time_calls(
    run: Callable[[Any], Any],
    feeds: Sequence[Any],
    calls: int,
    seconds: float,
    first: int = 0,
) -> "np.ndarray":
    """Milliseconds of each call of `run`, float64 (n,); `feeds` are taken in turn from `first`.

    Goes on until both `calls` calls are made and `seconds` have passed; when MOST calls are made,
    only `calls` counts. Nothing but `run` is inside the clock.
    """
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    most = max(calls, MOST)
    taken: List[int] = []  # noqa: UP006
    while len(taken) < calls or (len(taken) < most and clock() < end):
        feed = feeds[(first + len(taken)) % len(feeds)]
        start = clock()
        run(feed)
        taken.append(clock() - start)
    return np.array(taken, dtype=np.float64) / 1e6
