"""Splits that were not read alike: swapped colours, negatives, grey pictures, enlarged ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray


def tinted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reddish: the red channel lighter, the blue one darker."""
    return np.clip(pixels + np.array([25, 0, -40]), 0, 255).astype(np.uint8)


@pytest.fixture
def splits(pictures: Callable) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """60 and 30 reddish pictures."""
    return tinted(pictures(60, 0)), tinted(pictures(30, 1))


def test_alike_splits_are_not_told_of(run: Callable, splits: tuple) -> None:
    """Their effects are small, and are kept."""
    dataset, heard = run(*splits, calibration=40)

    found = dataset.meta["hygiene"]["levels"]
    assert heard.about("differ in brightness") == []
    assert [len(found[name]) for name in ("eval", "calibration")] == [3, 3]


def test_the_effect_is_cohens_d(run: Callable, splits: tuple) -> None:
    """Of means of images, against a plain computation."""
    train, held = splits
    a, b = (x.mean(axis=(1, 2)) for x in (train, held))
    spread = np.sqrt((59 * a.var(0, ddof=1) + 29 * b.var(0, ddof=1)) / 88)

    dataset, _ = run(train, held, calibration=40)

    expected = (b.mean(0) - a.mean(0)) / spread
    assert dataset.meta["hygiene"]["levels"]["eval"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("change", "guess"),
    [
        (lambda x: x[..., ::-1], ", as if red and blue were swapped"),
        (lambda x: 255 - np.clip(x, 40, 160), ", as if it were a negative"),
        (lambda x: x // 4, ""),
    ],
    ids=["BGR", "negative", "another range"],
)
def test_splits_that_were_read_unlike(
    run: Callable, splits: tuple, change: Callable, guess: str
) -> None:
    """Told with levels, effect and numbers, and with a guess where one explains it."""
    train, held = splits
    if "negative" in guess:
        train = np.clip(train, 40, 160)

    _, heard = run(train, np.ascontiguousarray(change(held)), calibration=40)

    (told,) = heard.about("train and eval differ in brightness or colour")
    assert "n = 60 and 30" in told
    assert told.endswith(f"){guess}")


def test_few_images_prove_nothing(run: Callable, splits: tuple) -> None:
    """With fewer than 20 a difference is chance, and is not given as a number."""
    train, held = splits

    dataset, heard = run(train, 255 - held[:8], calibration=40)

    assert dataset.meta["hygiene"]["levels"]["eval"] is None
    assert heard.about("differ in brightness") == []


def test_grey_pictures_among_coloured_ones(run: Callable, splits: tuple) -> None:
    """Told where one split has them and the other has not; counted anyway."""
    train, held = splits
    held[:15] = held[:15, ..., :1]

    dataset, heard = run(train, held, calibration=40)

    assert dataset.meta["hygiene"]["grey_in_rgb"] == {"train": 0, "eval": 15, "calibration": 0}
    assert heard.about("without colour")[0].endswith(
        "0 % in train, 50 % in eval, 0 % in calibration"
    )


def test_pictures_of_one_level(run: Callable, splits: tuple) -> None:
    """Counted by split; two of the same level are exact duplicates besides."""
    train, held = splits
    train[3], train[4], held[5] = 9, 10, 11

    dataset, heard = run(train, held, calibration=8)

    assert dataset.meta["hygiene"]["constant"]["train"] == 2
    assert heard.about("one value in every pixel")[0].startswith(
        "images with one value in every pixel: 2 of 60 in train, 1 of 30 in eval"
    )


def test_enlarged_pictures(run: Callable, pictures: Callable) -> None:
    """Five times is told, four are not."""
    small = pictures(20, 0, side=8), pictures(10, 1, side=8)

    _, quiet = run(*small, image_size=32, calibration=8)
    dataset, heard = run(*small, image_size=40, calibration=8)

    assert quiet.about("enlarged") == []
    assert dataset.meta["hygiene"]["enlarged"] == {"train": 5, "eval": 5}
    assert heard.about("enlarged to 40x40 by 5 times in train, 5 times in eval")


def test_splits_enlarged_differently(
    pictures: Callable, files: Callable, heard_of: Callable
) -> None:
    """Train from thumbnails and eval from large pictures: one of them is blurred."""
    source = files(pictures(8, 0, side=12), pictures(6, 1, side=36))

    _, heard = heard_of(source=source, image_size=36, calibration=8)

    assert heard.about("the splits are enlarged differently: 3 times in train, 1 times in eval")
