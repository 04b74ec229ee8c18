"""Label maps on their way into a dataset: written chunk by chunk, then checked.

Unlike class numbers, which `coverage.py` looks at before any pixel is read, maps are pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.stages.base import Work
from kdpipe.stages.draft import Draft
from kdpipe.stages.images import StoredMaps, store_images
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Faults
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


def write_maps(draft: Draft, form: Form, faults: Faults, work: Work) -> NDArray[np.bool_]:
    """Write all maps to `<name>.labels.npy`, uint8 (n, H, W); (256,) which values they hold.

    With `faults` the file lacks the maps that they are about.
    """
    seen = np.zeros(256, np.bool_)
    chunks = _watched(draft.part.maps.chunks(draft.rows, form, faults), draft, work)
    shape = (len(draft), form.height, form.width)
    store_images(maps_file(work.out, draft), shape, _noted(chunks, seen))
    return seen


def maps_file(out: Path, draft: Draft) -> Path:
    """Where the maps of a draft are written."""
    return out / f"{draft.name}.labels.npy"


def class_count(seen: NDArray[np.bool_], ignored: int | None, known: int | None) -> int:
    """How many classes there are: as `known`, or else the largest number `seen` (256,) and one.

    Raises DataError where fewer than two of them count: every network would be right.
    """
    values = [int(value) for value in np.flatnonzero(seen)]
    count = known or max((value for value in values if value != ignored), default=-1) + 1
    if len(set(range(count)) - {ignored}) < 2:
        unlabelled = "" if ignored is None else f"; {ignored} is no label (task.ignore_index)"
        raise DataError(
            "there are fewer than two classes to tell apart",
            found=f"the values {listing([str(value) for value in values])}{unlabelled}",
            fix="number classes 0, 1, 2 and so on, also the two of black and white masks;"
            " or say by data.classes how many there are",
        )
    return count


def check_maps(draft: Draft, task: Task, classes: int, out: Path) -> NDArray[np.int64]:
    """The numbers of the classes with labelled pixels, after a look at every map.

    The value that is no label lacks none: it is among them where it is below `classes`. Raises
    DataError naming all maps that cannot be right for the task.
    """
    stored, names = StoredMaps(maps_file(out, draft)), draft.part.maps.names
    pixels = np.zeros(classes, np.int64)
    bad: list[DataError] = []
    for row, labels in zip(draft.rows, _each_map(stored), strict=True):
        try:
            task.check_labels(labels, classes, names[row])
        except DataError as error:
            bad.append(error)
        else:
            pixels += task.counts(labels, classes)
    if bad:
        raise DataError(
            f"{len(bad)} label map(s) of {draft.name} cannot be used",
            found="; ".join(f"{error.what} ({error.found})" for error in bad),
            fix=bad[0].fix,
        )
    if task.ignored is not None and task.ignored < classes:
        pixels[task.ignored] = 1
    return np.flatnonzero(pixels)


def _each_map(stored: StoredMaps) -> Iterator[NDArray[np.uint8]]:
    """One after another, (1, H, W), read some at a time."""
    count, height, width = stored.shape
    step = Form(height, width, 1).rows_per_chunk
    for start in range(0, count, step):
        for labels in stored[start : start + step]:
            yield labels[None]


def _watched(
    chunks: Iterable[NDArray[np.uint8]], draft: Draft, work: Work
) -> Iterator[NDArray[np.uint8]]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        work.observer.progress(done, len(draft), f"{draft.name} label maps")


def _noted(
    chunks: Iterable[NDArray[np.uint8]], seen: NDArray[np.bool_]
) -> Iterator[NDArray[np.uint8]]:
    for chunk in chunks:
        for labels in chunk:  # one by one, because bincount widens what it counts to 64 bits
            seen |= np.bincount(labels.ravel(), minlength=256) > 0
        yield chunk
