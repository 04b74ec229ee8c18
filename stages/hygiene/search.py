"""Which pictures of one split lie near which of another, by their hashes: exact, and bounded.

All N x M distances are computed, by matrix products in tiles of 2 MB: O(N M K) operations and
O(N + M) memory beside a tile. On one core 6e8 pairs (60,000 x 10,000) take 2 s and 2e10 about 50 s;
an index over 63 dimensions would hardly save any. Of more than BUDGET pairs only evenly spaced
samples of the second split are searched, and `Search` says how many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

BUDGET = 20_000_000_000
"""Most pairs that are compared: about a minute on one core."""
_TILE = (512, 1024)


@dataclass(frozen=True)
class Search:
    """Pairs (P, 2) of rows that lie near each other, and of how many rows of `b` all were sought.

    Each row with neighbours stands in one pair at least, with its nearest.
    """

    pairs: NDArray[np.int64]
    sought: int


def search(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    reach: float,
    same: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
    budget: int = BUDGET,
) -> Search:
    """Pairs of `a` (N, K) and `b` (M, K) with a squared distance of at most `reach`.

    With `same` both are one split, and no sample is its own neighbour: pairs are ascending.
    `tell(done, total)` hears of rows of `b`.
    """
    step = max(1, -(-len(a) * len(b) // budget))
    rows = np.arange(0, len(b), step)
    right = _extended(b[rows])[:, _swapped(a.shape[1])]
    near_a, near_b = _Nearest(len(a)), _Nearest(len(rows))
    for j in range(0, len(rows), _TILE[0]):
        for i in range(0, len(a), _TILE[1]):
            # minus half of the squared distances
            tile = right[j : j + _TILE[0]] @ _extended(a[i : i + _TILE[1]]).T
            if same:
                own = rows[j : j + _TILE[0], None] == np.arange(i, min(i + _TILE[1], len(a)))
                tile[own] = -np.inf
            if tile.size and tile.max() >= -reach / 2:
                near_b.update(j, i, tile)
                near_a.update(i, j, tile.T)
        tell(min(j + _TILE[0], len(rows)), len(rows))
    found = [near_a.pairs(reach), near_b.pairs(reach)[:, ::-1]]
    pairs = np.concatenate(found)
    pairs[:, 1] = rows[pairs[:, 1]]
    if same:
        pairs.sort(axis=1)
    return Search(np.unique(pairs, axis=0), len(rows))


class _Nearest:
    """The nearest other row that each row has met so far."""

    def __init__(self, count: int) -> None:
        self._value = np.full(count, -np.inf, np.float32)
        self._row = np.zeros(count, np.int64)

    def update(self, start: int, others: int, tile: NDArray[np.float32]) -> None:
        """Meet a tile: its rows begin at `start`, its columns stand for rows from `others` on."""
        column = tile.argmax(axis=1)
        value = tile[np.arange(len(tile)), column]
        mine = slice(start, start + len(tile))
        better = value > self._value[mine]
        self._value[mine] = np.where(better, value, self._value[mine])
        self._row[mine] = np.where(better, column + others, self._row[mine])

    def pairs(self, reach: float) -> NDArray[np.int64]:
        """(P, 2) rows with a neighbour within `reach`, and that neighbour."""
        mine = np.flatnonzero(self._value >= -reach / 2)
        return np.stack([mine, self._row[mine]], axis=1)


def _extended(hashes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, K + 2): with two more columns a product is a distance. See `_swapped`."""
    half = -(hashes**2).sum(axis=1, keepdims=True) / 2
    return np.concatenate([hashes, half, np.ones_like(half)], axis=1)


def _swapped(width: int) -> list[int]:
    """x y - x x / 2 - y y / 2 = -|x - y|^2 / 2: the other side has the two columns in turn."""
    return [*range(width), width + 1, width]
