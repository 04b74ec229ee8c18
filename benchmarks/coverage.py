"""How often each interval holds the truth, in samples of populations whose truth is known.

python benchmarks/coverage.py [--runs 2000 | --quick] [--out coverage.json] [--markdown]

A bound of 95 % has to hold in 95 of 100 samples. Counted for each bound alone, over seeded samples
of every population in `populations.py`, with the Monte-Carlo doubt of the count: an exact 95 %
interval. Ends with exit code 1 if a bound certainly holds in less than 94 % (at 95 %).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy
from populations import Case, cases
from power import Power, powers

from kdpipe.stages.statistics.distributions import rate_bounds

RUNS = 2000
QUICK = 300
SLACK = 0.01
"""A bound may hold this much less often than it says."""


@dataclass(frozen=True)
class Row:
    """What was counted for one population: how often each bound held, out of `runs`.

    `width`: the median distance of the two bounds, infinite where most samples gave none.
    """

    question: str
    population: str
    n: str
    runs: int
    low: int
    high: int
    width: float
    weak: bool

    def short(self, confidence: float) -> list[str]:
        """The bounds that certainly hold less often than they may, unless that is known."""
        if self.weak:
            return []
        least = confidence - SLACK
        held = {"low": self.low, "high": self.high}
        return [
            side for side, count in held.items() if rate_bounds(count, self.runs, 0.975)[1] < least
        ]


def main() -> None:
    """Draw, count, print the table, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="samples of each population")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} samples of each population")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="questions that hold this word")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--out", type=Path, help="write counts, seed and versions as JSON")
    options = parser.parse_args()
    started, runs = time.perf_counter(), QUICK if options.quick else options.runs
    chosen = [case for case in cases() if options.only in case.question]
    rows = [measured(case, runs, options.confidence, options.seed) for case in chosen]
    events = [] if options.only else [(p, happened(p, runs, options.seed)) for p in powers()]
    show = markdown if options.markdown else table
    print("\n".join(show(rows, events, options.confidence)))
    if options.out:
        options.out.write_text(json.dumps(report(rows, events, options), indent=1))
    short = [f"{r.question}: {r.population}, {r.n}" for r in rows if r.short(options.confidence)]
    short += [p.what for p, (hits, n) in events if not p.kept(hits, n)]
    print(f"{len(rows)} populations, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if short:
        sys.exit("not as it should be: " + "; ".join(short))


def measured(case: Case, runs: int, confidence: float, seed: int) -> Row:
    """Draw samples of a population, its own stream of random numbers for each."""
    runs = max(50, math.ceil(runs * case.share))
    rng = np.random.default_rng(
        [seed, zlib.crc32(f"{case.question}{case.population}{case.n}".encode())]
    )
    low = high = 0
    widths = np.empty(runs)
    for run in range(runs):
        found = case.draw(rng, confidence)
        low, high = low + (found.low <= case.truth), high + (found.high >= case.truth)
        widths[run] = found.high - found.low
    width = float(np.median(widths))
    return Row(case.question, case.population, case.n, runs, low, high, width, case.weak)


def happened(power: Power, runs: int, seed: int) -> tuple[int, int]:
    """In how many of so many samples the event took place."""
    runs = max(200, math.ceil(runs * power.share))
    rng = np.random.default_rng([seed, zlib.crc32(power.what.encode())])
    return sum(power.event(rng) for _ in range(runs)), runs


def share(count: int, runs: int) -> str:
    """A share of samples with its exact 95 % interval, for example `95.1 (94.4 to 95.7)`."""
    low, high = rate_bounds(count, runs, 0.975)
    return f"{100 * count / runs:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _cells(rows: Sequence[Row]) -> Iterator[list[str]]:
    for row in rows:
        width = f"{row.width:.3g}" if math.isfinite(row.width) else "none"
        counts = [share(row.low, row.runs), share(row.high, row.runs)]
        population = f"{row.population} (known weakness)" if row.weak else row.population
        yield [row.question, population, row.n, *counts, width, f"{row.runs}"]


HEADER = ["question", "population", "n", "low holds, %", "high holds, %", "width", "samples"]
EVENTS = ["event", "should happen", "happened, %", "samples"]
Events = Sequence[tuple[Power, tuple[int, int]]]


def _event_cells(events: Events) -> Iterator[list[str]]:
    for power, (hits, runs) in events:
        yield [power.what, power.wanted, share(hits, runs), f"{runs}"]


def _tables(rows: Sequence[Row], events: Events) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and lines of each table that has any."""
    for header, cells in ((HEADER, _cells(rows)), (EVENTS, _event_cells(events))):
        if lines := list(cells):
            yield header, lines


def table(rows: Sequence[Row], events: Events, confidence: float) -> Iterator[str]:
    """Plain text, one line for each population and event."""
    yield f"nominal {confidence:.1%}"
    for header, cells in _tables(rows, events):
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        for line in [header, *cells]:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield ""


def markdown(rows: Sequence[Row], events: Events, confidence: float) -> Iterator[str]:
    """The same as two Markdown tables."""
    yield f"Nominal {confidence:.1%}; in brackets the Monte-Carlo doubt, an exact 95 % interval."
    for header, cells in _tables(rows, events):
        yield ""
        yield "| " + " | ".join(header) + " |"
        yield "|" + " --- |" * len(header)
        yield from ("| " + " | ".join(line) + " |" for line in cells)


def report(rows: Sequence[Row], events: Events, options: argparse.Namespace) -> dict[str, object]:
    """Everything that was counted, and with what."""
    return {
        "confidence": options.confidence,
        "seed": options.seed,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "coverage": [asdict(row) for row in rows],
        "events": [
            {"what": p.what, "wanted": p.wanted, "happened": hits, "samples": runs}
            for p, (hits, runs) in events
        ],
    }


if __name__ == "__main__":
    main()
