"""The search by hash, against the plainest way to do it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import kdpipe.stages.hygiene.search as module
from kdpipe.stages.hygiene.search import search


def points(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 1, (count, 3)).astype(np.float32)


def plain(
    a: NDArray[np.float32], b: NDArray[np.float32], reach: float, same: bool
) -> set[tuple[int, int]]:
    """Of each row its nearest other row, if that is within reach."""
    apart = ((a[:, None].astype(float) - b[None]) ** 2).sum(axis=-1)
    if same:
        np.fill_diagonal(apart, np.inf)
    pairs = {(i, int(row.argmin())) for i, row in enumerate(apart) if row.min() <= reach}
    pairs |= {(int(row.argmin()), j) for j, row in enumerate(apart.T) if row.min() <= reach}
    return {(min(pair), max(pair)) for pair in pairs} if same else pairs


@pytest.mark.parametrize("reach", [0.0, 0.001, 0.01, 0.1])
@pytest.mark.parametrize("same", [False, True])
def test_every_row_finds_its_nearest(
    monkeypatch: pytest.MonkeyPatch, reach: float, same: bool
) -> None:
    """Whatever the tiles, the pairs are those of all distances computed one by one."""
    monkeypatch.setattr(module, "_TILE", (7, 11))
    a = points(60, 0)
    b = a if same else np.concatenate([points(35, 1), a[:5]])

    found = search(a, b, reach + 1e-6, same)

    assert {(int(i), int(j)) for i, j in found.pairs} == plain(a, b, reach + 1e-6, same)
    assert found.sought == len(b)


def test_more_pairs_than_the_budget_are_cut_and_told() -> None:
    """Evenly spaced rows of the second are sought, and no more; those that are found are right."""
    a = points(50, 0)

    found = search(a, a, 1e-6, budget=50 * 20)

    assert found.sought == 17  # every third of 50
    assert found.pairs.tolist() == [[i, i] for i in range(0, 50, 3)]


def test_nothing_to_search() -> None:
    """Empty splits have no pairs."""
    none = np.empty((0, 3), np.float32)

    assert search(none, points(4, 0), 1).pairs.shape == (0, 2)
    assert search(points(4, 0), none, 1).pairs.shape == (0, 2)
    assert search(points(1, 0), points(1, 0), 1, same=True).pairs.shape == (0, 2)


def test_progress_is_told() -> None:
    """By rows of the second split, to the last."""
    heard: list[tuple[int, int]] = []

    search(points(5, 0), points(1200, 1), 0.1, tell=lambda *steps: heard.append(steps))

    assert heard == [(512, 1200), (1024, 1200), (1200, 1200)]
