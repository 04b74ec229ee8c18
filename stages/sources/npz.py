"""One .npz file of NumPy arrays; unlike `idx.py` it may carry groups, colour and only a pool.

Members are streamed out of the zip and never unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, cast

from pydantic import Field

from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.arrays import ArrayFrames, ArrayMaps, read_blocks
from kdpipe.stages.sources.base import Contents, Maps, Part, PartName, Source, require
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_POOL = frozenset({"images", "labels"})
_SPLIT = frozenset({"train_images", "train_labels", "eval_images", "eval_labels"})


class Npz(Source):
    """uint8 images (N, H, W) or (N, H, W, C), C = 1, 3 or 4, and labels (N,) or maps (N, H, W).

    Members are `images`, `labels` and perhaps `groups`, one pool; or `train_images`,
    `train_labels`, `eval_images`, `eval_labels`.
    """

    summary: ClassVar[str] = "one .npz file with images and labels"

    kind: Literal["npz"] = "npz"
    file: UserPath = Field(description="the .npz file")
    classes: tuple[str, ...] | None = Field(None, description="names of the classes, in order")

    def files(self) -> Mapping[str, Path]:
        """The file."""
        return {"file": self.file}

    def check(self) -> None:
        """The file must be there."""
        require(self.file, Path.is_file, "the .npz file", "set data.source.file to its path")

    def read(self) -> Contents:
        """Read labels and groups, and the headers of the images."""
        self.check()
        with _damage(self.file), zipfile.ZipFile(self.file) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
        if members - {"groups"} == _POOL:
            parts: dict[PartName, Part] = {"pool": self._part("pool", "", "groups" in members)}
        elif members == _SPLIT:
            parts = {"train": self._part("train", "train_"), "eval": self._part("eval", "eval_")}
        else:
            raise DataError(
                f"{self.file.name} does not hold the arrays of a dataset",
                found=listing(sorted(members)) or "no arrays",
                fix=f"save {listing(sorted(_POOL))} (and groups), or {listing(sorted(_SPLIT))}",
            )
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        return Contents(parts, self.classes, f"npz: {self.file.name} ({sizes})")

    def _part(self, name: PartName, prefix: str, grouped: bool = False) -> Part:
        shape = self._shape(f"{prefix}images")
        labels = self._labels(f"{prefix}labels", name, shape)
        groups = None
        if grouped:
            groups = np.unique(self._load("groups", shape[0]), return_inverse=True)[1]
        ids = tuple(f"npz/{name}/{i}" for i in range(shape[0]))
        blocks = partial(_blocks, self.file, f"{prefix}images", shape)
        return Part(ids, labels, ArrayFrames(shape, blocks, f"npz/{name}/0"), groups)

    def _shape(self, member: str) -> tuple[int, int, int, int]:
        with _member(self.file, member) as stream:
            shape, fortran, dtype = _header(stream)
        plain = dtype == np.uint8 and not fortran
        sized = (*shape, 1) if len(shape) == 3 else shape
        if not plain or len(sized) != 4 or 0 in sized[1:] or sized[3] not in (1, 3, 4):
            raise DataError(
                f"`{member}` of {self.file.name} are not images",
                found=f"{dtype} of shape {shape}{', in Fortran order' if fortran else ''}",
                fix="save uint8 of shape (N, H, W) or (N, H, W, C) with C = 1, 3 or 4, in C order",
            )
        return sized

    def _labels(
        self, member: str, part: PartName, images: tuple[int, int, int, int]
    ) -> NDArray[Any] | Maps:
        with _member(self.file, member) as stream:
            shape, fortran, dtype = _header(stream)
        if len(shape) != 3:
            return self._load(member, images[0])
        if shape != images[:3] or dtype.kind not in "bui" or fortran:
            raise DataError(
                f"`{member}` of {self.file.name} are not the label maps of its images",
                found=f"{dtype} of shape {shape}{', in Fortran order' if fortran else ''}",
                fix=f"save class numbers, e.g. uint8, of shape {images[:3]}, in C order",
            )
        names = tuple(f"npz/{part}/{i}" for i in range(shape[0]))
        return ArrayMaps(names, partial(_map_blocks, self.file, member, shape, dtype))

    def _load(self, member: str, count: int) -> NDArray[Any]:
        with _damage(self.file), np.load(self.file, allow_pickle=False) as arrays:
            values: NDArray[Any] = arrays[member]
        if values.shape[:1] != (count,) or (member == "groups" and values.ndim != 1):
            raise DataError(
                f"`{member}` of {self.file.name} does not pair up with its {count} images",
                found=f"shape {values.shape}",
                fix=f"save one of {member} per image",
            )
        return values


def _blocks(
    path: Path, member: str, shape: tuple[int, int, int, int]
) -> Iterator[NDArray[np.uint8]]:
    with _member(path, member) as stream:
        _header(stream)
        yield from read_blocks(stream, shape, f"`{member}` of {path.name}")


def _map_blocks(
    path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[np.uint8]]:
    with _member(path, member) as stream:
        _header(stream)
        name = f"`{member}` of {path.name}"
        for block in read_blocks(stream, shape, name, dtype, "label map"):
            if block.min() < 0 or block.max() > 255:
                raise DataError(
                    f"{name} hold labels that are not of 0..255",
                    found=f"{block.min()} to {block.max()}",
                    fix="give classes numbers from 0, and pixels without a label the number 255",
                )
            yield block.astype(np.uint8)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


@contextmanager
def _member(path: Path, name: str) -> Iterator[BinaryIO]:
    with (
        _damage(path),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as stream,
    ):
        yield cast("BinaryIO", stream)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what zipfile and NumPy say about a damaged or pickled file into a DataError."""
    try:
        yield
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"{path.name} cannot be read as a .npz of plain arrays",
            found=str(error),
            fix="save it again with np.savez_compressed, without object arrays",
        ) from error
