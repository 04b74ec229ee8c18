"""How every benchmark reports: interleaved rounds, medians with their spread, a table and JSON."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdpipe.targets.fingerprint import fingerprint


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; in a round all take turns, in random order."""
    shuffler = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in shuffler.sample(list(variants), len(variants)):
            started = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(title: str, seconds: Mapping[str, list[float]], out: Path | None) -> None:
    """Print median, range and the ratio to the first variant; write all samples to `out`."""
    first = statistics.median(next(iter(seconds.values())))
    machine = fingerprint()
    rounds = len(next(iter(seconds.values())))
    print(f"{title}: {machine.get('cpu')}, {machine.get('cores')} cores, {rounds} rounds")
    print(f"{'variant':<28} {'median ms':>10} {'min':>9} {'max':>9} {'speed':>7}")
    for name, values in seconds.items():
        median, low, high = (1e3 * f(values) for f in (statistics.median, min, max))
        print(f"{name:<28} {median:>10.1f} {low:>9.1f} {high:>9.1f} {1e3 * first / median:>6.2f}x")
    if out:
        content: dict[str, Any] = {"title": title, "seconds": dict(seconds), "machine": machine}
        out.write_text(json.dumps(content, indent=1))
        print(f"samples in {out}")
