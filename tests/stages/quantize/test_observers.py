"""Ranges from histograms, against searches that look at every value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdpipe.stages.quantize.fake import ActivationQuantizer, Grid
from kdpipe.stages.quantize.histograms import BINS, Entropy, LeastSquares
from kdpipe.stages.quantize.observers import MovingRange, Observer, Percentile

EVERY = (MovingRange, Percentile, LeastSquares, Entropy)


def seen(observer: Observer, *batches: Tensor) -> Observer:
    for batch in batches:
        observer.see(batch)
        observer.end_batch()
    return observer


def laplace(count: int, seed: int = 0) -> Tensor:
    """Heavy-tailed values of both signs."""
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def error(x: Tensor, clip: float, levels: int) -> float:
    """Mean squared error of the exact values."""
    step = clip / levels
    return ((x / step).round().clamp(-levels, levels) * step - x).square().mean().item()


@pytest.mark.parametrize("bits", [4, 8])
def test_least_squares_is_the_minimum_over_all_values(bits: int) -> None:
    """Within a percent of the least error of a search of 2000 ranges over the values themselves."""
    x, grid = laplace(50_000), Grid(bits)
    observer = LeastSquares()
    ActivationQuantizer(grid, observer, "x")
    low, high = seen(observer, x).range
    peak = x.abs().max().item()
    best = min(error(x, peak * k / 2000, grid.high) for k in range(20, 2001))

    assert error(x, max(-low, high), grid.high) < 1.02 * best
    assert max(-low, high) < peak


def divergence(counts: list[float], kept: int, levels: int) -> float:
    """KL(P || Q) step by step, as in TensorRT's description."""
    p = [*counts[: kept - 1], sum(counts[kept - 1 :])]
    q = [0.0] * kept
    for level in range(levels):
        bins = [i for i in range(kept) if i * levels // kept == level and counts[i] > 0]
        for i in bins:
            q[i] = sum(counts[j] for j in bins) / len(bins)
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return sum(a * math.log(a / b) if b else math.inf for a, b in zip(p, q, strict=True) if a)


def test_entropy_is_the_minimum_of_the_divergence() -> None:
    """The chosen range is that of a loop over all bins, written down from the slides."""
    observer = Entropy(stride=64)
    seen(observer, laplace(50_000), laplace(50_000, seed=1) * 0.7)
    counts = observer.counts.tolist()
    counts[0] = counts[1]
    kept = min(range(128, BINS + 1, 64), key=lambda i: divergence(counts, i, 128))
    low, high = observer.range

    assert max(-low, high) == pytest.approx(observer.limit * kept / BINS)
    assert kept < BINS


@pytest.mark.parametrize("kind", [LeastSquares, Entropy])
def test_one_outlier_is_clipped(kind: type[Observer]) -> None:
    """Half a million values in -4..4 and one of 40: the range forgets the one."""
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    x[7] = 40.0
    low, high = seen(kind(), x).range

    assert max(-low, high) < 20


@pytest.mark.parametrize("kind", [LeastSquares, Entropy])
def test_histograms_merge_exactly_and_stay_small(kind: type[Observer]) -> None:
    """In any number of batches, each wider than the last: the counts of one look at all values."""
    batches = [laplace(2_000, seed) * 1.7**seed for seed in range(9)]
    observer = seen(kind(), *batches)
    expected = torch.histc(torch.cat(batches).abs(), BINS, 0, observer.limit)

    assert observer.counts.numel() == BINS
    assert observer.counts.sum() == 18_000
    assert (observer.counts - expected).abs().sum() <= 4  # float32 edges of bins
    assert observer.limit >= max(batch.abs().max() for batch in batches)


@pytest.mark.parametrize("kind", EVERY)
def test_a_range_lies_within_what_was_seen(kind: type[Observer]) -> None:
    """Values of one sign give a range of one sign; zeros alone give none to use."""
    low, high = seen(kind(), laplace(5_000).relu()).range

    assert low == 0
    assert 0 < high <= laplace(5_000).max()
    assert seen(kind(), torch.zeros(10)).range == (0, 0)
    assert seen(kind(), torch.zeros(10), laplace(5_000)).range[1] > 0
    assert kind().range is None


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_known(kind: type[Observer], value: float) -> None:
    """Later finite values do not hide it."""
    observer = kind()
    observer.see(torch.tensor([1.0, value]))
    observer.see(torch.tensor([1.0, 2.0]))
    observer.end_batch()

    assert not all(map(math.isfinite, observer.extent))


@pytest.mark.parametrize("kind", EVERY)
def test_reset_forgets(kind: type[Observer]) -> None:
    """The same range as that of a new one."""
    observer = seen(kind(), laplace(4_000) * 100)
    observer.reset()

    assert seen(observer, laplace(4_000, 1)).range == seen(kind(), laplace(4_000, 1)).range


def test_a_policy_takes_any_of_them(quantized, network, images) -> None:
    """Each calibrates a whole network to within a few percent of its outputs' spread."""
    from kdpipe.stages.quantize.policy import Policy

    x = images(64, seed=9)
    with torch.no_grad():
        exact = network("residual")(x)
        for kind in EVERY:
            model = quantized("residual", Policy(observer=kind))
            assert (model(x) - exact).square().mean().sqrt() < 0.08 * exact.std(), kind
