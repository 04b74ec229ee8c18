"""Train and eval before their pixels are read; unlike `split.py`, which draws numbers, with ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from kdpipe.stages.sources.base import Part, PartName
from kdpipe.stages.split import Purpose, holdout, strata, stratified

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Draft:
    """A split to be: `rows` of a part, ascending."""

    name: Literal["train", "eval"]
    part: Part
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) class numbers; of maps there are none."""
        return self.part.numbers[self.rows].astype(np.int64)

    @property
    def strata(self) -> NDArray[np.int64]:
        """(n,) what `stratified` keeps in proportion."""
        return strata(self.part.labels)[self.rows]

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """(n,) group numbers, where there are groups."""
        return None if self.part.groups is None else self.part.groups[self.rows]

    def subset(self, most: int | None, seed: int) -> Draft:
        """At most `most` samples in the proportions of the strata; all of them when None."""
        if most is None or most >= len(self):
            return self
        return replace(self, rows=self.rows[stratified(self.strata, most, seed, Purpose.SUBSET)])

    def save(self, out: Path) -> None:
        """Write class numbers, groups and ids, as `Dataset` reads them; maps are written apart."""
        if not self.part.dense:
            np.save(out / f"{self.name}.labels.npy", self.labels)
        if self.groups is not None:
            np.save(out / f"{self.name}.groups.npy", self.groups)
        ids = [self.part.ids[row] for row in self.rows]
        (out / f"{self.name}.ids.json").write_text(json.dumps(ids), "utf-8")


Drafts: TypeAlias = tuple[Draft, Draft]
"""Train and eval."""


def split_pool(pool: Part, eval_fraction: float, seed: int) -> Drafts:
    """Train and eval out of one pool. Raises DataError when it is too small."""
    train, held = holdout(strata(pool.labels), pool.groups, eval_fraction, seed)
    return Draft("train", pool, train), Draft("eval", pool, held)


def whole(name: Literal["train", "eval"], parts: Mapping[PartName, Part]) -> Draft:
    """A split as the source declares it."""
    return Draft(name, parts[name], np.arange(len(parts[name].ids)))
