"""Labels that contradict each other, rare classes, and classes that calibration lacks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest


def test_duplicates_with_other_labels(run: Callable, pictures: Callable) -> None:
    """Within train and across: told with both classes, counted, and the ceiling it sets."""
    train, held = pictures(30, 0), pictures(12, 1)
    train[11], held[0], held[2] = train[4], train[7], train[8]  # of even and odd numbers

    dataset, heard = run(train, held, allow_leak=True, calibration=8)

    found = dataset.meta["hygiene"]["conflicts"]
    assert found == {"pairs": 2, "eval": 1, "ceiling": 1 - 1 / 12}
    assert heard.about("different labels") == [
        "2 pair(s) of duplicates have different labels: npz/train/7 (1) = npz/eval/0 (0),"
        " npz/train/4 (0) = npz/train/11 (1)"
    ]
    assert heard.about("accuracy of a network that learnt it is at most 0.9167")


def test_duplicates_that_agree(run: Callable, pictures: Callable) -> None:
    """No conflict: equal pictures of one class."""
    train = pictures(30, 0)
    train[6] = train[4]

    dataset, heard = run(train, pictures(12, 1), calibration=8)

    assert dataset.meta["hygiene"]["conflicts"] == {"pairs": 0, "eval": 0, "ceiling": 1}
    assert heard.about("different labels") == []


def test_imbalance(run: Callable, pictures: Callable) -> None:
    """Ratio and effective number of classes, by hand; told from 10 to 1 on."""
    labels = np.array([0] * 33 + [1] * 3)

    dataset, heard = run(
        pictures(36, 0), pictures(4, 1), labels=(labels, np.array([0, 0, 1, 1])), calibration=36
    )

    found = dataset.meta["hygiene"]["balance"]
    entropy = -(33 / 36 * math.log(33 / 36) + 3 / 36 * math.log(3 / 36))
    assert found["ratio"] == pytest.approx(11)
    assert found["effective_classes"] == pytest.approx(math.exp(entropy))
    assert heard.about("11 times as many samples of class 0 (33) as of 1 (3)")


def test_even_classes_are_not_told_of(run: Callable, pictures: Callable) -> None:
    """As many effective classes as there are."""
    dataset, heard = run(pictures(30, 0), pictures(12, 1), calibration=8)

    assert dataset.meta["hygiene"]["balance"]["effective_classes"] == pytest.approx(2)
    assert heard.about("times as many") == []


@pytest.mark.parametrize(("each", "thin"), [(28, 2), (29, 0)])
def test_classes_too_small_to_show_anything(
    run: Callable, pictures: Callable, each: int, thin: int
) -> None:
    """29 right answers of 29 prove 90 % at 95 % confidence (0.9 ** 29 < 0.05), 28 do not."""
    dataset, heard = run(pictures(10, 0), pictures(2 * each, 1), calibration=8)

    assert 0.9**29 < 0.05 < 0.9**28
    assert dataset.meta["hygiene"]["balance"]["thin"] == thin
    assert len(heard.about("fewer than 29 eval samples")) == (thin > 0)


def test_classes_that_calibration_lacks(run: Callable, pictures: Callable) -> None:
    """Three samples for four classes leave one out; its name is told."""
    labels = np.arange(32) % 4, np.arange(8) % 4

    dataset, heard = run(pictures(32, 0), pictures(8, 1), labels=labels, calibration=3)

    assert dataset.meta["hygiene"]["calibration"] == {"samples": 3, "classes_absent": 1}
    assert len(heard.about("no calibration sample of class")) == 1
