"""Images that are files of their own: what folders and manifests have in common.

Unlike `arrays.py`, each has its own size, mode and faults, and can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.stages.pixels import BadImage, Form, decode, each, measure
from kdpipe.stages.sources.base import Chunk, Faults, Survey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_HEADERS = 4096


@dataclass(frozen=True)
class FileFrames:
    """The image files `names`, relative to `root`."""

    root: Path
    names: tuple[str, ...]

    def survey(self, rows: NDArray[np.int64]) -> Survey:
        """Sizes and channels from the headers: 1 channel when every file is grey, else 3."""
        sizes: dict[tuple[int, int], str] = {}
        channels = 1
        for start in range(0, len(rows), _HEADERS):
            names = [self.names[row] for row in rows[start : start + _HEADERS]]
            measured = each([self.root / name for name in names], measure)
            for name, seen in zip(names, measured, strict=True):
                if not isinstance(seen, BadImage):  # `chunks` comes by and says why
                    sizes.setdefault(seen[:2], name)
                    channels = max(channels, seen[2])
        return Survey(sizes, channels)

    def chunks(self, rows: NDArray[np.int64], form: Form, faults: Faults) -> Iterator[Chunk]:
        """Decode the files at `rows` in threads."""
        for start in range(0, len(rows), form.rows_per_chunk):
            names = [self.names[row] for row in rows[start : start + form.rows_per_chunk]]
            decoded = each([self.root / name for name in names], partial(decode, form=form))
            good = []
            for name, read in zip(names, decoded, strict=True):
                if isinstance(read, BadImage):
                    faults[name] = str(read)
                else:
                    good.append(read)
            if good:
                yield Chunk(np.stack([p for p, _ in good]), tuple(crc for _, crc in good))
