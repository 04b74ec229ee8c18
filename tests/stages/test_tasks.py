"""Tasks: what they promise to the rest of the chain, and what classification means by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.tasks import TASKS, Outcome, Task
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import DataError

TASK = Classification()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_its_own_settings(task: type[Task]):
    """A literal `kind`, a metric, a summary; frozen, and no setting that it does not know."""
    made = task()

    assert made.kind == task.model_fields["kind"].default
    assert task.metric
    assert task.summary
    assert task.model_validate(made.model_dump(mode="json")) == made
    with pytest.raises(ValidationError):
        task.model_validate({"classes": 3})
    with pytest.raises(ValidationError, match="frozen"):
        made.kind = "other"


def test_kinds_are_distinct():
    """A config tells tasks apart by them."""
    kinds = [task.model_fields["kind"].default for task in TASKS]

    assert len(set(kinds)) == len(kinds)


def test_the_highest_logit_wins():
    """Scores are 0 or 1, in the order of the samples."""
    outputs = np.array([[0.1, 0.2, 0.3], [5, -1, 0], [-3, -2, -9]], dtype=np.float32)

    outcome = TASK.outcome(outputs, np.array([2, 1, 1]))

    assert outcome.prediction.tolist() == [2, 0, 1]
    assert outcome.score.tolist() == [1, 0, 1]
    assert outcome.score.dtype == np.float32
    assert outcome.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_wrong(bad: float):
    """Whatever the label, such a row is predicted -1 and scores 0; its neighbours are judged."""
    outputs = np.array([[0, bad, 0], [0, 1, 0], [bad, 0, 0]], dtype=np.float32)

    for label in range(3):
        outcome = TASK.outcome(outputs, np.full(3, label))

        assert outcome.prediction.tolist() == [-1, 1, -1]
        assert outcome.score.tolist() == [0, float(label == 1), 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_against_smoothed_labels(smoothing: float):
    """-sum_c q_c ln p_c, q = (1 - e) onehot + e / C (Szegedy et al. 2016), mean over samples."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(16, 5)), rng.integers(0, 5, 16)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    q = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(q * log_p).sum(axis=1).mean()

    loss = TASK.loss(torch.tensor(logits), torch.tensor(labels), smoothing)

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integer_labels_will_do(dtype: type):
    """Sources store labels as they like; check, loss and outcome take them."""
    labels = np.array([0, 1, 2], dtype=dtype)
    outputs = np.eye(3, dtype=np.float32)

    TASK.check_labels(labels, 3, "train")

    assert TASK.outcome(outputs, labels).score.tolist() == [1, 1, 1]
    assert TASK.loss(torch.from_numpy(outputs), torch.from_numpy(labels)).item() > 0


@pytest.mark.parametrize(
    ("labels", "what", "found"),
    [
        (np.array([0.0, 1.0]), "labels of train are not class numbers", "float64"),
        (np.array([[0, 1]]), "labels of train are not class numbers", r"\(1, 2\)"),
        (np.array([0, 3, -1]), r"2 label\(s\) of train are out of range 0..2", "sample 1: 3"),
        (np.array([0, 255], dtype=np.uint8), "out of range 0..2", "sample 1: 255"),
    ],
)
def test_wrong_labels_are_named(labels: np.ndarray, what: str, found: str):
    """The split, the samples and what they say."""
    with pytest.raises(DataError, match=what) as error:
        TASK.check_labels(labels, 3, "train")

    assert error.match(found)
    assert error.value.fix


def test_agreement_is_sample_by_sample():
    """Two models agree where they predict the same class, right or wrong."""
    agreement = TASK.agreement(np.array([1, 2, 3]), np.array([1, 0, 3]))

    assert agreement.tolist() == [1, 0, 1]
    assert agreement.dtype == np.float32


def test_models_that_answer_nothing_do_not_agree():
    """Two rows of NaN are two failures and no agreement, whichever of the models fails."""
    broken = TASK.outcome(np.full((2, 3), np.nan, np.float32), np.zeros(2, np.int64)).prediction

    assert TASK.agreement(broken, broken).tolist() == [0, 0]
    assert TASK.agreement(broken, np.array([0, 1])).tolist() == [0, 0]


