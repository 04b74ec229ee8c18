"""Random access to images: pixels in the store, files decoded when asked for, or a choice of those.

Each class is an `Images`, or, for label maps, a `Labels`. None holds pixels between two batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdpipe.stages.pixels import BadImage, Form, decode, each
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


class Images(Protocol):
    """Random access to decoded images, all of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices`, uint8 (n, H, W, C)."""


class Labels(Protocol):
    """The labels of a split: an array (N,) of class numbers, or maps (N, H, W) in the store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N,) or (N, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any:
        """The labels at a number, a slice or an array of numbers."""


@dataclass(frozen=True)
class StoredImages:
    """Images in an .npy file, uint8 (N, H, W, C)."""

    path: Path

    @cached_property
    def _length(self) -> int:
        return len(np.load(self.path, mmap_mode="r"))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy the images at `indices` out of the file."""
        # Mapped anew for every batch: pages that stay mapped would count as this process's memory
        # until, after one epoch, that is the whole file.
        pixels: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")[indices]
        return np.asarray(pixels)


def store_images(path: Path, shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]) -> None:
    """Write an .npy file of `shape` (N, ...) from chunks uint8 (n, ...), one at a time."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).data)


@dataclass(frozen=True)
class StoredMaps:
    """Label maps in an .npy file, uint8 (N, H, W); all of them, or those at `rows`."""

    path: Path
    rows: NDArray[np.int64] | None = None

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        count, height, width = np.load(self.path, mmap_mode="r").shape
        return count if self.rows is None else len(self.rows), height, width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy maps (H, W) or (n, H, W) out of the file, which is mapped anew each time."""
        maps: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        return np.array(maps[key if self.rows is None else self.rows[key]])

    def pick(self, rows: NDArray[np.int64]) -> StoredMaps:
        """Those at `rows` of these."""
        return StoredMaps(self.path, rows if self.rows is None else self.rows[rows])


@dataclass(frozen=True)
class FileImages:
    """Image files of the user's, decoded when asked for; `checksums` are CRC-32 of their bytes."""

    paths: tuple[Path, ...]
    checksums: NDArray[np.uint32]
    form: Form

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the files at `indices`.

        Raises DataError naming those that are not what the data stage has read.
        """
        paths = [self.paths[i] for i in indices]
        batch = np.empty((len(paths), *self.form.shape), np.uint8)
        faults = []
        for row, read in enumerate(each(paths, partial(decode, form=self.form))):
            if isinstance(read, BadImage):
                faults.append(f"{paths[row]} {read}")
            elif read[1] != self.checksums[indices[row]]:
                faults.append(f"{paths[row]} has other content")
            else:
                batch[row] = read[0]
        if faults:
            raise DataError(
                f"{len(faults)} image file(s) changed since the data stage read them",
                found="; ".join(sorted(set(faults))),
                fix="put the files back, or set `data.cache: true` to need them only once",
            )
        return batch


@dataclass(frozen=True)
class PickedImages:
    """Some rows of other images."""

    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `rows[indices]`."""
        return self.images[self.rows[indices]]
