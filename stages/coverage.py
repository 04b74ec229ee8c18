"""Do the splits show every class, and keep groups apart? Asked before any pixel is read.

`Task.check_labels` asks whether each label makes sense; here it is whether they do together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from kdpipe.stages.base import Observer
from kdpipe.stages.sources.base import Contents
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_SHOWN = 10


def class_count(contents: Contents, declared: int | None) -> int:
    """How many classes there are: as `declared`, as the source names them, or as labels show.

    Raises DataError for an empty part, and for more names than declared classes.
    """
    empty = [name for name, part in contents.parts.items() if not len(part.ids)]
    if empty:
        raise DataError(
            f"there are no samples in {listing(empty)}",
            found=contents.described,
            fix="check data.source, or add the samples",
        )
    if declared and len(contents.classes or ()) > declared:
        raise DataError(
            f"data.classes is {declared}, but the source names more",
            found=listing(contents.classes or ()),
            fix=f"set data.classes to {len(contents.classes or ())} or more, or drop it",
        )
    if declared or contents.classes:
        return declared or len(contents.classes or ())
    labels = [part.labels for part in contents.parts.values()]
    if not all(np.issubdtype(array.dtype, np.integer) for array in labels):
        return 1  # the task says what is wrong with them
    return max(1, *(int(array.max()) + 1 for array in labels))


def check_coverage(
    train: NDArray[np.int64],
    held: NDArray[np.int64],
    count: int,
    names: Sequence[str] | None,
    declared: bool,
    observer: Observer,
) -> list[str]:
    """The names of all `count` classes, once the labels of train and eval have shown them.

    Raises DataError for a class without training samples, which no model can learn; where the
    user `declared` how many classes there are it is a warning, as is a class absent from eval.
    """
    known = list(names or ())
    gaps = _absent(train, count, known)
    if gaps and not declared:
        raise DataError(
            f"{count - len(np.unique(train))} of {count} classes have no training samples",
            found=f"without: {gaps}",
            fix="add samples, correct the labels or raise data.max_train; "
            f"`data.classes: {count}` lets it pass",
        )
    if gaps:
        observer.warn(f"no training samples of class {gaps}")
    if unseen := _absent(held, count, known):
        observer.warn(f"no eval samples of class {unseen}: nothing is measured of it")
    return known + [str(number) for number in range(len(known), count)]


def check_groups(
    train: NDArray[np.int64] | None, held: NDArray[np.int64] | None, observer: Observer
) -> None:
    """Warn when a group is in both splits, which makes eval look better than it is."""
    if train is None or held is None:
        return
    shared = np.intersect1d(train, held)
    if shared.size:
        observer.warn(f"{shared.size} group(s) are in both train and eval: accuracy is flattered")


def _absent(labels: NDArray[np.int64], count: int, names: Sequence[str]) -> str:
    """The classes that `labels` lacks, "" when none; one wild label may mean a billion classes."""
    present = set(np.unique(labels).tolist())
    lacking = (number for number in range(count) if number not in present)
    shown = [names[c] if c < len(names) else str(c) for c in islice(lacking, _SHOWN)]
    more = count - len(present) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
