"""The worst class and group: which one it is, and bounds that hold for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.worst import (
    LEAST,
    MOST,
    class_drops,
    group_drops,
    worst_class,
    worst_group,
)
from kdpipe.stages.statistics import paired_drop

NAMES = ("a", "b", "c")


def decisions(labels: np.ndarray, own: np.ndarray, teacher: np.ndarray) -> Decisions:
    sure = np.full(labels.size, 0.9, np.float32)
    return Decisions(labels, own, teacher, sure, sure)


@pytest.fixture
def one_dead() -> Decisions:
    """100 samples of each of three classes; the artifact says c for every b, and is else right."""
    labels = np.repeat(np.arange(3), 100)
    return decisions(labels, np.where(labels == 1, 2, labels), labels.copy())


def test_a_dead_class_is_named_though_the_mean_hides_it(one_dead: Decisions) -> None:
    """A third of the samples is lost, and all of one class."""
    found = worst_class(one_dead, NAMES, 0.95)

    assert (found.name, found.interval.point, found.interval.n) == ("b", 1.0, 100)
    assert found.interval.low > 0.9
    assert (found.interval.high, found.widest, found.parts) == (1.0, "b", 3)


def test_bounds_are_the_largest_of_the_classes_own(decided) -> None:
    """`high` as each class has it at 95 %, `low` where all lower bounds hold together."""
    made = decided(300, 3)
    right, taught = made.prediction == made.labels, made.teacher_prediction == made.labels
    masks = [made.labels == number for number in range(3)]
    plain, safe = (
        [paired_drop(taught[m].astype(float), right[m].astype(float), level) for m in masks]
        for level in (0.95, 1 - 0.05 / 3)
    )

    found = worst_class(made, NAMES, 0.95).interval

    assert found.point == max(drop.drop for drop in plain)
    assert found.high == max(drop.high for drop in plain)
    assert found.low == max(drop.low for drop in safe)


def test_nothing_is_lost_against_oneself(one_dead: Decisions) -> None:
    """Every class drops by 0, however wrong it is, within what 100 samples can show."""
    itself = replace(one_dead, teacher_prediction=one_dead.prediction)

    found = worst_class(itself, NAMES, 0.95).interval

    assert found.point == 0
    assert found.low <= 0 < found.high < 0.05


def test_a_class_without_samples_leaves_the_worst_unknown(one_dead: Decisions) -> None:
    """Nothing bounds what it loses; it is named."""
    found = worst_class(one_dead, (*NAMES, "d", "e"), 0.95)

    assert found.interval.high == math.inf
    assert (found.widest, found.left_out) == ("d", ("d", "e"))
    assert found.to_dict()["drop"]["high"] is None


def test_samples_of_one_patient_prove_no_class(one_dead: Decisions) -> None:
    """A class that a single group holds has no bounds, whatever its samples say."""
    groups = np.repeat(np.arange(3), 100)

    drops = class_drops(one_dead, NAMES, 0.95, groups)

    assert [drop.drop.high for drop in drops] == [math.inf] * 3


def test_bounds_hold_for_the_worst_class_of_many() -> None:
    """20 classes, all 2 points worse but one, 10: its drop is between the bounds in 94 of 100."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 60)
    names = tuple(map(str, range(20)))
    loss = np.where(labels == 7, 0.10, 0.02)
    inside = []
    for _ in range(40):
        teacher = np.where(rng.random(labels.size) < 0.9, labels, -1)
        own = np.where(rng.random(labels.size) < loss / 0.9, -1, teacher)
        found = worst_class(decisions(labels, own, teacher), names, 0.95).interval
        inside.append((found.low <= 0.10, found.high >= 0.10))

    assert np.mean(inside, axis=0).min() >= 0.94


def test_a_group_that_loses_is_found() -> None:
    """Groups of LEAST samples are compared one by one; smaller ones are left out by name."""
    groups = np.repeat([3, 5, 9], [LEAST, LEAST, 4])
    teacher = np.ones(groups.size, np.float32)
    own = np.where(groups == 5, 0, 1).astype(np.float32)

    parts, left_out = group_drops(own, teacher, groups, 0.95)
    found = worst_group(own, teacher, groups, 0.95)

    assert [(part.name, part.drop.drop) for part in parts] == [("group 3", 0), ("group 5", 1)]
    assert left_out == ("group 9",)
    assert found is not None
    assert (found.name, found.interval.high) == ("group 5", math.inf)


def test_crowds_of_groups_are_not_ranked() -> None:
    """Of more than MOST groups the worst would be the unluckiest."""
    groups = np.repeat(np.arange(MOST + 1), LEAST)
    scores = np.ones(groups.size, np.float32)

    assert worst_group(scores, scores, groups, 0.95) is None
    assert worst_group(scores[:LEAST], scores[:LEAST], groups[:LEAST], 0.95) is not None
