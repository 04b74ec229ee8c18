"""Macro F1 against scikit-learn and a plain loop, and the coverage of its bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality import f1
from kdpipe.stages.quality.f1 import f1_of, macro_f1, macro_f1_drop, rarest, resamples


def test_the_point_is_scikit_learns(decided) -> None:
    """Over the classes that have labels; no class (-1) is wrong, and no class of its own."""
    made = decided(200, 4)
    said = made.prediction.copy()
    said[:9] = -1

    found = macro_f1(made.labels, said, 6, 0.95)

    expected = f1_score(made.labels, said, labels=range(4), average="macro")
    assert found.point == pytest.approx(expected)
    assert found.low < found.point < found.high


def test_each_class_counts_the_same() -> None:
    """By hand: TP 3, 1; FP 1, 0; FN 0, 1."""
    labels, said = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1])

    value = f1_of(labels, said, 2)(np.arange(5))

    assert value == pytest.approx((6 / 7 + 2 / 3) / 2)


def test_a_model_does_not_differ_from_itself(decided) -> None:
    """The drop is 0, and as nothing differs in 200 samples, not more than these can hide."""
    made = decided(200, 4)

    found = macro_f1_drop(replace(made, teacher_prediction=made.prediction), 4, 0.95)

    assert found.point == 0
    reach = 1 - 0.05 ** (1 / np.bincount(made.labels).min())
    assert (found.low, found.high) == pytest.approx((-reach, reach))


def test_order_does_not_matter(decided) -> None:
    """Samples have no order."""
    made = decided(200, 4)
    turned = Decisions(**{name: each[::-1] for name, each in vars(made).items()})

    assert macro_f1_drop(turned, 4, 0.95).point == pytest.approx(macro_f1_drop(made, 4, 0.95).point)


def test_the_same_seed_gives_the_same_bounds(decided) -> None:
    """Whoever judges the evidence again gets the same verdict."""
    made = decided(100, 3)

    assert macro_f1_drop(made, 3, 0.95) == macro_f1_drop(made, 3, 0.95)


def test_groups_are_resampled_whole(decided) -> None:
    """Ten copies of every sample are no more evidence than one."""
    made = decided(60, 3)
    copies = Decisions(**{name: np.repeat(each, 10) for name, each in vars(made).items()})
    groups = np.repeat(np.arange(60), 10)

    alone, grouped = macro_f1_drop(made, 3, 0.95), macro_f1_drop(copies, 3, 0.95, groups)

    assert grouped.n == alone.n == 60
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_the_rarest_class_is_counted_in_replicates() -> None:
    """Samples of it, or the groups that hold any."""
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3])

    assert rarest(labels, None) == 2
    assert rarest(labels, groups) == 1


def test_resamples_are_bounded() -> None:
    """2,000 where that is quick, 500 where a million samples are drawn each time."""
    assert (resamples(100), resamples(100_000), resamples(10**7)) == (2000, 1000, 500)


def test_bounds_cover_the_true_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 samples of 3 classes, one of them rare: each bound holds in 94 of 100 at a nominal 95."""
    monkeypatch.setattr(f1, "RESAMPLES", 600)  # for speed; 2,000 are steadier
    rng = np.random.default_rng(1)
    share = np.array([0.6, 0.3, 0.1])

    def draw(count: int) -> Decisions:
        labels = rng.choice(3, count, p=share)
        teacher = np.where(rng.random(count) < 0.9, labels, rng.integers(0, 3, count))
        own = np.where(rng.random(count) < 0.93, teacher, rng.integers(0, 3, count))
        sure = np.ones(count, np.float32)
        return Decisions(labels, own, teacher, sure, sure)

    large = draw(1_000_000)
    every = np.arange(1_000_000)
    truth = f1_of(large.labels, large.teacher_prediction, 3)(every) - f1_of(
        large.labels, large.prediction, 3
    )(every)
    found = [macro_f1_drop(draw(300), 3, 0.95, seed=seed) for seed in range(100)]

    assert np.mean([each.low <= truth for each in found]) >= 0.94
    assert np.mean([truth <= each.high for each in found]) >= 0.94
