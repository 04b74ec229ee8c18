"""The one loop that times a model, alone or several at once, here and on the device."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple  # noqa: UP035 (for Python 3.8)

import numpy as np

MOST = 20_000
"""Calls after which timing stops even if its time is not up, unless more were asked for."""


class Warmup(NamedTuple):
    """How a warm-up went; one that is not `steady` was cut off by its limit."""

    calls: int
    seconds: float
    steady: bool


class Together(NamedTuple):
    """What callers saw that called at the same time.

    `latency_ms`: float64 (n,), of the calls of all callers. `seconds`: how long all were at it.
    """

    latency_ms: "np.ndarray"
    seconds: float


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
    spans = _spans(run, feeds, calls, seconds, first)
    return np.array([stop - start for start, stop in spans], dtype=np.float64) / 1e6


def time_together(
    runs: Sequence[Callable[[Any], Any]], feeds: Sequence[Any], calls: int, seconds: float
) -> Together:
    """Call all `runs` at once, a thread for each, in a closed loop: the next call after the last.

    Every thread goes on as `time_calls` does. Counted are the calls that ended before the first
    thread was done, so that all callers were at work for each of them. The threads share Python's
    interpreter lock, which runtimes give up while they compute. Raises what a call raises.
    """
    together = threading.Barrier(len(runs))

    def caller(number: int) -> List[Tuple[int, int]]:  # noqa: UP006
        together.wait()
        return _spans(runs[number], feeds, calls, seconds, number)

    with ThreadPoolExecutor(len(runs)) as threads:
        spans = list(threads.map(caller, range(len(runs))))
    opened = min(each[0][0] for each in spans)
    closed = min(each[-1][1] for each in spans)
    counted = [stop - start for each in spans for start, stop in each if stop <= closed]
    return Together(np.array(counted, dtype=np.float64) / 1e6, (closed - opened) / 1e9)


def _spans(
    run: Callable[[Any], Any], feeds: Sequence[Any], calls: int, seconds: float, first: int
) -> List[Tuple[int, int]]:  # noqa: UP006
    """When each call started and ended, in nanoseconds."""
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    most = max(calls, MOST)
    taken: List[Tuple[int, int]] = []  # noqa: UP006
    while len(taken) < calls or (len(taken) < most and clock() < end):
        feed = feeds[(first + len(taken)) % len(feeds)]
        start = clock()
        run(feed)
        taken.append((start, clock()))
    return taken
