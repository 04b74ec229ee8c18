"""Average precision and curves, against scikit-learn on the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from kdpipe.stages.quality.curves import POINTS, Curves, curves


@pytest.fixture
def made(compared) -> tuple[np.ndarray, np.ndarray, Curves]:
    """Labels, probabilities and what `curves` makes of them: 300 samples of 4 classes."""
    both = compared(300, 4)
    return both.labels, both.own.probability, curves(both.labels, both.own.probability, 0.95)


def test_average_precision_is_that_of_the_samples(made) -> None:
    """Counting how often each of the 16-bit probabilities occurs loses nothing."""
    labels, probability, found = made

    for number, each in enumerate(found.classes):
        exact = average_precision_score(labels == number, probability[:, number].astype(float))
        assert each is not None
        assert each.point == pytest.approx(exact, abs=1e-12)
        assert each.n == (labels == number).sum()
        assert each.low < each.point < each.high
    assert found.mean.point == pytest.approx(np.mean([each.point for each in found.classes]))


def test_precision_is_the_best_at_that_recall_or_more(made) -> None:
    """By hand over all thresholds, of all decisions together and as the mean of classes."""
    labels, probability, found = made
    positive = np.eye(4, dtype=bool)[labels]

    def best(hit: np.ndarray, values: np.ndarray, recall: float) -> float:
        points = [(hit[values >= t].sum() / hit.sum(), hit[values >= t].mean()) for t in values]
        return max(precision for reached, precision in points if reached >= recall - 1e-12)

    for place in (0, 50, 120, 200):
        recall = place / (POINTS - 1)
        micro = best(positive.ravel(), probability.ravel().astype(float), recall)
        macro = np.mean([best(positive[:, c], probability[:, c], recall) for c in range(4)])
        assert found.recall[place] == pytest.approx(recall)
        assert found.micro[place] == pytest.approx(micro)
        assert found.macro[place] == pytest.approx(macro)
    assert len(found.to_dict("samples")["micro"]) == POINTS


def test_a_perfect_ranking_is_one_with_an_exact_bound() -> None:
    """20 positives without a mistake: no worse than 0.05^(1/20)."""
    labels = np.repeat([0, 1], 20)
    probability = np.eye(2, dtype=np.float16)[labels]

    found = curves(labels, probability, 0.95)

    assert found.classes[0] is not None
    assert (found.classes[0].point, found.classes[0].high) == (1, 1)
    assert found.classes[0].low == pytest.approx(0.05 ** (1 / 20))
    assert found.micro.tolist() == found.macro.tolist() == [1] * POINTS


def test_classes_without_samples_have_none(made) -> None:
    """They are left out of the mean, and are not 0."""
    labels, probability, _ = made

    found = curves(np.where(labels == 3, 2, labels), probability, 0.95)

    assert found.classes[3] is None
    assert found.mean.point == pytest.approx(np.mean([e.point for e in found.classes[:3]]))


def test_groups_are_what_counts(made) -> None:
    """As many replicates as groups hold a sample of the class."""
    labels, probability, _ = made

    found = curves(labels, probability, 0.95, np.arange(300) % 7)

    assert [each.n for each in found.classes] == [7] * 4
