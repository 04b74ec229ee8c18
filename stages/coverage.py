"""Do the splits show every class, and keep groups apart? Are the labels of the task's kind?

`Task.check_labels` asks whether each label makes sense; here it is whether they do together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

from kdpipe.stages.base import Observer, Work
from kdpipe.stages.draft import Drafts
from kdpipe.stages.hygiene.leaks import ALLOW
from kdpipe.stages.hygiene.overlap import FILE, write_pairs
from kdpipe.stages.hygiene.twins import shared_groups
from kdpipe.stages.sources.base import Contents
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_SHOWN = 10


def require_kind(contents: Contents, task: Task) -> None:
    """Raise DataError when the task needs label maps and there are none, or the other way round."""
    for name, part in contents.parts.items():
        if part.dense and not task.dense:
            raise DataError(
                f"`task: {task.kind}` needs one label per sample, and those of {name} are maps",
                found=f"{contents.described}; a map for each of {len(part.ids)} images",
                fix="set `task: segmentation`, or give a source of class numbers or folders",
            )
        if task.dense and not part.dense:
            raise DataError(
                f"`task: {task.kind}` needs label maps, and {name} has none",
                found=f"{contents.described}; labels {part.numbers.dtype} of shape"
                f" {part.numbers.shape}",
                fix="use `source: {kind: masks, folder: ...}`, a CSV with the column mask instead"
                " of label, or .npz labels of shape (N, H, W); or set `task: classification`",
            )


def known_classes(contents: Contents, declared: int | None) -> int | None:
    """How many classes there are: as `declared`, or as the source names them, if it does.

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
    return declared or len(contents.classes or ()) or None


def shown_classes(contents: Contents) -> int:
    """How many classes there are, as class numbers show: the largest and one."""
    labels = [part.numbers for part in contents.parts.values()]
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
    unit: Literal["samples", "pixels"] = "samples",
) -> list[str]:
    """The names of all `count` classes, once the labels of train and eval have shown them.

    `train` and `held` hold the number of each class that occurs, in any order and repetition.
    Raises DataError for a class without training `unit`, which no model can learn; where the
    user `declared` how many classes there are it is a warning, as is a class absent from eval.
    """
    known = list(names or ())
    gaps = _absent(train, count, known)
    if gaps and not declared:
        unlabelled = " (what is no label is task.ignore_index)" if unit == "pixels" else ""
        raise DataError(
            f"{count - len(np.unique(train))} of {count} classes have no training {unit}",
            found=f"without: {gaps}",
            fix=f"add samples, correct the labels{unlabelled} or raise data.max_train; "
            f"`data.classes: {count}` lets it pass",
        )
    if gaps:
        observer.warn(f"no training {unit} of class {gaps}")
    if unseen := _absent(held, count, known):
        observer.warn(f"no eval {unit} of class {unseen}: nothing is measured of it")
    return known + [str(number) for number in range(len(known), count)]


def check_groups(drafts: Drafts, allowed: bool, work: Work) -> None:
    """Raise DataError when a group is in both splits, before any image is read.

    Its other samples teach what the eval ones look like. A pair of each group goes to a file in
    the scratch folder, which stays when the stage fails. Leaks that are `allowed` are told later,
    with those of pixels.
    """
    train, held = drafts
    found = shared_groups(train.groups, held.groups)
    if allowed or not len(found):
        return
    pairs = [
        (train.part.ids[train.rows[i]], held.part.ids[held.rows[j]]) for i, j in found.rows.tolist()
    ]
    path = work.scratch / FILE
    write_pairs(path, (("train", a, "", "eval", b, "", "group", "") for a, b in pairs))
    raise DataError(
        f"{len(pairs)} group(s) are in both train and eval, which flatters every number",
        found=f"{listing([f'{a} and {b}' for a, b in pairs], 5)}; one pair of each in {path}",
        fix=f"keep each group in one split, or let kdpipe split one pool by groups; {ALLOW}",
    )


def _absent(labels: NDArray[np.int64], count: int, names: Sequence[str]) -> str:
    """The classes that `labels` lacks, "" when none; one wild label may mean a billion classes."""
    present = set(np.unique(labels).tolist())
    lacking = (number for number in range(count) if number not in present)
    shown = [names[c] if c < len(names) else str(c) for c in islice(lacking, _SHOWN)]
    more = count - len(present) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
