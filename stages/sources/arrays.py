"""Images that lie one after another in a stream of bytes: what digits, IDX and .npz have in common.

Unlike in `listed.py`, all images have one size and cannot be read alone. So have label maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kdpipe.stages.masks import fit_maps
from kdpipe.stages.pixels import CHUNK_BYTES, Form
from kdpipe.stages.sources.base import Chunk, Faults, Survey
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_PIECE = 1 << 20


@dataclass(frozen=True)
class ArrayFrames:
    """Images of `shape` (N, h, w, c), from `blocks`, which starts the stream anew on each call."""

    shape: tuple[int, int, int, int]
    blocks: Callable[[], Iterator[NDArray[np.uint8]]]
    first: str
    root: Path | None = None

    def survey(self, rows: NDArray[np.int64]) -> Survey:
        """The one size that all images have; 4 channels are RGB with transparency."""
        _, height, width, channels = self.shape
        return Survey({(height, width): self.first}, 1 if channels == 1 else 3)

    def chunks(self, rows: NDArray[np.int64], form: Form, faults: Faults) -> Iterator[Chunk]:
        """The images at ascending `rows`. The stream is read, and so checked, to its end."""
        for frames in _chosen(self.blocks(), rows, form.rows_per_chunk):
            yield Chunk(form.fit_frames(frames))


@dataclass(frozen=True)
class ArrayMaps:
    """Label maps (n, h, w) from `blocks`, which starts the stream anew on each call."""

    names: tuple[str, ...]
    blocks: Callable[[], Iterator[NDArray[np.uint8]]]

    def __len__(self) -> int:
        return len(self.names)

    def chunks(
        self, rows: NDArray[np.int64], form: Form, faults: Faults
    ) -> Iterator[NDArray[np.uint8]]:
        """The maps at ascending `rows`. The stream is read, and so checked, to its end."""
        for maps in _chosen(self.blocks(), rows, form.rows_per_chunk):
            yield fit_maps(maps, form)


def _chosen(
    blocks: Iterator[NDArray[np.uint8]], rows: NDArray[np.int64], most: int
) -> Iterator[NDArray[np.uint8]]:
    """What lies at ascending `rows` of all blocks together, at most so many at a time."""
    start = 0
    for block in blocks:
        low, high = np.searchsorted(rows, (start, start + len(block)))
        for at in range(low, high, most):
            yield block[rows[at : min(at + most, high)] - start]
        start += len(block)


def read_blocks(
    stream: BinaryIO, shape: tuple[int, ...], name: str, dtype: Any = "u1", unit: str = "image"
) -> Iterator[NDArray[Any]]:
    """Cut `stream` into arrays (n, ...) of about CHUNK_BYTES; of images (n, h, w, c), for one.

    Raises DataError when the stream is shorter or longer than `shape` (N, ...) says; `unit` is
    what there are N of.
    """
    count, *frame = shape
    size = int(np.prod(frame)) * np.dtype(dtype).itemsize
    step = max(1, CHUNK_BYTES // size)
    for start in range(0, count, step):
        wanted = min(step, count - start)
        data = read_exactly(stream, wanted * size)
        if len(data) < wanted * size:
            ends = start + len(data) // size
            raise DataError(
                f"{name} is cut off",
                found=f"{ends} whole {unit}(s), its header declares {count}",
                fix="get the file again",
            )
        yield np.frombuffer(data, dtype).reshape(wanted, *frame)
    refuse_more(stream, name, f"{count} {unit}s")


def read_exactly(stream: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes, fewer only at the end; a false header cannot make it reserve memory."""
    data = bytearray()
    while len(data) < count and (piece := stream.read(min(_PIECE, count - len(data)))):
        data += piece
    return bytes(data)


def refuse_more(stream: BinaryIO, name: str, declared: str) -> None:
    """Raise DataError when anything follows what the header declared."""
    if stream.read(1):
        raise DataError(
            f"{name} is longer than it says",
            found=f"more bytes after the {declared} that its header declares",
            fix="get the file again",
        )
