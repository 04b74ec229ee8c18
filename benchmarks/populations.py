"""Simulated populations whose truth is known, one case for each: what `coverage.py` draws from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages import statistics as st
from kdpipe.stages.statistics.holm import Bounds

Values = NDArray[np.float64]
Draw = Callable[[Generator, float], Bounds]


@dataclass(frozen=True)
class Case:
    """A population, a sample's interval at a confidence, and the `truth` that it has to hold.

    `share`: of the asked number of samples to draw, less than 1 where one takes long. `weak`: a
    bound is known to hold less often than it says, and docs/statistics.md says so.
    """

    question: str
    population: str
    n: str
    truth: float
    draw: Draw
    share: float = 1.0
    weak: bool = False


def cases() -> Iterator[Case]:
    """Every population of every question."""
    yield from drops()
    yield from unpaired()
    yield from scores()
    yield from fractions()
    yield from grouped()
    yield from resampled()
    yield from plain()
    yield from latencies()
    yield from ratios()


# --- scores of 0 and 1 --------------------------------------------------------------------------


def drops() -> Iterator[Case]:
    """Paired 0/1 scores: a share of pairs differs, and loses `drop` on balance."""
    for n, share, drop in [
        (100, 0.04, 0.0),
        (300, 0.01, 0.01),
        (450, 0.01, 0.005),
        (450, 0.05, 0.02),
        (1000, 0.005, 0.0),
        (2000, 0.002, 0.0015),
        (2000, 0.05, 0.02),
        (5000, 0.2, 0.01),
    ]:
        name = f"{share:.1%} of pairs differ, drop {drop:.2%}"
        yield Case("paired drop, 0/1", name, f"{n}", drop, partial(_pairs, n, share, drop))


def _pairs(n: int, share: float, drop: float, rng: Generator, confidence: float) -> Bounds:
    kind = rng.choice(3, size=n, p=[(share + drop) / 2, (share - drop) / 2, 1 - share])
    return st.paired_drop((kind != 1) * 1.0, (kind != 0) * 1.0, confidence)


def unpaired() -> Iterator[Case]:
    """0/1 and fractional scores of two different sets of samples."""
    for n, m, rate, drop in [
        (450, 450, 0.9, 0.01),
        (2000, 500, 0.97, 0.0),
        (100, 100, 0.99, 0.0),
        (5000, 1000, 0.7, 0.05),
    ]:
        draw = partial(_two_rates, n, m, rate, drop)
        yield Case(
            "unpaired drop", f"0/1, {rate:.0%} right, drop {drop:.0%}", f"{n}, {m}", drop, draw
        )
    truth = 8 / 10 - 7 / 10
    draw = partial(_two_fractions, 300, 200)
    yield Case("unpaired drop", "fractions, Beta(8, 2), Beta(7, 3)", "300, 200", truth, draw)


def _two_rates(
    n: int, m: int, rate: float, drop: float, rng: Generator, confidence: float
) -> Bounds:
    before, now = rng.random(n) < rate, rng.random(m) < rate - drop
    return st.unpaired_drop(st.score_summary(before * 1.0), st.score_summary(now * 1.0), confidence)


def _two_fractions(n: int, m: int, rng: Generator, confidence: float) -> Bounds:
    before, now = st.score_summary(rng.beta(8, 2, n)), st.score_summary(rng.beta(7, 3, m))
    return st.unpaired_drop(before, now, confidence)


def scores() -> Iterator[Case]:
    """Mean 0/1 scores, near 0 and 1 too."""
    for n, rate in [(30, 0.9), (90, 0.97), (450, 0.99), (450, 0.5), (1000, 0.001), (5000, 0.97)]:
        draw = partial(_rate, n, rate)
        yield Case("mean score, 0/1", f"{rate:.1%} right", f"{n}", rate, draw)


def _rate(n: int, rate: float, rng: Generator, confidence: float) -> Bounds:
    return st.mean_score((rng.random(n) < rate) * 1.0, confidence)


# --- fractions ----------------------------------------------------------------------------------


def fractions() -> Iterator[Case]:
    """IoU-like scores: skewed, with images lost whole now and then."""
    for n in (30, 200, 1000):
        for a, b in ((8.0, 2.0), (40.0, 0.8)):
            draw = partial(_beta, n, a, b)
            yield Case("mean score, fractions", f"Beta({a:g}, {b:g})", f"{n}", a / (a + b), draw)
    for n, lost in [(100, 0.005), (100, 0.02), (450, 0.005), (450, 0.02), (2000, 0.02)]:
        name = f"small losses, {lost:.1%} of images lost whole"
        truth = 0.02 * 0.8 * (1 - lost) + 0.8 * lost
        yield Case("paired drop, fractions", name, f"{n}", truth, partial(_images, n, lost))


def _beta(n: int, a: float, b: float, rng: Generator, confidence: float) -> Bounds:
    return st.mean_score(rng.beta(a, b, n), confidence)


def _images(n: int, lost: float, rng: Generator, confidence: float) -> Bounds:
    teacher = rng.beta(8, 2, n)
    student = teacher * (1 - rng.beta(2, 98, n)) * (rng.random(n) >= lost)
    return st.paired_drop(teacher, student, confidence)


# --- groups -------------------------------------------------------------------------------------


def grouped() -> Iterator[Case]:
    """Clips or patients whose samples resemble one another; bad ones rare, sizes unlike."""
    for count, mean, correlation, unlike in [
        (5, 0.9, 0.3, False),
        (10, 0.9, 0.05, False),
        (20, 0.9, 0.3, True),
        (60, 0.97, 0.3, False),
        (100, 0.97, 0.3, True),
        (300, 0.9, 0.3, True),
    ]:
        sizes = "1 to 50" if unlike else "10"
        name = f"{mean:.0%} right, correlation {correlation}, {sizes} each"
        draw = partial(_beta_groups, count, mean, correlation, unlike)
        share = 0.3 if unlike else 1.0
        yield Case("mean score, groups", name, f"{count} groups", mean, draw, share)
    for count, bad in [(10, 0.2), (20, 0.05), (60, 0.02), (100, 0.05), (300, 0.05)]:
        loss = 0.5 * bad + 0.01 * (1 - bad)
        draw = partial(_bad_groups, count, bad)
        name = f"{bad:.0%} of groups lose a half, 1 % lost elsewhere"
        yield Case("paired drop, groups", name, f"{count} groups", loss, draw)


def _beta_groups(
    count: int, mean: float, correlation: float, unlike: bool, rng: Generator, confidence: float
) -> Bounds:
    sizes = np.minimum(rng.geometric(0.1, count), 50) if unlike else np.full(count, 10)
    inverse = (1 - correlation) / correlation
    rates = rng.beta(mean * inverse, (1 - mean) * inverse, count)
    groups = np.repeat(np.arange(count), sizes)
    return st.mean_score((rng.random(groups.size) < rates[groups]) * 1.0, confidence, groups)


def _bad_groups(count: int, bad: float, rng: Generator, confidence: float) -> Bounds:
    groups = np.repeat(np.arange(count), 10)
    rates = np.where(rng.random(count) < bad, 0.5, 0.01)[groups]
    student = (rng.random(groups.size) >= rates) * 1.0
    return st.paired_drop(np.ones(groups.size), student, confidence, groups)


# --- any statistic, resampled -------------------------------------------------------------------


def resampled() -> Iterator[Case]:
    """Macro F1 drops of ten unlike classes, AUC, and a mean of skewed groups."""
    priors = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.06, 0.05, 0.04, 0.03, 0.02])
    right = np.linspace(0.97, 0.8, 10)
    truth = _true_f1(priors, right) - _true_f1(priors, right - 0.03)
    for n in (300, 2000):
        draw = partial(_f1_drop, n, priors, right)
        yield Case("bootstrap", "macro F1 drop, 10 classes of 2 to 30 %", f"{n}", truth, draw, 0.2)
    area = float(stats.norm.cdf(1.5 / math.sqrt(2)))
    yield Case("bootstrap", "AUC, a fifth positive", "200", area, partial(_auc, 200), 0.2)
    for n in (30, 100):
        draw = partial(_skewed_mean, n)
        yield Case("bootstrap", "mean of skewed groups", f"{n} groups", 1.0, draw, 0.4)


def _true_f1(priors: Values, right: Values) -> float:
    wrong = priors * (1 - right)
    claimed = priors * right + (wrong.sum() - wrong) / (priors.size - 1)
    return float((2 * priors * right / (priors + claimed)).mean())


def _f1_drop(n: int, priors: Values, right: Values, rng: Generator, confidence: float) -> Bounds:
    classes = priors.size
    labels, luck = rng.choice(classes, size=n, p=priors), rng.random(n)
    other = (labels + rng.integers(1, classes, n)) % classes
    said = [np.where(luck < right[labels] - less, labels, other) for less in (0.0, 0.03)]

    def f1(rows: NDArray[np.int64], answer: NDArray[np.int64]) -> float:
        there, claimed = (np.bincount(x[rows], minlength=classes) for x in (labels, answer))
        hits = labels[rows][labels[rows] == answer[rows]]
        some = there > 0
        both = np.bincount(hits, minlength=classes)[some]
        return float((2 * both / (there + claimed)[some]).mean())

    return st.bootstrap_interval(
        lambda rows: f1(rows, said[0]) - f1(rows, said[1]),
        n,
        confidence,
        resamples=600,
        seed=int(rng.integers(2**31)),
    )


def _auc(n: int, rng: Generator, confidence: float) -> Bounds:
    positive = rng.random(n) < 0.2
    value = rng.standard_normal(n) + 1.5 * positive

    def area(rows: NDArray[np.int64]) -> float:
        ranks, hits = stats.rankdata(value[rows]), positive[rows]
        count = int(hits.sum())
        rest = rows.size - count
        if not count * rest:
            return math.nan
        return float((ranks[hits].sum() - count * (count + 1) / 2) / (count * rest))

    seed = int(rng.integers(2**31))
    return st.bootstrap_interval(area, n, confidence, resamples=600, seed=seed)


def _skewed_mean(count: int, rng: Generator, confidence: float) -> Bounds:
    groups = np.repeat(np.arange(count), 4)
    values = (rng.exponential(1, count)[:, None] * rng.uniform(0.5, 1.5, (count, 4))).ravel()
    seed = int(rng.integers(2**31))
    return st.bootstrap_interval(
        lambda rows: float(values[rows].mean()),
        values.size,
        confidence,
        groups=groups,
        resamples=600,
        seed=seed,
    )


# --- plain quantities: seeds, memory ------------------------------------------------------------


def plain() -> Iterator[Case]:
    """Gains over seeds, and medians of memory over processes."""
    for n in (3, 5, 10):
        yield Case("mean of seeds", "normal", f"{n}", 0.0, partial(_seeds, n))
    for n in (3, 5, 10, 30):
        for name, noise in NOISES.items():
            truth = float(np.median(noise(np.random.default_rng(99), 2_000_000)))
            weak = n < 5 and name.startswith("skewed")
            draw = partial(_memory, n, noise)
            yield Case("median of memory", name, f"{n}", truth, draw, weak=weak)


def _seeds(n: int, rng: Generator, confidence: float) -> Bounds:
    values = rng.standard_normal(n)
    low, high = st.mean_bounds(values, confidence)
    return st.Interval(float(values.mean()), low, high, n, 1.0)


NOISES: dict[str, Callable[[Generator, int], Values]] = {
    "normal": lambda rng, n: 50 + rng.standard_normal(n),
    "skewed (exponential)": lambda rng, n: 50 + rng.exponential(1, n),
    "heavy tails (t, 3)": lambda rng, n: 50 + rng.standard_t(3, n),
    "a tenth takes 20 % more": lambda rng, n: (
        50 + rng.standard_normal(n) + 10 * (rng.random(n) < 0.1)
    ),
}


def _memory(
    n: int, noise: Callable[[Generator, int], Values], rng: Generator, confidence: float
) -> Bounds:
    return st.central(noise(rng, n), confidence)


# --- latencies ----------------------------------------------------------------------------------


def processes(
    rng: Generator, levels: Values, iterations: int = 100, correlation: float = 0.0
) -> list[Values]:
    """Log-normal latencies with 2 % inside a process, each like the one before it."""
    noise = rng.standard_normal((levels.size, iterations))
    if correlation:
        for i in range(1, iterations):
            fresh = math.sqrt(1 - correlation**2) * noise[:, i]
            noise[:, i] = correlation * noise[:, i - 1] + fresh
    return list(levels[:, None] * np.exp(0.02 * noise))


def latencies() -> Iterator[Case]:
    """Mean and percentiles of a typical process: effects between processes, autocorrelation."""
    for count in (5, 10, 20):
        for effect in (0.01, 0.05):
            name = f"{effect:.0%} between processes"
            draw = partial(_mean_latency, count, effect)
            yield Case("latency mean", name, f"{count} x 100", math.exp(0.0002), draw)
    for percentile, count, iterations in [
        (0.5, 5, 100),
        (0.9, 10, 100),
        (0.95, 10, 200),
        (0.99, 20, 200),
    ]:
        for effect, correlation in ((0.0, 0.0), (0.01, 0.5), (0.05, 0.0), (0.01, 0.9)):
            name = f"{effect:.0%} between processes, autocorrelation {correlation:g}"
            truth = math.exp(0.02 * float(stats.norm.ppf(percentile)))
            draw = partial(_percentile, percentile, count, iterations, effect, correlation)
            size = f"{count} x {iterations}"
            yield Case(f"latency p{100 * percentile:g}", name, size, truth, draw, 0.5)


def _mean_latency(count: int, effect: float, rng: Generator, confidence: float) -> Bounds:
    return st.mean_latency(processes(rng, _levels(rng, count, effect)), confidence)


def _percentile(
    percentile: float,
    count: int,
    iterations: int,
    effect: float,
    correlation: float,
    rng: Generator,
    confidence: float,
) -> Bounds:
    samples = processes(rng, _levels(rng, count, effect), iterations, correlation)
    return st.latency_percentile(samples, percentile, confidence)


def _levels(rng: Generator, count: int, effect: float) -> Values:
    return np.exp(effect * rng.standard_normal(count))


Effect = Callable[[Generator, int], Values]
EFFECTS: dict[str, tuple[Effect, Effect]] = {
    "1 % between processes": (
        lambda rng, n: 0.01 * rng.standard_normal(n),
        lambda rng, n: 0.01 * rng.standard_normal(n),
    ),
    "1 and 5 %": (
        lambda rng, n: 0.01 * rng.standard_normal(n),
        lambda rng, n: 0.05 * rng.standard_normal(n),
    ),
    "heavy tails (t, 3)": (
        lambda rng, n: 0.02 * rng.standard_t(3, n),
        lambda rng, n: 0.02 * rng.standard_t(3, n),
    ),
    "both skewed (exponential)": (
        lambda rng, n: 0.03 * (rng.exponential(1, n) - 1),
        lambda rng, n: 0.03 * (rng.exponential(1, n) - 1),
    ),
    "one side skewed (gamma, 4)": (
        lambda rng, n: 0.01 * rng.standard_normal(n),
        lambda rng, n: 0.01 * (rng.gamma(4, 1, n) - 4),
    ),
    "one side skewed (exponential)": (
        lambda rng, n: 0.01 * rng.standard_normal(n),
        lambda rng, n: 0.03 * (rng.exponential(1, n) - 1),
    ),
}


def ratios() -> Iterator[Case]:
    """How much faster: Welch on the processes' mean logs, by unlike sides too."""
    for name, sides in EFFECTS.items():
        for first, second in [(5, 5), (10, 10), (20, 20), (5, 20)]:
            draw = partial(_ratio, first, second, sides)
            weak = name.startswith("one side") or ("skewed" in name and first != second)
            yield Case("latency ratio", name, f"{first}, {second}", 1.0, draw, weak=weak)


def _ratio(
    first: int, second: int, sides: tuple[Effect, Effect], rng: Generator, confidence: float
) -> Bounds:
    reference, artifact = (
        processes(rng, np.exp(side(rng, count)), 20)
        for side, count in zip(sides, (first, second), strict=True)
    )
    return st.latency_ratio(reference, artifact, confidence)
