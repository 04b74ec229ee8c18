"""Augmentation: what it may change, what it may not, and that a seed decides it."""

from __future__ import annotations

import numpy as np
import pytest

from kdpipe.stages.augment import Augment


def batch(n: int = 64) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 256, (n, 6, 5, 3), dtype=np.uint8)


def test_nothing_asked_for_changes_nothing():
    """The default returns the batch as it came."""
    images = batch()

    assert Augment().apply(images, np.random.default_rng(0)) is images


@pytest.mark.parametrize(
    "augment", [Augment(shift=2), Augment(flip=True), Augment(shift=1, flip=True)]
)
def test_seed_decides(augment):
    """The same seed gives the same batch, another seed another; the input stays as it was."""
    images = batch()
    before = images.copy()

    first, again, other = (augment.apply(images, np.random.default_rng(s)) for s in (3, 3, 4))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, np.uint8)


def test_flip_mirrors_whole_samples():
    """Every sample is either itself or its mirror image, and both occur."""
    images = batch()

    flipped = Augment(flip=True).apply(images, np.random.default_rng(0))

    same = np.array([np.array_equal(a, b) for a, b in zip(images, flipped, strict=True)])
    mirror = np.array([np.array_equal(a[:, ::-1], b) for a, b in zip(images, flipped, strict=True)])
    assert (same ^ mirror).all()
    assert 16 < mirror.sum() < 48


def test_shift_moves_whole_samples_and_fills_with_zeros():
    """Each sample is its input moved by at most `shift`, checked against moving it by hand."""
    images = batch()

    shifted = Augment(shift=2).apply(images, np.random.default_rng(0))

    seen = set()
    for image, moved in zip(images, shifted, strict=True):
        padded = np.zeros((10, 9, 3), np.uint8)
        padded[2:8, 2:7] = image
        (place,) = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[y : y + 6, x : x + 5], moved)
        ]
        seen.add(place)
    assert len(seen) > 15  # of 25 places, 64 draws


def test_settings_are_refused_when_unknown_or_negative():
    """A typo or a negative shift is an error, not a default."""
    for wrong in ({"shfit": 2}, {"shift": -1}):
        with pytest.raises(ValueError, match=r"shfit|shift"):
            Augment.model_validate(wrong)


def test_samples_of_any_kind_are_changed_alike():
    """Maps of another number of channels move with their images, and `fill` is what comes in."""
    images = batch()
    labels = images[..., :1] // 2
    augment = Augment(shift=2, flip=True)

    moved = augment.apply(images, np.random.default_rng(0))
    maps = augment.apply(labels, np.random.default_rng(0), fill=255)

    inside = (moved > 0).all(axis=-1, keepdims=True)
    assert np.array_equal(maps[inside], moved[..., :1][inside] // 2)
    assert (maps[~inside] == 255).all()
    assert (~inside).any()
