"""Segmentation: its loss, its scores and what it says of labels, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.targets.errors import DataError, UsageError

TASK = Segmentation()
CLASSES, SIDE = 4, 6


def labels_of(count: int, seed: int = 0) -> np.ndarray:
    """Random label maps, a fifth of whose pixels do not count."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, SIDE, SIDE))
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels.astype(np.uint8)


def logits_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, CLASSES, SIDE, SIDE)).astype(np.float32)


def ious(prediction: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """IoU of each class that occurs, pixel by pixel."""
    found = {}
    pixels = [(p, y) for p, y in zip(prediction.flat, labels.flat, strict=True) if y != 255]
    for c in range(CLASSES):
        both = sum(p == c and y == c for p, y in pixels)
        either = sum(p == c or y == c for p, y in pixels)
        if either:
            found[c] = both / either
    return found


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5, 2.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_weighted_mean_over_pixels_that_count(smoothing: float, weights):
    """`sum_i w_yi l_i / sum_i w_yi`; smoothing weighs every class by its weight."""
    labels, logits = labels_of(3), logits_of(3).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    w = np.ones(CLASSES) if weights is None else np.array(weights)
    total = divisor = 0.0
    for n, y, x in np.argwhere(labels != 255):
        c, row = labels[n, y, x], log_p[n, :, y, x]
        total -= (1 - smoothing) * w[c] * row[c] + smoothing / CLASSES * (w * row).sum()
        divisor += w[c]

    given = None if weights is None else torch.tensor(weights)
    loss = TASK.loss(torch.tensor(logits), torch.from_numpy(labels), smoothing, given)

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total / divisor, rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.ones(CLASSES)])
def test_a_batch_without_a_label_gives_zero_with_a_gradient(weights):
    """Not NaN, which would end a training; every gradient is 0."""
    logits = torch.from_numpy(logits_of(2)).requires_grad_()
    empty = torch.full((2, SIDE, SIDE), 255, dtype=torch.uint8)

    loss = TASK.loss(logits, empty, 0.1, weights)
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pixels_without_a_label_have_no_gradient():
    """Whatever the network says there."""
    labels = labels_of(2)
    logits = torch.from_numpy(logits_of(2)).requires_grad_()

    TASK.loss(logits, torch.from_numpy(labels)).backward()

    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=1).numpy() > 0
    assert np.array_equal(moved, labels != 255)


def test_small_outputs_are_enlarged_bilinearly():
    """For the loss and for judging alike, with corners that are not aligned."""
    small = torch.from_numpy(logits_of(2))[:, :, ::2, ::2].contiguous()
    large = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    labels = labels_of(2)

    assert torch.equal(
        TASK.loss(small, torch.from_numpy(labels)), TASK.loss(large, torch.from_numpy(labels))
    )
    found, expected = (TASK.outcome(z.numpy(), labels) for z in (small, large))
    assert np.array_equal(found.prediction, expected.prediction)


def test_the_score_is_the_mean_iou_of_each_image():
    """Over the classes that are in the image's labels or in its prediction."""
    labels, logits = labels_of(5), logits_of(5)
    labels[0, labels[0] == 3] = 255
    logits[0, 3] = -99  # class 3 occurs nowhere in this image

    outcome = TASK.outcome(logits, labels)

    expected = [list(ious(p, y).values()) for p, y in zip(logits.argmax(1), labels, strict=True)]
    assert len(expected[0]) == 3
    assert outcome.score == pytest.approx([np.mean(each) for each in expected])
    assert outcome.score.dtype == np.float32
    assert outcome.prediction.dtype == np.uint8


def test_details_are_counted_over_all_pixels_together():
    """The usual mIoU is that of the whole split, which is not the mean of the images' own."""
    labels, logits = labels_of(40), logits_of(40)
    prediction = TASK.outcome(logits, labels).prediction
    each = ious(prediction, labels)
    counted = labels != 255

    found = TASK.details(prediction, labels, ("a", "b", "c", "d"))

    assert found["dataset_miou"] == pytest.approx(np.mean(list(each.values())))
    assert found["pixel_accuracy"] == pytest.approx((prediction == labels)[counted].mean())
    assert [found[f"iou/{name}"] for name in "abcd"] == pytest.approx(list(each.values()))


def test_an_ignored_class_number_has_no_iou():
    """No pixel is labelled so; to say it is wrong about the class that the pixel has, and no more.

    As torchmetrics' JaccardIndex has it, where `ignore_index` is one of the classes.
    """
    task = Segmentation(ignore_index=0)
    labels = np.array([[[0, 1, 1, 1], [0, 2, 2, 2]]], np.uint8)
    said = np.array([[[1, 1, 1, 0], [0, 2, 2, 2]]])
    logits = np.eye(3, dtype=np.float32)[said].transpose(0, 3, 1, 2)

    outcome = task.outcome(logits, labels)

    assert outcome.score == pytest.approx([(2 / 3 + 1) / 2])
    assert task.details(outcome.prediction, labels, ("none", "a", "b")) == pytest.approx(
        {"dataset_miou": (2 / 3 + 1) / 2, "pixel_accuracy": 5 / 6, "iou/a": 2 / 3, "iou/b": 1}
    )


