"""What two splits have in common, or one with itself: the pairs, and how they are written down."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Observer
from kdpipe.stages.dataset import Split
from kdpipe.stages.hygiene.sketch import Sketch
from kdpipe.stages.hygiene.twins import Seen, Twins, exact, near, repeats, shared_groups, without
from kdpipe.stages.pixels import Form

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

COLUMNS = ("split_a", "id_a", "label_a", "split_b", "id_b", "label_b", "kind", "distance")
FILE = "duplicates.csv"


@dataclass(frozen=True)
class Overlap:
    """Pairs of samples of `a` and `b`, by kind; `a` is `b` for pairs within a split.

    `sought` is the number of samples of `b` for which near duplicates were looked for, or None
    where none were: images of so few pixels are alike by chance, and train is not compared with
    itself.
    """

    a: Split
    b: Split
    twins: tuple[Twins, ...]
    sought: int | None

    @property
    def name(self) -> str:
        """Example: train-eval, or train."""
        return self.a.name if self.a is self.b else f"{self.a.name}-{self.b.name}"

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(P, 2) the pairs of all kinds but groups: samples that show the same."""
        found = [twins.rows for twins in self.twins if twins.kind != "group"]
        return np.concatenate([np.empty((0, 2), np.int64), *found])

    @cached_property
    def hit(self) -> NDArray[np.int64]:
        """Rows of `b` that are in `a` too, or have a sibling there: same pixels, same group."""
        rows = [self.rows[:, 1]]
        if self.a is not self.b and self.a.groups is not None and self.b.groups is not None:
            rows.append(np.flatnonzero(np.isin(self.b.groups, self.a.groups)))
        return np.unique(np.concatenate(rows))

    def counts(self) -> dict[str, Any]:
        """Pairs by kind, and how far near ones were sought, for `meta.json`."""
        pairs: dict[str, Any] = {twins.kind: len(twins) for twins in self.twins}
        return {**pairs, "sought": self.sought, "of": len(self.b)}

    def shown(self, most: int = 5) -> list[str]:
        """The first pairs for people. Example: train/7 = eval/2 (near)"""
        pairs = [
            f"{self.a.ids[i]} = {self.b.ids[j]}" + ("" if t.kind == "exact" else f" ({t.kind})")
            for t in self.twins
            for i, j in t.rows[:most].tolist()
        ]
        return pairs[:most]

    def lines(self, classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """One row of COLUMNS per pair."""
        for twins in self.twins:
            for (i, j), distance in zip(twins.rows.tolist(), twins.distance, strict=True):
                left, right = _described(self.a, i, classes), _described(self.b, j, classes)
                yield (*left, *right, twins.kind, f"{max(distance, 0):.5f}")


def between(a: Split, b: Split, sketches: tuple[Sketch, Sketch], observer: Observer) -> Overlap:
    """What is in both splits."""
    ours, theirs = Seen(a.images, sketches[0]), Seen(b.images, sketches[1])
    equal, groups = exact(*sketches), shared_groups(a.groups, b.groups)
    if not _searchable(sketches[0]) or not _searchable(sketches[1]):
        return Overlap(a, b, (equal, groups), None)
    form = _form(a)
    alike, sought = near(ours, theirs, form, observer)
    turned, _ = near(ours, theirs, form, observer, mirrored=True)
    for others in (equal, alike):
        turned = without(turned, others)
    return Overlap(a, b, (equal, alike, turned, groups), sought)


def within(split: Split, sketch: Sketch, observer: Observer | None) -> Overlap:
    """What a split has more than once; near duplicates too where an observer is given."""
    if observer is None or not _searchable(sketch):
        return Overlap(split, split, (repeats(sketch),), None)
    seen = Seen(split.images, sketch)
    alike, sought = near(seen, seen, _form(split), observer, same=True)
    return Overlap(split, split, (repeats(sketch), alike), sought)


def write_pairs(path: Path, lines: Iterable[tuple[str, ...]]) -> None:
    """Rows of COLUMNS as CSV, UTF-8, below a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(lines)


def _described(split: Split, row: int, classes: Sequence[str]) -> tuple[str, str, str]:
    """Split, id and class; samples with maps, or without labels, have no class."""
    return split.name, split.ids[row], _class(split, row, classes)


def _class(split: Split, row: int, classes: Sequence[str]) -> str:
    if not labelled(split):
        return ""
    number = int(split.labels[row])
    return classes[number] if number < len(classes) else str(number)


def labelled(split: Split) -> bool:
    """Whether each sample has one class; calibration samples of their own have none."""
    return len(split.labels.shape) == 1 and split.name != "calibration"


def _searchable(sketch: Sketch) -> bool:
    return bool(sketch.hashes.shape[1])


def _form(split: Split) -> Form:
    how = split.preprocess
    return Form(how.height, how.width, how.channels)
