"""MNIST-format files: four IDX files in one folder, plain or gzipped, with a split of their own.

The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a
big-endian 32-bit number, then the values (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, cast

from pydantic import Field

from kdpipe.stages.base import Files
from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.arrays import ArrayFrames, read_blocks, read_exactly, refuse_more
from kdpipe.stages.sources.base import Contents, Part, PartName, Source, require
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_PREFIXES: Mapping[PartName, str] = {"train": "train", "eval": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class Idx(Source):
    """MNIST, Fashion-MNIST, KMNIST, EMNIST and their like."""

    summary: ClassVar[str] = "MNIST-format IDX files, plain or .gz"

    kind: Literal["idx"] = "idx"
    folder: UserPath = Field(description="holds train-images-idx3-ubyte[.gz] and three more")
    classes: tuple[str, ...] | None = Field(None, description="names of the classes, in order")
    homepage: str | None = Field(None, description="where to get the files; shown when missing")

    def files(self) -> Mapping[str, Files]:
        """The four files; whatever else is in the folder does not matter."""
        require(self.folder, Path.is_dir, "the folder of IDX files", self._fix())
        paths = [self._locate(p, s) for p in _PREFIXES.values() for s in (_IMAGES, _LABELS)]
        return {"folder": Files(self.folder, tuple(path.name for path in paths))}

    def check(self) -> None:
        """All four files must be there, each either plain or gzipped."""
        self.files()

    def read(self) -> Contents:
        """Read the labels and the headers of the images."""
        self.check()
        parts = {name: self._part(name) for name in _PREFIXES}
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        return Contents(parts, self.classes, f"idx: {self.folder.name} ({sizes})")

    def _part(self, name: PartName) -> Part:
        images = self._locate(_PREFIXES[name], _IMAGES)
        labels = _read_labels(self._locate(_PREFIXES[name], _LABELS))
        count, height, width = _read_shape(images)
        if count != len(labels):
            raise DataError(
                f"the images and labels of {name} do not pair up",
                found=f"{count} images in {images.name}, {len(labels)} labels",
                fix="get both files from the same place",
            )
        ids = tuple(f"idx/{name}/{i}" for i in range(count))
        blocks = partial(_blocks, images)
        return Part(ids, labels, ArrayFrames((count, height, width, 1), blocks, ids[0]))

    def _locate(self, prefix: str, suffix: str) -> Path:
        plain = self.folder / f"{prefix}-{suffix}"
        there = [path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()]
        if len(there) == 1:
            return there[0]
        if there:
            raise DataError(
                f"{plain.name} is there twice, plain and gzipped",
                found=f"in {self.folder}",
                fix=f"remove one, e.g. {plain.name}.gz",
            )
        here = sorted(path.name for path in self.folder.iterdir())
        raise DataError(
            f"{plain.name}[.gz] is missing",
            found=f"{self.folder} holds {listing(here) if here else 'nothing'}",
            fix=self._fix(),
        )

    def _fix(self) -> str:
        where = f"get it from {self.homepage}" if self.homepage else "download the four IDX files"
        return f"{where} and set data.source.folder to their folder"


def _read_labels(path: Path) -> NDArray[np.int64]:
    with _opened(path) as stream:
        (count,) = _header(stream, path, dimensions=1)
        data = read_exactly(stream, count)
        if len(data) < count:
            raise DataError(
                f"{path.name} is cut off",
                found=f"{len(data)} labels, its header declares {count}",
                fix="get the file again",
            )
        refuse_more(stream, path.name, f"{count} labels")
    return np.frombuffer(data, np.uint8).astype(np.int64)


def _read_shape(path: Path) -> tuple[int, int, int]:
    with _opened(path) as stream:
        count, height, width = _header(stream, path, dimensions=3)
    return count, height, width


def _blocks(path: Path) -> Iterator[NDArray[np.uint8]]:
    with _opened(path) as stream:
        count, height, width = _header(stream, path, dimensions=3)
        yield from read_blocks(stream, (count, height, width, 1), path.name)


def _header(stream: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    length = 4 + 4 * dimensions
    header = read_exactly(stream, length)
    if len(header) < length or header[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path.name} is not an IDX file of {dimensions}-dimensional uint8",
            found=f"it starts with {header[:4].hex(' ') or 'nothing'}, not 00 00 08 0{dimensions}",
            fix="get the file again; IDX files may be gzipped, but not zipped",
        )
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise DataError(f"{path.name} is empty", found=f"its header declares {shape}")
    return shape


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open for reading, gunzipping by suffix; what gzip finds wrong becomes a DataError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield cast("BinaryIO", stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} is damaged", found=str(error), fix="get the file again"
        ) from error