def test_counting_reads_a_bounded_number_of_pixels_at_once():
    """However many maps there are and however large: 8 bytes per pixel would not fit."""
    asked: list[int] = []

    class Stored:
        shape = (5, 1024, 1024)

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, key: slice) -> np.ndarray:
            asked.append(len(range(*key.indices(len(self)))))
            return np.ones((asked[-1], *self.shape[1:]), np.uint8)

    assert TASK.counts(Stored(), 2).tolist() == [0, 5 << 20]
    assert asked == [1] * 5


def test_a_class_that_never_occurs_has_no_iou():
    """It is left out of the mean, and is not 0."""
    perfect = np.zeros((2, SIDE, SIDE), np.uint8)

    assert TASK.details(perfect, perfect, ("a", "b")) == {
        "dataset_miou": 1,
        "pixel_accuracy": 1,
        "iou/a": 1,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_is_wrong(bad: float):
    """It has no class, counts against its label and agrees with nothing, not even itself."""
    labels = np.zeros((1, SIDE, SIDE), np.uint8)
    logits = np.zeros((1, 2, SIDE, SIDE), np.float32)
    logits[0, 0] = 1
    logits[0, 1, 0, 0] = bad

    outcome = TASK.outcome(logits, labels)

    assert outcome.prediction[0, 0, 0] == 255
    assert outcome.score == pytest.approx([1 - 1 / SIDE**2])
    assert TASK.agreement(outcome.prediction, outcome.prediction) == pytest.approx(outcome.score)


def test_agreement_is_the_share_of_pixels():
    """Image by image, right or wrong."""
    a, b = logits_of(3).argmax(1).astype(np.uint8), logits_of(3, seed=5).argmax(1).astype(np.uint8)

    assert TASK.agreement(a, b) == pytest.approx((a == b).mean(axis=(1, 2)))
    assert TASK.agreement(a, a).tolist() == [1, 1, 1]


def test_many_classes_leave_room_for_no_class():
    """256 classes do not fit beside it into 8 bits."""
    logits = np.zeros((1, 256, 1, 1), np.float32)
    logits[0, 255] = 1

    outcome = TASK.outcome(logits, np.array([[[254]]], np.uint8))

    assert (outcome.prediction.dtype, outcome.prediction.item()) == (np.uint16, 255)
    assert outcome.score.tolist() == [0]


def test_counts_leave_out_what_has_no_label():
    """Pixels, not images; and with `ignore_index: 0` the zeros."""
    labels = labels_of(70)

    expected = [int((labels == c).sum()) for c in range(CLASSES)]
    assert TASK.counts(labels, CLASSES).tolist() == expected
    zero = Segmentation(ignore_index=0)
    known = np.where(labels == 255, 0, labels)
    assert zero.counts(known, CLASSES).tolist() == [0, *expected[1:]]


def test_without_an_ignored_value_every_pixel_counts():
    """`ignore_index: null`: 255 is then a label like any other, here one out of range."""
    every = Segmentation(ignore_index=None)
    labels = labels_of(2)

    assert every.ignored is None
    with pytest.raises(DataError, match="out of range"):
        every.check_labels(labels, CLASSES, "train")
    clean = np.where(labels == 255, 0, labels)
    every.check_labels(clean, CLASSES, "train")
    loss = every.loss(torch.from_numpy(logits_of(2)), torch.from_numpy(clean))
    usual = TASK.loss(torch.from_numpy(logits_of(2)), torch.from_numpy(clean))
    assert torch.equal(loss, usual)


@pytest.mark.parametrize(
    ("labels", "what", "found"),
    [
        (np.zeros((2, 3, 3)), "labels of train are not label maps", "float64"),
        (np.array([0, 1]), "labels of train are not label maps", r"\(2,\)"),
        (np.full((2, 2, 2), 9, np.uint8), "labels of train are out of range 0..3", "image 0: 9"),
        (np.full((1, 2, 2), 255, np.uint8), "no pixel is labelled in", "all 4 pixels are 255"),
    ],
)
def test_wrong_maps_are_named(labels: np.ndarray, what: str, found: str):
    """The split, the image and what it says."""
    with pytest.raises(DataError, match=what) as error:
        TASK.check_labels(labels, CLASSES, "train")

    assert error.match(found)
    assert error.value.fix


def test_maps_under_classification_name_the_other_task():
    """Whoever gives masks and forgets `task:` is told what to type."""
    with pytest.raises(DataError, match="task: segmentation"):
        Classification().check_labels(labels_of(2), CLASSES, "train")


def test_networks_of_the_other_kind_are_refused():
    """A classifier cannot segment, nor can a dense network classify."""
    TASK.check_outputs((2, 4, 8, 8), (16, 16))
    Classification().check_outputs((2, 4), (16, 16))
    with pytest.raises(UsageError, match="logits for every pixel"):
        TASK.check_outputs((2, 4), (16, 16))
    with pytest.raises(UsageError, match="one vector of logits per image"):
        Classification().check_outputs((2, 4, 16, 16), (16, 16))
