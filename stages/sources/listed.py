"""Images and masks that are files of their own: what folders and manifests have in common.

Unlike in `arrays.py`, each has its own size, mode and faults, and can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.stages.masks import decode_mask
from kdpipe.stages.pixels import BadImage, Form, decode, each, measure
from kdpipe.stages.sources.base import Chunk, Faults, Survey
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

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


@dataclass(frozen=True)
class FileMaps:
    """The mask files `names` of the image files `images`, both relative to `root`."""

    root: Path
    names: tuple[str, ...]
    images: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def chunks(
        self, rows: NDArray[np.int64], form: Form, faults: Faults
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode the files at `rows` in threads."""
        for start in range(0, len(rows), form.rows_per_chunk):
            wanted = rows[start : start + form.rows_per_chunk]
            decoded = each([int(row) for row in wanted], partial(self._decode, form=form))
            good = []
            for row, read in zip(wanted, decoded, strict=True):
                if isinstance(read, BadImage):
                    faults[self.names[row]] = str(read)
                else:
                    good.append(read)
            if good:
                yield np.stack(good)

    def _decode(self, row: int, form: Form) -> NDArray[np.uint8]:
        return decode_mask(self.root / self.names[row], self.root / self.images[row], form)


def is_image(path: Path) -> bool:
    """Whether its name is that of an image."""
    return path.suffix.lower() in SUFFIXES


def folders_in(path: Path) -> list[str]:
    """The names of the folders in `path` that are not hidden, in one order on every platform."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_under(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files under `folder` that are not hidden, in one order on every platform.

    Raises DataError for a link that leads back to a folder it is in, as there would be no end.
    """
    here = folder.resolve()
    if here in above:
        raise DataError(
            "a link leads back to a folder that it is in",
            found=f"{folder} -> {here}",
            fix=f"remove the link: rm {folder}",
        )
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    yield from (path for path in paths if not path.is_dir())
    for inner in (path for path in paths if path.is_dir()):
        yield from files_under(inner, (*above, here))
