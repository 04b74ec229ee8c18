"""scikit-learn's 1,797 real handwritten digits, 8x8: the source that needs no files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from kdpipe.stages.sources.arrays import ArrayFrames
from kdpipe.stages.sources.base import Contents, Part, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


class Digits(Source):
    """Grey 8x8 digits in 17 levels, of 43 writers (UCI, Alpaydin & Kaynak 1998); one pool."""

    summary: ClassVar[str] = "1,797 handwritten digits that come with scikit-learn"

    kind: Literal["digits"] = "digits"

    def read(self) -> Contents:
        """Levels 0..16 become 0..255."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
        ids = tuple(f"digits/{i}" for i in range(len(pixels)))

        def blocks() -> Iterator[NDArray[np.uint8]]:
            yield pixels

        part = Part(ids, bunch.target.astype(np.int64), ArrayFrames(pixels.shape, blocks, ids[0]))
        names = tuple(str(name) for name in bunch.target_names)
        return Contents({"pool": part}, names, f"digits: {len(ids)} of scikit-learn")
