"""Which pairs are duplicates: copies changed a little, and not pictures that only resemble."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdpipe.stages.base import Silent
from kdpipe.stages.hygiene.sketch import Sketcher, thumbs, units
from kdpipe.stages.hygiene.twins import (
    CORRELATION,
    Seen,
    exact,
    near,
    repeats,
    shared_groups,
    without,
)
from kdpipe.stages.pixels import Form

SIDE = 64


class Held:
    """Images in memory."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.pixels[rows]


def seen(pixels: NDArray[np.uint8]) -> Seen:
    sketcher = Sketcher()
    sketcher.add(pixels)
    return Seen(Held(pixels), sketcher.done())


def pairs(a: NDArray[np.uint8], b: NDArray[np.uint8], **how: bool) -> list[list[int]]:
    """Near duplicates of images of one form."""
    height, width, channels = a.shape[1:]
    found = near(seen(a), seen(b), Form(height, width, channels), Silent(), **how)[0]
    return found.rows.tolist()


def each(change: Callable[[Image.Image], Image.Image], pixels: NDArray) -> NDArray[np.uint8]:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def jpeg(image: Image.Image) -> Image.Image:
    data = BytesIO()
    image.save(data, "JPEG", quality=50)
    return Image.open(BytesIO(data.getvalue()))


def resized(image: Image.Image) -> Image.Image:
    """Made half as large, and as large again."""
    small = image.resize((SIDE // 2, SIDE // 2), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def noisy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(9).normal(0, 5, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "darker": lambda x: (x * 0.7).astype(np.uint8),
    "gamma": lambda x: (255 * (x / 255) ** 0.9).astype(np.uint8),
    "jpeg of quality 50": lambda x: each(jpeg, x),
    "half as large and back": lambda x: each(resized, x),
    "noise of 5 levels": noisy,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copies_are_found(pictures: Callable, change: Callable) -> None:
    """Each with its original, among others, and no other pair."""
    originals = pictures(12, 0, side=SIDE)
    copies = np.concatenate([pictures(10, 1, side=SIDE), change(originals[3:7])])

    assert pairs(originals, copies) == [[3, 10], [4, 11], [5, 12], [6, 13]]


def test_mirrored_copies_are_of_their_own_kind(pictures: Callable) -> None:
    """Found only in the mirror, also when they were saved as JPEG since."""
    originals = pictures(8, 0, side=SIDE)
    copies = each(jpeg, np.ascontiguousarray(originals[2:4, :, ::-1]))

    assert pairs(originals, copies) == []
    assert pairs(originals, copies, mirrored=True) == [[2, 0], [3, 1]]


def test_what_is_not_found(pictures: Callable) -> None:
    """As the documentation says: other framings, and colours that were exchanged."""
    originals = pictures(8, 0, side=SIDE)

    assert pairs(originals, np.roll(originals, 6, axis=2)) == []
    assert pairs(originals, np.ascontiguousarray(originals[..., ::-1])) == []


def test_smooth_and_empty_pictures_do_not_match() -> None:
    """Skies alike but for their noise, frames of one level, and black frames with faint noise."""
    rng = np.random.default_rng(0)
    slope = np.linspace(60, 200, SIDE)[:, None, None]
    skies = np.clip(slope + rng.normal(0, 2, (30, SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
    levels = np.arange(1, 31, dtype=np.uint8)[:, None, None, None] * np.ones_like(skies)
    black = rng.integers(0, 2, skies.shape, dtype=np.uint8)

    flat = units(thumbs(skies)).reshape(30, -1)
    assert (flat @ flat.T).min() > CORRELATION  # all but the same, if it were for that alone
    for pixels in (skies, levels, black):
        assert pairs(pixels[:15], pixels[15:]) == []


@pytest.mark.parametrize("side", [8, 16, 32])
def test_digits_are_not_duplicates(side: int) -> None:
    """No two of scikit-learn's 1,797, in any of the sizes that examples use, nor mirrored."""
    from sklearn.datasets import load_digits

    levels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    large = (side, side)
    pixels = each(lambda x: x.resize(large, Image.Resampling.BILINEAR), levels)[..., None]

    assert pairs(pixels, pixels, same=True) == []
    assert pairs(pixels[:900], pixels[900:], mirrored=True) == []


def test_exact_ones_are_not_near_ones_too(pictures: Callable) -> None:
    """A pair is of one kind."""
    pixels = pictures(6, 0)

    assert pairs(pixels, pixels[2:4]) == []
    assert exact(seen(pixels).sketch, seen(pixels[2:4]).sketch).rows.tolist() == [[2, 0], [3, 1]]


def test_each_sample_of_an_exact_cluster_is_named(pictures: Callable) -> None:
    """Three copies here and two there: five samples, each beside one, not all six pairs more."""
    a, b = pictures(2, 0), pictures(1, 1)
    ours = np.concatenate([a, a[:1], a[:1]])
    theirs = np.concatenate([b, a[:1], a[:1]])

    found = exact(seen(ours).sketch, seen(theirs).sketch).rows.tolist()

    assert found == [[0, 1], [0, 2], [2, 1], [3, 1]]
    assert repeats(seen(ours).sketch).rows.tolist() == [[0, 2], [0, 3]]
    assert repeats(seen(a).sketch).rows.tolist() == []


def test_near_duplicates_within_a_split(pictures: Callable) -> None:
    """No sample is its own, and a pair is told once."""
    pixels = pictures(5, 0, side=SIDE)
    pixels[4] = (pixels[1] * 0.8).astype(np.uint8)

    assert pairs(pixels, pixels, same=True) == [[1, 4]]


def test_pairs_without_others() -> None:
    """Pairs that another kind names are taken out."""
    one = shared_groups(np.array([3, 5, 5, 9]), np.array([5, 1, 3]))
    other = shared_groups(np.array([3, 4]), np.array([1, 1, 3]))

    assert one.rows.tolist() == [[0, 2], [1, 0]]
    assert without(one, other).rows.tolist() == [[1, 0]]
    assert len(shared_groups(None, np.array([1]))) == 0
