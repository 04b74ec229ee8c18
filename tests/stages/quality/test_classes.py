"""Precision, recall and F1 of each class, confusions and disagreements, against plain counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as reference_matrix
from sklearn.metrics import precision_recall_fscore_support

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.classes import class_reports, class_scores
from kdpipe.stages.quality.confusion import confusion_matrix, top_confusions
from kdpipe.stages.quality.disagreement import disagreement
from kdpipe.stages.statistics import mcnemar_midp, mean_score

NAMES = ("a", "b", "c")


@pytest.fixture
def by_hand() -> Decisions:
    """Eight samples of a and b; the artifact has no answer for the last, the teacher for none."""
    return Decisions(
        labels=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        prediction=np.array([0, 0, 1, 2, 1, 0, 0, -1]),
        teacher_prediction=np.array([0, 0, 0, 2, 1, 1, 2, -1]),
        confidence=np.array([0.9] * 7 + [0], np.float32),
        teacher_confidence=np.array([0.9] * 7 + [0], np.float32),
    )


def test_scores_are_scikit_learns(decided) -> None:
    """Of both models, class by class."""
    made = decided(300, 3)
    expected = precision_recall_fscore_support(made.labels, made.prediction)

    for number in range(3):
        found = class_scores(made.labels, made.prediction, number, 0.95)
        each = (found.precision, found.recall, found.f1)
        for interval, value in zip(each, expected, strict=False):
            assert interval is not None
            assert interval.point == pytest.approx(value[number])
            assert interval.low < interval.point < interval.high


def test_by_hand_each_number_has_its_own_n(by_hand: Decisions) -> None:
    """Of a: 4 labelled, 4 predicted, 2 both, 6 either."""
    found = class_scores(by_hand.labels, by_hand.prediction, 0, 0.95)

    assert found.precision is not None
    assert found.recall is not None
    assert found.f1 is not None
    assert (found.precision.point, found.precision.n) == (0.5, 4)
    assert (found.recall.point, found.recall.n) == (0.5, 4)
    assert (found.f1.point, found.f1.n) == (0.5, 6)


def test_what_cannot_be_counted_is_absent(by_hand: Decisions) -> None:
    """c has no label, and the teacher alone predicts it on label b."""
    _, _, c = class_reports(by_hand, NAMES, 0.95)

    assert (c.support, c.drop, c.own.recall) == (0, None, None)
    assert c.own.precision is not None
    assert c.own.precision.point == 0
    assert c.to_dict("samples")["recall_drop"] is None


def test_the_bounds_of_f1_cover_it() -> None:
    """F1 of one class in 120 samples, whose truth is 2 * 0.24 / (0.30 + 0.24 + 0.07)."""
    rng = np.random.default_rng(0)
    truth = 2 * 0.24 / (0.30 + 0.24 + 0.07)
    inside = []
    for _ in range(300):
        labels = (rng.random(120) < 0.3).astype(np.int64)
        said = np.where(labels == 1, rng.random(120) < 0.8, rng.random(120) < 0.1).astype(np.int64)
        f1 = class_scores(labels, said, 1, 0.95).f1
        assert f1 is not None
        inside.append((f1.low <= truth, truth <= f1.high))

    assert np.mean(inside, axis=0).min() >= 0.94


def test_the_matrix_is_scikit_learns(decided) -> None:
    """With a last column for no class."""
    made = decided(200, 4)
    said = made.prediction.copy()
    said[:7] = -1

    found = confusion_matrix(made.labels, said, 4)

    assert np.array_equal(found[:, :4], reference_matrix(made.labels, said, labels=range(4)))
    assert found[:, 4].tolist() == np.bincount(made.labels[:7], minlength=4).tolist()


def test_confusions_are_sorted_and_compared(by_hand: Decisions) -> None:
    """b for a is the most frequent, and new; no class counts as a confusion too."""
    found = top_confusions(by_hand, NAMES, 0.95)

    said = [(each.true, each.predicted, each.count, each.teacher_count) for each in found]
    assert said == [("b", "a", 2, 0), ("a", "b", 1, 0), ("a", "c", 1, 1), ("b", None, 1, 1)]
    assert found[0].support == 4
    change = found[0].to_dict("samples")["change"]
    assert change["value"] == 0.5
    assert change["low"] < 0.5 < change["high"]


def test_five_cases_hold_every_sample(by_hand: Decisions) -> None:
    """Two that have no answer are wrong differently; c and b for the same sample are, too."""
    found = disagreement(by_hand, 0.95)

    assert found.counts == {
        "both_right": 3,
        "only_teacher_right": 2,
        "only_artifact_right": 0,
        "both_wrong_same": 1,
        "both_wrong_differently": 2,
    }
    assert found.p == mcnemar_midp(2, 0)
    share = found.to_dict()["cases"]["both_right"]["share"]
    expected = mean_score(np.array([1, 1, 1, 0, 0, 0, 0, 0], np.float32), 0.95)
    assert (share["value"], share["low"], share["n"]) == (expected.point, expected.low, 8)


def test_groups_have_no_mcnemar(by_hand: Decisions) -> None:
    """Its p value would count frames of a clip as if they were clips."""
    assert disagreement(by_hand, 0.95, np.repeat(np.arange(4), 2)).p is None


def test_order_does_not_matter(decided) -> None:
    """Samples have no order."""
    made = decided(200, 4)
    turned = Decisions(**{name: each[::-1] for name, each in vars(made).items()})
    names = tuple("abcd")

    pairs = zip(class_reports(turned, names, 0.95), class_reports(made, names, 0.95), strict=True)
    for one, other in pairs:
        assert one.drop is not None
        assert other.drop is not None
        assert vars(one.drop) == pytest.approx(vars(other.drop))
        assert one.to_dict("samples")["artifact"]["f1"] == pytest.approx(
            other.to_dict("samples")["artifact"]["f1"]
        )
    assert top_confusions(turned, names, 0.95) == top_confusions(made, names, 0.95)
    assert disagreement(turned, 0.95).counts == disagreement(made, 0.95).counts


def test_nothing_differs_from_itself(decided) -> None:
    """No losses, no gains, no drop."""
    made = decided(200, 4)
    same = replace(made, teacher_prediction=made.prediction)

    found = disagreement(same, 0.95)

    assert found.counts["only_teacher_right"] == found.counts["only_artifact_right"] == 0
    assert found.counts["both_wrong_differently"] == 0
    assert found.p == 1
    for report in class_reports(same, tuple("abcd"), 0.95):
        assert report.drop is not None
        assert report.drop.drop == 0
