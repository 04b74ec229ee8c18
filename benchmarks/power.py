"""What has to happen, or must not, in samples of simulated populations: alarms and catches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from populations import processes

from kdpipe.stages import statistics as st
from kdpipe.stages.statistics.distributions import rate_bounds


@dataclass(frozen=True)
class Power:
    """An event in a sample, and in which share of samples it should happen: from `least` to `most`.

    `share`: of the asked number of samples to draw, more than 1 where events are rare.
    """

    what: str
    least: float
    most: float
    event: Callable[[Generator], bool]
    share: float = 1.0

    @property
    def wanted(self) -> str:
        """The range in words."""
        if self.least == 0:
            return f"at most {self.most:.1%}"
        return f"at least {self.least:.0%}"

    def kept(self, hits: int, runs: int) -> bool:
        """Whether the count is no proof that it happens too often or too seldom."""
        low, high = rate_bounds(hits, runs, 0.975)
        return high >= self.least and low <= self.most


def powers() -> Iterator[Power]:
    """Every event."""
    for share in (0.03, 0.05):
        what = f"a drop of 2 points is seen: 2,000 samples, {share:.0%} of pairs differ, 95 %"
        yield Power(what, 0.99, 1.0, partial(_drop_seen, 2000, share, 0.02))
    needed = st.samples_to_decide(0.0, 0.05, 0.01, 0.95) or 0
    what = (
        f"a student as good as its teacher passes: 1 point, {needed:,} samples as planned for 80 %"
    )
    yield Power(what, 0.75, 1.0, partial(_passes, needed, 0.05, 0.0, 0.01))
    for share in (0.01, 0.05):
        what = f"a student 1 point worse passes: margin 1 point, 1,000 samples, {share:.0%} differ"
        yield Power(what, 0.0, 0.05, partial(_passes, 1000, share, 0.01, 0.01))
    for count, effect in ((10, 0.02), (10, 0.05), (20, 0.05)):
        what = f"a slowdown of 20 % is seen: {count} processes, {effect:.0%} between them, 95 %"
        yield Power(what, 0.99, 1.0, partial(_slower, count, effect, 1.2, 0.95))
    for confidence in (0.95, 0.995):
        what = (
            f"the same model seems slower (A/A): 10 processes, 2 % between them, {confidence:.1%}"
        )
        yield Power(what, 0.0, 1 - confidence, partial(_slower, 10, 0.02, 1.0, confidence), 2.0)
    for correlation in (0.0, 0.9):
        what = (
            f"any of six regression rules alarms (A/A), Holm at 0.5 %, correlation {correlation:g}"
        )
        yield Power(what, 0.0, 0.005, partial(_alarm, correlation, 0.005))


def _counts(rng: Generator, n: int, share: float, drop: float) -> tuple[int, int]:
    rates = [(share + drop) / 2, (share - drop) / 2, 1 - share]
    losses, gains, _ = rng.multinomial(n, rates)
    return int(losses), int(gains)


def _drop_seen(n: int, share: float, drop: float, rng: Generator) -> bool:
    return st.drop_bounds(*_counts(rng, n, share, drop), n, 0.95)[0] > 0


def _passes(n: int, share: float, drop: float, margin: float, rng: Generator) -> bool:
    return st.drop_bounds(*_counts(rng, n, share, drop), n, 0.95)[1] < margin


def _slower(count: int, effect: float, factor: float, confidence: float, rng: Generator) -> bool:
    before, now = (np.exp(effect * rng.standard_normal(count)) for _ in range(2))
    times = processes(rng, before, 20), processes(rng, factor * now, 20)
    return st.latency_ratio(*times, confidence).high < 1


def _alarm(correlation: float, level: float, rng: Generator) -> bool:
    """Six ratios of 10 processes, their processes disturbed together; none is truly slower."""
    shared = rng.standard_normal((2, 10, 1)) * np.sqrt(correlation)
    logs = 0.02 * (shared + rng.standard_normal((2, 10, 6)) * np.sqrt(1 - correlation))
    p_values = []
    for rule in range(6):
        sides = [st.LogSummary(float(x.mean()), float(x.var(ddof=1)), 10) for x in logs[:, :, rule]]
        p_values.append(st.p_below(lambda c, s=sides: st.ratio_of(s[0], s[1], c), 1.0))
    return any(st.holm(p_values, level))
