"""What a source promises: which samples there are, at once; their pixels, as a stream.

A source says what the user's files hold. Splitting, resizing and storing are up to `data.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from kdpipe.stages.base import Files
from kdpipe.stages.pixels import Form
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

PartName = Literal["pool", "train", "eval"]
EVAL_NAMES = ("eval", "val", "test")
"""What people call the eval split; a source takes any of them, as long as it is only one."""

Faults = dict[str, str]
"""{sample id: what is wrong with its file}, collected so that all are named at once."""


@dataclass(frozen=True)
class Survey:
    """The images as they are: {(height, width): id of the first of that size}, and channels."""

    sizes: Mapping[tuple[int, int], str]
    channels: int


@dataclass(frozen=True)
class Chunk:
    """Some images, uint8 (n, H, W, C), and the CRC-32 of the files that they come from, if any."""

    pixels: NDArray[np.uint8]
    checksums: tuple[int, ...] = ()


class Frames(Protocol):
    """The images of one part, read as a stream."""

    @property
    def root(self) -> Path | None:
        """The folder in which ids are paths of image files, or None where there are no such."""

    def survey(self, rows: NDArray[np.int64]) -> Survey:
        """Sizes and channels, without decoding; files that cannot be read are left to `chunks`."""

    def chunks(self, rows: NDArray[np.int64], form: Form, faults: Faults) -> Iterator[Chunk]:
        """The images at ascending `rows`, brought into `form`, in order.

        What cannot be decoded is left out and noted in `faults`. Raises DataError when the
        stream itself is broken.
        """


class Maps(Protocol):
    """The label maps of one part, one for each image, read as a stream."""

    @property
    def names(self) -> tuple[str, ...]:
        """What people call them: (N,) paths of mask files, or numbers in the user's file."""

    def __len__(self) -> int: ...

    def chunks(
        self, rows: NDArray[np.int64], form: Form, faults: Faults
    ) -> Iterator[NDArray[np.uint8]]:
        """The maps at ascending `rows`, uint8 (n, H, W) of the size of `form`, in order.

        What cannot be decoded is left out and noted in `faults`. Raises DataError when the
        stream itself is broken.
        """


@dataclass(frozen=True)
class Part:
    """The samples of a split that the source declares, or of a pool that is to be split.

    `labels`: (N,) numbers, or maps. `groups`: (N,) numbers, the same over all parts of a source.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.generic] | Maps
    frames: Frames
    groups: NDArray[np.int64] | None = None

    @property
    def dense(self) -> bool:
        """Whether labels are maps."""
        return not isinstance(self.labels, np.ndarray)

    @property
    def numbers(self) -> NDArray[np.generic]:
        """The labels (N,). Raises TypeError where they are maps."""
        if not isinstance(self.labels, np.ndarray):
            raise TypeError("these labels are maps")
        return self.labels

    @property
    def maps(self) -> Maps:
        """The labels as maps. Raises TypeError where they are numbers."""
        if isinstance(self.labels, np.ndarray):
            raise TypeError("these labels are numbers")
        return self.labels


@dataclass(frozen=True)
class Contents:
    """All that a source holds: either a pool, or train and eval. `classes` are names, if known."""

    parts: Mapping[PartName, Part]
    classes: tuple[str, ...] | None
    described: str
    warnings: tuple[str, ...] = ()


class Source(BaseModel, ABC):
    """Where samples come from. Its fields are the YAML under `data.source`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    summary: ClassVar[str] = ""

    kind: str

    def files(self) -> Mapping[str, Path | Files]:
        """{field name: files} of exactly what is read from outside.

        `read` gets its files from the same list: only so does the key notice every change that
        matters, and no other. Raises DataError as `check` does.
        """
        return {}

    def places(self) -> Collection[str]:
        """The fields of `files` that say where `Frames.root` is, if it is anywhere."""
        return ()

    def check(self) -> None:
        """Raise DataError when what the user named is not there; quick, opens no image."""

    @abstractmethod
    def read(self) -> Contents:
        """Which samples there are. Raises DataError when the files contradict themselves."""


@contextmanager
def standing_under(key: str) -> Iterator[None]:
    """Let errors of a source that is not `data.source` name its own key in what to type."""
    try:
        yield
    except DataError as error:
        error.fix = error.fix.replace("data.source", key)
        raise


def require(path: Path, there: Callable[[Path], bool], what: str, fix: str) -> None:
    """Raise DataError unless `there(path)`; says which parent folder does exist.

    Example: require(folder, Path.is_dir, "the folder of images", "set data.source.folder")
    """
    if there(path):
        return
    nearest = next((p for p in path.parents if p.exists()), path)
    found = f"{path} is there, but of another type" if path.exists() else f"only {nearest} exists"
    raise DataError(f"{what} is not there: {path}", found=found, fix=fix)
