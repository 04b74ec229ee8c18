"""IoU and Boundary IoU of label maps: by hand, by erosion, and the coverage of their bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from kdpipe.stages.quality.boundary import boundary, distance, near_edge
from kdpipe.stages.quality.maps import (
    class_values,
    image_means,
    mean_values,
    overlaps,
    pseudo_values,
)
from kdpipe.stages.statistics import paired_drop
from kdpipe.stages.tasks.segmentation import Segmentation

CLASSES = 3


def blobs(count: int, side: int, seed: int) -> np.ndarray:
    """Maps of CLASSES in patches of 4 x 4 pixels, 255 where nothing is labelled."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, CLASSES, (count, side // 4, side // 4))
    maps = small.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    maps[rng.random(maps.shape) < 0.05] = 255
    return maps


def test_the_distance_is_two_percent_of_the_diagonal() -> None:
    """As in the paper; at least one pixel."""
    assert [distance(*size) for size in ((300, 400), (1024, 2048), (8, 8))] == [10, 46, 1]


def test_a_small_mask_by_hand() -> None:
    """A 3 x 3 square in 5 x 5 pixels, d = 1: its ring of 8 against that of a square moved by one.

    Moved to the right: both rings have 4 of 12 pixels in common.
    """
    labels, moved = np.zeros((2, 5, 5), np.uint8)
    labels[1:4, 1:4] = 1
    moved[1:4, 2:5] = 1

    (found,) = overlaps([moved[None]], labels[None], 2, None)

    ring = {(r, c) for r in range(1, 4) for c in range(1, 4)} - {(2, 2)}
    other = {(r, c + 1) for r, c in ring}
    both, either = found.edge_both[0, 1], found.edge_either[0, 1]
    assert (both, either) == (len(ring & other), len(ring | other)) == (4, 12)
    assert np.argwhere(boundary(labels, 2) == 1).tolist() == sorted(map(list, ring))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_near_an_edge_is_what_erosion_takes_away(d: int) -> None:
    """The authors erode each class d times by 3 x 3 pixels, with nothing beyond the border."""
    classes = blobs(1, 20, seed=3)[0]

    found = near_edge(classes, d)

    for value in np.unique(classes):
        mask = classes == value
        inside = binary_erosion(mask, np.ones((3, 3)), iterations=d, border_value=0)
        assert np.array_equal(mask & found, mask & ~inside)


def test_pixels_without_a_label_count_in_no_boundary() -> None:
    """Whatever is said there, and next to them both have an edge."""
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[:, :, 6:] = 255
    said, other = np.zeros((2, 1, 9, 9), np.uint8)
    other[:, :, 6:] = 1

    one, two = overlaps([said, other], labels, 2, 255)

    for name, counts in vars(one).items():
        assert np.array_equal(counts, getattr(two, name))
    # of 9 x 6 pixels the inner 7 x 4 are near no edge
    assert one.edge_both.tolist() == one.edge_either.tolist() == [[26, 0]]


def test_iou_is_that_of_the_task() -> None:
    """Class by class and in the mean, as `details` has it over all pixels together."""
    labels, said = blobs(10, 16, 0), np.where(blobs(10, 16, 1) == 255, 0, blobs(10, 16, 1))
    names = ("a", "b", "c", "never")
    expected = Segmentation().details(said, labels, names)

    (found,) = overlaps([said], labels, 4, 255)
    pair = found.both, found.either

    for number, name in enumerate("abc"):
        values = class_values(pair, pair, number)
        assert values is not None
        assert values.own.mean() == pytest.approx(expected[f"iou/{name}"])
    assert class_values(pair, pair, 3) is None
    assert mean_values(*pair).mean() == pytest.approx(expected["dataset_miou"])


def test_an_ignored_class_number_has_no_pixels() -> None:
    """Neither where it is labelled nor where it is said."""
    labels, said = blobs(4, 16, 0), np.where(blobs(4, 16, 1) == 255, 0, blobs(4, 16, 1))

    (found,) = overlaps([said], np.where(labels == 255, 0, labels), CLASSES, 0)

    for counts in vars(found).values():
        assert not counts[:, 0].any()
        assert counts[:, 1].any()


def test_an_output_that_is_not_finite_is_in_no_class() -> None:
    """255 and 65535 stand for it; the label's pixel is missed, and nobody else is blamed."""
    labels = np.zeros((1, 4, 4), np.uint8)

    for none in (np.uint8(255), np.uint16(65535)):
        (found,) = overlaps([np.full((1, 4, 4), none)], labels, 2, 255)
        assert (found.both[0].tolist(), found.either[0].tolist()) == ([0, 0], [16, 0])
        assert found.edge_both.sum() == 0


def test_an_image_counts_as_the_mean_of_its_classes() -> None:
    """1 where it has none at all, as the task's score has it."""
    both, either = np.array([[1, 0, 0], [0, 0, 0]]), np.array([[2, 4, 0], [0, 0, 0]])

    assert image_means(both, either).tolist() == [0.25, 1]


def test_pseudo_values_have_the_ratio_as_their_mean() -> None:
    """Equal ratios give equal values, without a spread of rounding errors."""
    both, either = np.array([1, 2, 3]), np.array([3, 6, 9])

    assert pseudo_values(both, either).tolist() == [round(1 / 3, 12)] * 3
    assert pseudo_values(np.array([1, 0]), np.array([4, 4])).mean() == pytest.approx(1 / 8)


def test_bounds_cover_the_true_drop_in_iou() -> None:
    """Of a class over 60 images of different sizes of objects: each bound in 93 of 100 and more."""
    rng = np.random.default_rng(0)

    def draw(images: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        area = rng.integers(20, 400, images)
        taught = rng.binomial(area, np.clip(rng.normal(0.85, 0.1, images), 0, 1))
        own = rng.binomial(taught, np.clip(rng.normal(0.95, 0.06, images), 0, 1))
        return (own[:, None], area[:, None]), (taught[:, None], area[:, None])

    (own, area), (taught, _) = draw(500_000)
    truth = (taught.sum() - own.sum()) / area.sum()
    inside = []
    for _ in range(200):
        values = class_values(*draw(60), 0)
        assert values is not None
        drop = paired_drop(values.teacher, values.own, 0.95)
        inside.append((drop.low <= truth, truth <= drop.high))

    assert np.mean(inside, axis=0).min() >= 0.93
