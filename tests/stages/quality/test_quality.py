"""`Task.quality` as a whole: what any task says, what a classification and a segmentation add."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evaluate import evaluate
from kdpipe.stages.images import StoredMaps
from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.quality.report import report
from kdpipe.stages.quality.robustness import Robustness, robustness
from kdpipe.stages.quality.summary import artifact_summary, teacher_summary
from kdpipe.stages.tasks import Outcome, Task
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation

TASK = Classification()


def maps(seed: int = 0) -> Compared:
    """24 label maps of three classes of which two occur, and a student that errs more."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (24, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    labels[:, 0] = 255

    def said(share: float) -> Outcome:
        wrong = rng.random(labels.shape) < share
        classes = np.where(wrong, 1 - np.minimum(labels, 1), np.minimum(labels, 1))
        logits = np.eye(3, dtype=np.float32)[classes].transpose(0, 3, 1, 2)
        return Segmentation().outcome(logits, labels)

    ids = tuple(f"s{number}" for number in range(24))
    return Compared(said(0.3), said(0.1), labels, ("a", "b", "c"), ids)


def estimates(value: Any) -> Iterator[dict[str, Any]]:
    """All numbers with bounds in a result, however deep."""
    if isinstance(value, dict):
        if "unit" in value:
            yield value
        for each in value.values():
            yield from estimates(each)
    elif isinstance(value, list):
        for each in value:
            yield from estimates(each)


@pytest.mark.parametrize("task", ["classification", "grouped", "segmentation"])
def test_every_number_has_unit_n_and_bounds(compared, task: str) -> None:
    """Strict JSON, in which each bound holds its number."""
    if task == "segmentation":
        found = Segmentation().quality(maps())
    else:
        groups = np.arange(300) % 30 if task == "grouped" else None
        found = TASK.quality(compared(300, 3, groups))

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    numbers = list(estimates(found))
    assert len(numbers) > 20
    for number in numbers:
        assert set(number) == {"value", "low", "high", "n", "counted", "unit"}
        assert number["n"] > 0
        assert number["low"] is None or number["low"] <= number["value"]
        assert number["high"] is None or number["value"] <= number["high"]


def test_a_copy_of_the_teacher_loses_nothing(compared) -> None:
    """Every drop and change is 0, and there is no sample to show."""
    for task, both in ((TASK, compared(200, 3)), (Segmentation(), maps())):
        found = task.quality(replace(both, own=both.teacher))

        drops = [found["score"]["drop"], found["worst_class"]["drop"]]
        if task is TASK:
            drops += [found["macro_f1"]["drop"], found["calibration"]["ece"]["change"]]
            drops += [each["change"] for each in found["confusions"]["top"]]
        else:
            drops += [found["boundary_iou"]["drop"], found["dataset_miou"]["drop"]]
        assert [drop["value"] for drop in drops] == [0] * len(drops)
        assert found["worst_samples"] == []