def test_outcomes_are_stored_bit_for_bit(tmp_path: Path):
    """Score and prediction come back with their types."""
    outcome = Outcome(np.array([0.25, 1], dtype=np.float32), np.array([3, -1]))

    outcome.save(tmp_path / "outcome.npz")
    loaded = Outcome.load(tmp_path / "outcome.npz")

    assert np.array_equal(loaded.score, outcome.score)
    assert np.array_equal(loaded.prediction, outcome.prediction)
    assert (loaded.score.dtype, loaded.prediction.dtype) == (np.float32, np.int64)


def test_confidence_is_the_softmax_of_what_was_predicted():
    """In float64, so that logits of +-400 neither overflow nor lose the small ones."""
    outputs = np.array([[400, 399, -400], [1, 3, 2]], dtype=np.float32)
    powers = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)

    outcome = TASK.outcome(outputs, np.array([0, 1]))

    assert outcome.confidence == pytest.approx(expected.max(axis=1), rel=1e-6)
    assert outcome.probability == pytest.approx(expected, abs=5e-4)
    assert (outcome.confidence.dtype, outcome.probability.dtype) == (np.float32, np.float16)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_has_no_probability(bad: float):
    """0 for every class, and a confidence of 0; its neighbours keep theirs."""
    outcome = TASK.outcome(np.array([[0, bad], [0, 0]], dtype=np.float32), np.zeros(2, np.int64))

    assert outcome.confidence.tolist() == [0, 0.5]
    assert outcome.probability.tolist() == [[0, 0], [0.5, 0.5]]


def test_decisions_are_those_of_both_models():
    """With NaN for the confidence of a teacher that an older version stored."""
    labels = np.array([0, 1], dtype=np.uint8)
    own = TASK.outcome(np.array([[3, 0], [np.nan, 0]], dtype=np.float32), labels)
    teacher = TASK.outcome(np.array([[3, 0], [0, 3]], dtype=np.float32), labels)

    found = TASK.decisions(own, teacher, labels)
    old = TASK.decisions(own, Outcome(teacher.score, teacher.prediction), labels)

    assert found.prediction.tolist() == [0, -1]
    assert found.teacher_prediction.tolist() == found.labels.tolist() == [0, 1]
    assert found.labels.dtype == np.int64
    assert found.confidence[1] == 0
    assert np.isfinite(found.teacher_confidence).all()
    assert np.isnan(old.teacher_confidence).all()


def test_confidence_and_probability_are_stored(tmp_path: Path):
    """Bit for bit, as far as they are there."""
    outputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    outcome = TASK.outcome(outputs, np.zeros(9, np.int64))

    for kept in (outcome, replace(outcome, probability=None)):
        kept.save(tmp_path / "outcome.npz")
        loaded = Outcome.load(tmp_path / "outcome.npz")
        for name, expected in vars(kept).items():
            found = getattr(loaded, name)
            assert (found is None) == (expected is None)
            assert found is None or (found.dtype, found.tobytes()) == (
                expected.dtype,
                expected.tobytes(),
            )


def test_older_outcomes_have_neither(tmp_path: Path):
    """A file with score and prediction alone still loads."""
    np.savez_compressed(tmp_path / "old.npz", score=np.ones(2, np.float32), prediction=np.ones(2))

    loaded = Outcome.load(tmp_path / "old.npz")

    assert loaded.confidence is None
    assert loaded.probability is None


def test_batches_are_joined_in_order():
    """As if they had been judged at once."""
    outputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    labels = np.arange(9) % 4
    whole = TASK.outcome(outputs, labels)

    joined = Outcome.joined(
        [TASK.outcome(outputs[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    )

    for name, expected in vars(whole).items():
        assert np.array_equal(getattr(joined, name), expected)


def test_an_outcome_file_is_never_unpickled(tmp_path: Path):
    """An object in the file could run code; reading it is refused."""
    np.savez(tmp_path / "evil.npz", score=np.array([{}], dtype=object), prediction=np.zeros(1))

    with pytest.raises(ValueError, match="allow_pickle"):
        Outcome.load(tmp_path / "evil.npz")
