"""Small pictures and hashes: that they are what they claim to be, and ignore what they should."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.fft import dctn

from kdpipe.stages.hygiene.sketch import Sketch, Sketcher, mirror_signs, thumbs, units
from kdpipe.stages.pixels import Form


def sketched(pixels: NDArray[np.uint8]) -> Sketch:
    sketcher = Sketcher()
    sketcher.add(pixels)
    return sketcher.done()


def test_the_hash_is_the_low_corner_of_the_dct(pictures: Callable) -> None:
    """As SciPy computes it, of the grey picture with mean 0 and length 1."""
    pixels = pictures(3, 0)

    grey = units(thumbs(pixels)).sum(axis=-1) / 3**0.5
    expected = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(3, 64)[:, 1:]

    assert np.allclose(sketched(pixels).hashes, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24, 3), (57, 33, 1), (8, 100, 3), (40, 8, 1)])
def test_hashes_never_lie_further_apart_than_pictures(shape: tuple[int, int, int]) -> None:
    """|hash a - hash b|^2 <= 2 (1 - r): so that a search by hash misses no pair."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
    flat = units(thumbs(pixels)).reshape(40, -1)

    hashes = sketched(pixels).hashes
    apart = ((hashes[:, None] - hashes[None]) ** 2).sum(axis=-1)

    assert (apart <= 2 * (1 - flat @ flat.T) + 1e-5).all()
    assert apart[~np.eye(40, dtype=bool)].min() > 0


def test_small_pictures_are_averages_over_areas() -> None:
    """64 rows become 32 by means of two, and 48 columns by those of one and a half."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)

    halves = np.repeat(pixels, 2, axis=2).astype(float)
    expected = halves.reshape(2, 32, 2, 32, 3, 3).mean(axis=(2, 4))

    assert np.allclose(thumbs(pixels), expected, atol=1e-3)
    assert np.array_equal(thumbs(pixels[:, :32, :20]), pixels[:, :32, :20])


def test_brightness_and_contrast_are_gone(pictures: Callable) -> None:
    """Levels a x + b have the hash of x, up to rounding; the digest tells them apart."""
    pixels = (pictures(4, 0) // 2).astype(np.uint8)
    brighter = (pixels + 60).astype(np.uint8)

    one, other = sketched(pixels), sketched(brighter)

    assert np.allclose(one.hashes, other.hashes, atol=1e-5)
    assert (one.digests != other.digests).all()


def test_mirroring_changes_signs(pictures: Callable) -> None:
    """The hash of a mirrored picture is that of the picture with the signs of odd waves turned."""
    pixels = pictures(4, 0)

    turned = sketched(np.ascontiguousarray(pixels[:, :, ::-1])).hashes

    assert np.allclose(turned, sketched(pixels).hashes * mirror_signs(Form(24, 24, 3)), atol=1e-5)


def test_what_is_noted_of_a_picture() -> None:
    """Its digest, mean levels, whether it is of one level, and whether its RGB is grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    pixels[1] = 7
    pixels[2] = pixels[2, ..., :1]

    found = sketched(pixels)

    assert found.constant.tolist() == [False, True, False, False]
    assert found.grey.tolist() == [False, True, True, False]
    assert np.allclose(found.means, pixels.mean(axis=(1, 2)), rtol=1e-5)
    expected = hashlib.blake2b(pixels[3].tobytes(), digest_size=16).digest()
    assert found.digests[3].tobytes() == expected
    assert found.searchable.tolist() == [0, 2, 3]


def test_too_few_pixels_are_not_searched() -> None:
    """Below 64 pixels pictures are alike by chance: there are no hashes."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 1), np.uint8)

    assert sketched(noise).hashes.shape == (5, 0)
    assert not len(sketched(noise).searchable)
    assert sketched(noise[:, :, :8]).hashes.shape[1] == 0
    assert sketched(np.pad(noise, [(0, 0), (0, 1), (0, 0), (0, 0)])).hashes.shape == (5, 63)


def test_pieces_and_picks_are_in_order(pictures: Callable) -> None:
    """However chunks are cut, a sketch is that of all images; rows may be picked."""
    pixels = pictures(9, 0)
    sketcher = Sketcher()
    for start in (0, 4, 5):
        sketcher.add(pixels[start : {0: 4, 4: 5, 5: 9}[start]])

    found, whole = sketcher.done(), sketched(pixels)

    assert (found.digests == whole.digests).all()
    assert np.array_equal(found.hashes, whole.hashes)
    assert (found.pick(np.array([7, 2])).digests == whole.digests[[7, 2]]).all()
    assert len(Sketcher().done()) == 0
