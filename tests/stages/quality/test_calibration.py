"""ECE against a plain loop over bins, its bias, and the coverage of its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kdpipe.stages.quality import f1
from kdpipe.stages.quality.calibration import (
    calibration_change,
    calibration_error,
    error_of,
    reliability,
)
from kdpipe.stages.statistics.bootstrap import resample


def loop(right: np.ndarray, sure: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, bin by bin: ((m - 1) / 15, m / 15]."""
    total = 0.0
    for m in range(1, 16):
        inside = (sure > (m - 1) / 15) & (sure <= m / 15)
        if inside.any():
            gap = right[inside].mean() - sure[inside].mean()
            total += inside.sum() / sure.size * abs(gap)
    return total


def drawn(count: int, over: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong, and how sure: surer than right by up to `over`."""
    sure = 0.1 + 0.9 * rng.beta(2, 1, count)
    right = rng.random(count) < sure - over * 4 * sure * (1 - sure)
    return right.astype(np.float64), sure


def test_it_is_the_formula_of_the_paper() -> None:
    """On 500 samples that no bin leaves empty."""
    right, sure = drawn(500, 0.1, np.random.default_rng(0))

    found = calibration_error(right, sure, 0.95)

    assert found is not None
    assert found.point == pytest.approx(loop(right, sure))
    assert 0 <= found.low < found.point < found.high


def test_by_hand() -> None:
    """Two samples of confidence 0.8, one right: 0.3 apart. One of 0.5 that is right: 0.5 apart."""
    right, sure = np.array([1.0, 0.0, 1.0]), np.array([0.8, 0.8, 0.5])

    assert error_of(right, sure)(np.arange(3)) == pytest.approx(2 / 3 * 0.3 + 1 / 3 * 0.5)


def test_bins_say_how_sure_and_how_right() -> None:
    """Only those with samples, with the bounds of their accuracy."""
    right, sure = np.array([1.0, 0.0, 1.0]), np.array([0.79, 0.77, 0.5])

    low, high = reliability(right, sure, 0.95)

    assert (low.n, high.n) == (1, 2)
    assert (high.start, high.end) == pytest.approx((11 / 15, 12 / 15))
    assert (high.confidence, high.accuracy.point) == pytest.approx((0.78, 0.5))
    assert high.accuracy.low < 0.5 < high.accuracy.high


def test_an_output_that_is_not_finite_says_nothing_of_confidence() -> None:
    """It would look perfectly calibrated: not sure, and wrong."""
    right, sure = drawn(300, 0.1, np.random.default_rng(1))
    broken = np.concatenate([sure, np.zeros(100)])

    found = calibration_error(np.concatenate([right, np.zeros(100)]), broken, 0.95)

    assert found == calibration_error(right, sure, 0.95)


def test_unknown_confidence_gives_no_number(decided) -> None:
    """None, and not 0, for a teacher whose confidence nobody kept."""
    made = decided(50, 3)
    old = replace(made, teacher_confidence=np.full(50, np.nan, np.float32))

    assert calibration_error(np.ones(50), old.teacher_confidence, 0.95) is None
    assert reliability(np.ones(50), old.teacher_confidence, 0.95) == []
    assert calibration_change(old, 0.95) is None


def test_a_model_is_as_calibrated_as_itself(decided) -> None:
    """The change is 0, within what so many samples can hide."""
    made = decided(200, 3)
    same = replace(made, teacher_prediction=made.prediction, teacher_confidence=made.confidence)

    found = calibration_change(same, 0.95)

    assert found is not None
    assert found.point == 0
    assert found.low < 0 < found.high < 0.02


@pytest.mark.parametrize("over", [0.0, 0.05, 0.2])
def test_bounds_cover_the_true_error(over: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of perfect and of overconfident models, though few samples make the estimate too large."""
    monkeypatch.setattr(f1, "RESAMPLES", 600)  # for speed; 2,000 are steadier
    rng = np.random.default_rng(2)
    right, sure = drawn(2_000_000, over, rng)
    truth = loop(right, sure) if over else 0.0
    found = [calibration_error(*drawn(400, over, rng), 0.95, seed=seed) for seed in range(100)]

    assert np.mean([each.point for each in found]) > truth
    assert np.mean([each.low <= truth for each in found]) >= 0.94
    assert np.mean([truth <= each.high for each in found]) >= 0.94


def test_upper_bounds_are_never_under_the_resamples() -> None:
    """Also where BCa finds no lower bound and brings the upper one down, as it is made to."""
    right, sure = drawn(150, 0.02, np.random.default_rng(5))
    values = resample(error_of(right, sure), 150, resamples=2000, seed=0, span=(0.0, 1.0)).values

    found = calibration_error(right, sure, 0.95)

    assert found is not None
    assert found.high >= np.quantile(values, 0.95)


def test_few_samples_give_no_bounds() -> None:
    """Nineteen stand for no population."""
    found = calibration_error(*drawn(19, 0.1, np.random.default_rng(0)), 0.95)

    assert found is not None
    assert (found.low, found.high) == (0, math.inf)
