"""Further views of a batch: what they show, and that they repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdpipe.stages.augment import Augment
from kdpipe.stages.views import Draw, Partner, Rotated, Strong, View
from kdpipe.targets.errors import UsageError


class Rows:
    """Images that show their own number in every pixel, and their labels."""

    def __init__(self, labels: list[int], height: int = 8, width: int = 8) -> None:
        self.labels = np.array(labels)
        self.shape = (height, width, 1)
        self.images: Any = self

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([np.full(self.shape, row, np.uint8) for row in rows])


def draw(split: Rows, rows: list[int], seed: int = 0) -> Draw:
    indices = np.array(rows)
    pixels = split[indices]
    return Draw(split, indices, pixels, Augment(), np.random.default_rng(seed))


def test_a_partner_has_the_same_label_and_is_another_sample():
    """Sample 4 is alone in its class and is its own partner; all others find somebody else."""
    split = Rows([0, 0, 0, 1, 2, 1])

    for seed in range(20):
        found = Partner().make(draw(split, [0, 1, 3, 4], seed))[:, 0, 0, 0]
        assert found[0] in (1, 2)
        assert found[1] in (0, 2)
        assert list(found[2:]) == [5, 4]


def test_samples_with_label_maps_have_no_partner():
    """No single class belongs to them; the message has the shape of the labels."""
    split = Rows([0, 1])
    split.labels = np.zeros((2, 8, 8), np.uint8)

    with pytest.raises(UsageError, match="have no partner") as error:
        Partner().make(draw(split, [0, 1]))

    assert error.value.found == "labels of shape (2, 8, 8)"


def test_turns_are_quarters_one_after_the_other():
    """3n images: all by 90, then all by 180, then all by 270 degrees, counterclockwise."""
    split = Rows([0, 1])
    made = draw(split, [0, 1])
    made.pixels[:] = np.arange(2 * 64).reshape(2, 8, 8, 1)

    found = Rotated().make(made)

    for turn in (1, 2, 3):
        for image in (0, 1):
            expected = np.rot90(made.pixels[image], turn)
            assert np.array_equal(found[2 * (turn - 1) + image], expected)


def test_pictures_that_are_not_square_cannot_be_turned():
    """The message has their size."""
    with pytest.raises(UsageError, match="only square") as error:
        Rotated().make(draw(Rows([0], height=8, width=12), [0]))

    assert error.value.found == "8x12 pixels"


def test_a_strong_view_changes_brightness_and_hides_a_part():
    """A grey square of at most a quarter of the picture; the rest is changed alike."""
    made = draw(Rows([0] * 300), list(range(100, 200)))

    found = Strong().make(made)

    hidden = (found == 127).mean(axis=(1, 2, 3))
    values = [np.unique(image[image != 127]) for image in found]
    assert 0 < hidden[hidden < 1].max() <= 0.25
    assert max(len(value) for value in values) == 1
    assert len({int(value[0]) for value in values if len(value)}) > 20


@pytest.mark.parametrize("view", [Partner(), Strong(), Rotated()])
def test_views_repeat_with_their_seed(view: View):
    """The same generator state gives the same pixels; the batch itself is left alone."""
    split = Rows([0, 0, 1, 1])
    first = draw(split, [0, 1, 2, 3], seed=5)
    before = first.pixels.copy()

    again = view.make(draw(split, [0, 1, 2, 3], seed=5))

    assert np.array_equal(view.make(first), again)
    assert np.array_equal(first.pixels, before)
