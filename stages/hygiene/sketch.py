"""What is kept of each image while it passes: a digest, a perceptual hash, a few numbers.

About 300 bytes per sample, whatever the image; pairs that the hash proposes are looked at again,
as small pictures, in `twins.py`.

The small picture `thumbs` is the image averaged over areas down to at most 32 x 32. With its mean
taken away and its length brought to 1 (`units`), brightness and contrast are gone. The hash is
that of pHash (Zauner 2010), the 8 x 8 lowest frequencies of its DCT, but not rounded to signs: as
an orthonormal projection it can only shorten distances, so that two pictures with correlation r
have hashes at most sqrt(2 (1 - r)) apart. A search by hash therefore misses no pair, and the signs
of coefficients near zero, which are chance in pictures of little detail, decide nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.stages.images import Images
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Chunk, Faults, Frames, Survey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

SIDE = 32
"""Most rows and columns of a small picture."""
WAVES = 8
"""Frequencies kept in each direction."""
FEWEST = 64
"""Pixels without which two pictures are alike by chance: no near duplicates are looked for."""
CHUNK = 16
"""Stored images that are read at a time: mapped pages count as memory, and bring neighbours."""
FLAT = 1.0
"""Standard deviation, in levels of 255, below which a picture shows noise and nothing else."""
_PIECE = 1 << 18  # bytes of pixels that are looked at together, for the cache and for memory


@dataclass(frozen=True)
class Sketch:
    """What is known of the N images of a split, in its order."""

    digests: NDArray[np.void]
    """(N,) 16 bytes each, BLAKE2b of the pixels in the model's form."""
    hashes: NDArray[np.float32]
    """(N, K) real DCT coefficients; none where images have fewer than FEWEST pixels."""
    contrast: NDArray[np.float32]
    """(N,) standard deviation of the small picture, in levels of 255."""
    means: NDArray[np.float32]
    """(N, C) mean level of each channel."""
    constant: NDArray[np.bool_]
    """(N,) whether all pixels of the image are the same."""
    grey: NDArray[np.bool_]
    """(N,) whether an RGB image has three equal channels; False for grey images."""

    def __len__(self) -> int:
        return len(self.digests)

    def pick(self, rows: NDArray[np.int64]) -> Sketch:
        """Those of the images at `rows`."""
        return Sketch(**{name: getattr(self, name)[rows] for name in Sketch.__dataclass_fields__})

    @property
    def searchable(self) -> NDArray[np.int64]:
        """Rows of pictures that show enough to be compared by their hashes."""
        if not self.hashes.shape[1]:
            return np.empty(0, np.int64)
        rows: NDArray[np.int64] = np.flatnonzero(self.contrast >= FLAT)
        return rows


@dataclass
class Sketcher:
    """Sketches images chunk by chunk, in order."""

    _parts: list[Sketch] = field(default_factory=list)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Look at uint8 (n, H, W, C)."""
        step = max(1, _PIECE // max(1, pixels[0].size)) if len(pixels) else 1
        for start in range(0, len(pixels), step):
            self._parts.append(_sketched(pixels[start : start + step]))

    def done(self) -> Sketch:
        """All that was added."""
        if not self._parts:
            return _sketched(np.empty((0, 1, 1, 1), np.uint8))
        names = Sketch.__dataclass_fields__
        columns = {n: np.concatenate([getattr(part, n) for part in self._parts]) for n in names}
        self._parts.clear()
        return Sketch(**columns)


@dataclass(frozen=True)
class Watched:
    """The images of a part, each sketched as it is read."""

    frames: Frames
    sketcher: Sketcher

    @property
    def root(self) -> Path | None:
        """As that of the images."""
        return self.frames.root

    def survey(self, rows: NDArray[np.int64]) -> Survey:
        """As that of the images."""
        return self.frames.survey(rows)

    def chunks(self, rows: NDArray[np.int64], form: Form, faults: Faults) -> Iterator[Chunk]:
        """The chunks of the images, as they come."""
        for chunk in self.frames.chunks(rows, form, faults):
            self.sketcher.add(chunk.pixels)
            yield chunk


def sketch(images: Images) -> Sketch:
    """Sketch images that are stored already, a few at a time."""
    sketcher = Sketcher()
    for start in range(0, len(images), CHUNK):
        sketcher.add(images[np.arange(start, min(start + CHUNK, len(images)))])
    return sketcher.done()


def thumbs(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small pictures (n, h, w, C) of uint8 (n, H, W, C): averages over areas, h and w <= SIDE."""
    _, height, width, _ = pixels.shape
    small = pixels.astype(np.float32)
    if height > SIDE:
        small = np.einsum("ih,nhwc->niwc", _averages(height), small, optimize=True)
    if width > SIDE:
        small = np.einsum("jw,nhwc->nhjc", _averages(width), small, optimize=True)
    return small


def units(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same (n, h, w, C) with mean 0 and length 1 each: their products are correlations."""
    centred = small - small.mean(axis=(1, 2, 3), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(1, 2, 3), keepdims=True))
    scaled: NDArray[np.float32] = centred / np.maximum(length, 1e-6)
    return scaled


def mirror_signs(form: Form) -> NDArray[np.float32]:
    """(K,) what mirroring an image left to right multiplies its hash with."""
    up, across = min(WAVES, form.height), min(WAVES, form.width)
    signs = np.tile(np.where(np.arange(across) % 2, -1, 1), up)[1:]
    return signs.astype(np.float32)


def _sketched(pixels: NDArray[np.uint8]) -> Sketch:
    n, height, width, channels = pixels.shape
    flat = pixels.reshape(n, height * width, channels)
    small = thumbs(pixels)
    same = (flat == flat[:, :1]).all(axis=(1, 2))
    grey = (flat == flat[..., :1]).all(axis=(1, 2)) & (channels > 1)
    return Sketch(
        digests=_digests(pixels),
        hashes=_hashes(small) if height * width >= FEWEST else np.empty((n, 0), np.float32),
        contrast=small.std(axis=(1, 2, 3)),
        means=flat.mean(axis=1, dtype=np.float32),
        constant=same,
        grey=grey,
    )


def _digests(pixels: NDArray[np.uint8]) -> NDArray[np.void]:
    found = [hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=16) for x in pixels]
    return np.frombuffer(b"".join(one.digest() for one in found), "V16")


def _hashes(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, K) lowest frequencies of the grey picture; its mean, which is 0, is left out."""
    _, height, width, channels = small.shape
    grey = units(small).mean(axis=-1) * np.float32(channels**0.5)  # an orthonormal projection too
    waves = np.einsum("ih,nhw,jw->nij", _cosines(height), grey, _cosines(width), optimize=True)
    return np.ascontiguousarray(waves.reshape(len(small), -1)[:, 1:], np.float32)


@cache
def _averages(size: int) -> NDArray[np.float32]:
    """(SIDE, size) rows that average over `size / SIDE` pixels, shares of the outer ones too."""
    edges = np.linspace(0, size, SIDE + 1)
    left, right = np.arange(size), np.arange(1, size + 1)
    cover = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    shares: NDArray[np.float32] = (np.maximum(cover, 0) * SIDE / size).astype(np.float32)
    return shares


@cache
def _cosines(size: int) -> NDArray[np.float32]:
    """(WAVES, size) the first rows of the orthonormal DCT-II; all of them where there are fewer."""
    waves, places = np.arange(min(WAVES, size))[:, None], 2 * np.arange(size) + 1
    basis: NDArray[np.float64] = np.cos(np.pi * waves * places / (2 * size)) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis.astype(np.float32)