def test_groups_are_counted_where_there_are_any(compared) -> None:
    """n of the score is of groups, and the worst one is named."""
    found = TASK.quality(compared(300, 3, np.arange(300) // 50))

    assert (found["samples"], found["groups"]) == (300, 6)
    assert (found["score"]["drop"]["n"], found["score"]["drop"]["counted"]) == (6, "groups")
    assert len(found["subgroups"]["drops"]) == 6
    worst = max(found["subgroups"]["drops"], key=lambda each: each["drop"]["value"])
    assert found["subgroups"]["worst"]["name"] == worst["name"]


def test_the_worst_samples_are_those_that_only_the_teacher_gets_right(compared) -> None:
    """By id, the surest first, at most 20."""
    both = compared(300, 3)
    lost = (both.teacher.score == 1) & (both.own.score == 0)
    assert lost.sum() > 20

    found = TASK.quality(both)["worst_samples"]

    rows = [both.ids.index(each["id"]) for each in found]
    assert len(rows) == 20
    assert lost[rows].all()
    sure = both.own.confidence[rows]
    assert (np.diff(sure) <= 0).all()
    assert sure.min() >= np.sort(both.own.confidence[lost])[-20]
    assert found[0]["label"] == both.classes[both.labels[rows[0]]]
    assert found[0]["predicted"] == both.classes[both.own.prediction[rows[0]]]


def test_outputs_that_are_not_finite_spoil_no_number(case) -> None:
    """All of them NaN: wrong everywhere, with no confidence that could be calibrated."""
    _, teacher, labels = case(60, 3)
    broken = TASK.outcome(np.full((60, 3), np.nan, np.float32), labels)
    ids = tuple(map(str, range(60)))
    both = Compared(broken, TASK.outcome(teacher, labels), labels, ("a", "b", "c"), ids)

    found = TASK.quality(both)

    json.dumps(found, allow_nan=False)
    assert found["score"]["artifact"]["value"] == 0
    assert found["calibration"]["ece"]["artifact"] is None
    assert found["calibration"]["bins"]["artifact"] == []
    assert {each["predicted"] for each in found["confusions"]["top"]} == {None}
    assert found["worst_samples"][0]["predicted"] is None


def test_without_probabilities_there_are_no_curves(compared) -> None:
    """As with outcomes that older versions stored; nothing else is missing but calibration."""
    both = compared(100, 3)
    old = replace(both.teacher, confidence=None, probability=None)
    full = TASK.quality(both)

    found = TASK.quality(replace(both, teacher=old))

    assert found["curves"]["teacher"] is None
    assert found["curves"]["artifact"] == full["curves"]["artifact"]
    assert found["calibration"]["ece"]["teacher"] is None
    assert found["calibration"]["ece"]["change"] is None
    assert found["classes"][0]["teacher"]["average_precision"] is None
    assert found["macro_f1"] == full["macro_f1"]


def test_many_classes_have_no_whole_matrix(compared) -> None:
    """The most frequent confusions tell more than 900 cells."""
    few, many = (TASK.quality(compared(120, classes))["confusions"] for classes in (3, 30))

    assert np.sum(few["artifact"]) == 120
    assert many["artifact"] is None
    assert 0 < len(many["top"]) <= 20


def test_a_segmentation_names_the_class_that_never_occurs() -> None:
    """It has no IoU, and leaves the worst drop without an upper bound."""
    found = Segmentation().quality(maps())

    assert [each["iou"] is None for each in found["classes"]] == [False, False, True]
    assert found["worst_class"]["left_out"] == ["c"]
    assert found["worst_class"]["drop"]["high"] is None
    assert found["boundary_iou"]["distance_px"] == 1
    assert found["score"]["drop"]["value"] > 0
    assert "label" not in found["worst_samples"][0]


def test_label_maps_may_lie_in_a_file(tmp_path: Path) -> None:
    """As a data set has them: read one at a time."""
    both = maps()
    np.save(tmp_path / "maps.npy", both.labels)

    stored = replace(both, labels=StoredMaps(tmp_path / "maps.npy"))

    assert Segmentation().quality(stored) == Segmentation().quality(both)
    assert Segmentation().decisions(stored.own, stored.teacher, stored.labels) is None


def test_a_task_without_classes_gives_what_it_can() -> None:
    """A score from 0 to 1 per sample is enough for drop, agreement, groups, worst samples."""

    class Closeness(Task):
        metric = "closeness"
        summary = "how near a number is"
        kind: str = "closeness"

        def outputs(self, classes: int) -> int:
            return 1

        def check_labels(self, labels, classes, split) -> None: ...

        def check_outputs(self, outputs, image) -> None: ...

        def loss(self, outputs, labels, label_smoothing=0.0, class_weights=None): ...

        def outcome(self, outputs, labels) -> Outcome:
            near = np.exp(-np.abs(outputs[:, 0] - labels)).astype(np.float32)
            return Outcome(near, outputs[:, 0])

        def agreement(self, a, b):
            return np.exp(-np.abs(a - b)).astype(np.float32)

    rng = np.random.default_rng(0)
    labels = rng.normal(size=40)
    own, teacher = (labels[:, None] + rng.normal(0, e, (40, 1)) for e in (0.3, 0.1))
    task, ids = Closeness(), tuple(map(str, range(40)))
    outcomes = [task.outcome(each.astype(np.float32), labels) for each in (own, teacher)]

    found = task.quality(Compared(*outcomes, labels, (), ids))

    assert task.decisions(*outcomes, labels) is None
    expected = float(outcomes[1].score.mean() - outcomes[0].score.mean())
    assert math.isclose(found["score"]["drop"]["value"], expected, abs_tol=1e-6)
    assert "classes" not in found
    assert len(found["worst_samples"]) == 20
    assert artifact_summary(found) == {}


def test_summaries_hold_the_few_numbers_for_results(compared) -> None:
    """The teacher's have the names of the artifact's, and nothing is null."""
    found = TASK.quality(compared(100, 3))

    own, teacher = artifact_summary(found), teacher_summary(found)

    assert set(teacher) == {"macro_f1", "ece", "mean_average_precision"} < set(own)
    assert own["macro_f1_drop"] == found["macro_f1"]["drop"]
    assert own["worst_class"]["name"] in ("c0", "c1", "c2")
    assert len(json.dumps(own)) < 5000
    dense = artifact_summary(Segmentation().quality(maps()))
    assert {"dataset_miou", "boundary_iou", "boundary_iou_drop", "worst_class"} == set(dense) - {
        "dataset_miou_drop"
    }


def test_a_report_is_of_the_eval_split(tmp_path: Path) -> None:
    """Of real digits: what the task says of them, under their ids, and the corrupted ones."""
    Data(source="digits", image_size=8, max_train=200, max_eval=90).run(
        DataInputs(TASK), Work(tmp_path, tmp_path, Silent())
    )
    data = Dataset(tmp_path)
    centers = np.stack(
        [
            data.train.inputs(np.flatnonzero(data.train.labels == number)).mean(axis=0).ravel()
            for number in range(10)
        ]
    )

    def nearest(x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1) @ centers.T - (centers**2).sum(axis=1) / 2) / 8

    def coarse(x: np.ndarray) -> np.ndarray:
        return nearest(np.round(x / 2) * 2)

    own, teacher = (
        evaluate(forward, data.eval, TASK, probabilities=True) for forward in (coarse, nearest)
    )
    forwards = {"artifact": coarse, "teacher": nearest}
    settings = Robustness(corruptions=("gaussian_noise",), samples=60)
    corrupted = robustness(forwards, data.eval, TASK, settings)

    found = report(data, own, teacher, corrupted)

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert teacher.mean > 0.7
    assert found["score"]["teacher"]["value"] == pytest.approx(teacher.mean)
    assert {each["id"] for each in found["worst_samples"]} <= set(data.eval.ids)
    assert [each["name"] for each in found["classes"]] == list("0123456789")
    assert found["robustness"]["samples"] == 60
    assert report(data, own, teacher)["robustness"] is None
    assert artifact_summary(found)["robustness"]["lowest"].startswith("gaussian_noise/")
