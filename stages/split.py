"""Seeded choices among samples: train against eval, subsets, calibration. Knows labels, no pixels.

Permutations come from `RandomState`, whose stream NumPy has frozen (NEP 19): a split is the same on
every platform and with every later NumPy, which `default_rng` does not promise.
"""

from __future__ import annotations

from collections.abc import Sized
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

Rows: TypeAlias = "NDArray[np.int64]"


class Purpose(IntEnum):
    """Why samples are drawn; each purpose has a stream of its own under one seed."""

    HOLDOUT = 0
    SUBSET = 1
    CALIBRATION = 2
    STOPPING = 3


def strata(labels: Sized) -> Rows:
    """(n,) what every draw below keeps in proportion: the class of each sample.

    Where labels are maps no single class belongs to a sample, and all are of one stratum: a draw
    is plainly random.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        return labels.astype(np.int64)
    return np.zeros(len(labels), np.int64)


def holdout(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None, fraction: float, seed: int
) -> tuple[Rows, Rows]:
    """Split into (train, eval) row numbers, each ascending; eval gets about `fraction`.

    Without groups every class is split on its own, and keeps at least one sample on either side
    where it has two. With groups whole groups are held out, whatever their classes. Raises
    DataError when there are not two samples, or two groups, to tell apart.
    """
    if groups is None:
        wanted = max(1, round(fraction * len(labels)))
        held = stratified(labels, wanted, seed, Purpose.HOLDOUT, keep=1)
        what = f"{len(labels)} sample(s)"
    else:
        held = _whole_groups(groups, fraction, seed)
        what = f"{len(np.unique(groups))} group(s)"
    rest = np.setdiff1d(np.arange(len(labels)), held, assume_unique=True)
    if not held.size or not rest.size:
        raise DataError(
            "the data is too small to be split into train and eval",
            found=what,
            fix="give more samples, or a source with an eval split of its own",
        )
    return rest, held


def stratified(
    labels: NDArray[np.int64], count: int, seed: int, purpose: Purpose, keep: int = 0
) -> Rows:
    """Draw at most `count` rows, ascending, in the proportions of the classes in `labels`.

    Every class gives at least one sample where `count` reaches that far, and leaves at least
    `keep` behind. Remainders go to the classes with the largest ones (Hamilton's method).
    """
    classes, member = np.unique(labels, return_inverse=True)
    sizes = np.bincount(member, minlength=len(classes))
    quotas = _quotas(sizes, np.maximum(sizes - keep, 0), count)
    order = np.random.RandomState([seed, purpose]).permutation(len(labels))
    picked = [order[member[order] == c][:quota] for c, quota in enumerate(quotas)]
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def _quotas(sizes: Rows, limits: Rows, count: int) -> Rows:
    """How many to draw of each class: proportional to `sizes`, at most `limits`, `count` in all."""
    count = min(count, int(limits.sum()))
    floor = (limits > 0).astype(np.int64) if count >= np.count_nonzero(limits) else 0 * limits
    shares = sizes * (count / max(int(sizes.sum()), 1))
    quotas: Rows = np.clip(np.floor(shares).astype(np.int64), floor, limits)
    while (short := count - int(quotas.sum())) != 0:
        step = 1 if short > 0 else -1
        movable = quotas < limits if step > 0 else quotas > floor
        # Stable, so that of equal remainders the lower class number wins on every platform.
        ranked = np.argsort(-step * (shares - quotas), kind="stable")
        quotas[[c for c in ranked if movable[c]][: abs(short)]] += step
    return quotas


def _whole_groups(groups: NDArray[np.int64], fraction: float, seed: int) -> Rows:
    """Rows of randomly chosen groups that together come nearest to `fraction` of the samples."""
    names, member = np.unique(groups, return_inverse=True)
    order = np.random.RandomState([seed, Purpose.HOLDOUT]).permutation(len(names))
    reached = np.cumsum(np.bincount(member, minlength=len(names))[order])
    # At least one group is held out and at least one is not.
    nearest = int(np.argmin(np.abs(reached[:-1] - fraction * len(groups)))) if len(names) > 1 else 0
    rows: Rows = np.flatnonzero(np.isin(member, order[: nearest + 1]))
    return rows
