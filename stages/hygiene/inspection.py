"""The inspection of a data set that is otherwise complete: all of the folder, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.draft import Drafts
from kdpipe.stages.hygiene import channels, labels
from kdpipe.stages.hygiene.leaks import count_leaks, require_clean
from kdpipe.stages.hygiene.overlap import FILE, Overlap, between, within, write_pairs
from kdpipe.stages.hygiene.sketch import Sketch, sketch
from kdpipe.stages.hygiene.twins import CORRELATION, DETAIL
from kdpipe.stages.pixels import Form
from kdpipe.targets.errors import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Inspection:
    """What was found of a dataset: `overlaps` of train and eval, train, and eval, in that order.

    Samples of a calibration source of their own are the fourth.
    """

    data: Dataset
    sketches: dict[str, Sketch]
    overlaps: tuple[Overlap, ...]

    @property
    def leaked(self) -> NDArray[np.int64]:
        """Rows of train, ascending, whose pixels, nearly or mirrored, are in eval too."""
        return np.unique(self.overlaps[0].rows[:, 0])

    def require_clean(self, allowed: bool, work: Work) -> None:
        """Raise DataError for leaks, unless they are `allowed`."""
        require_clean(self.overlaps, self.data.classes, allowed, work)

    def with_calibration(self, allowed: bool, work: Work) -> Inspection:
        """The same with the calibration samples, once they are chosen.

        Those of train were inspected with it; those of a source of their own are compared with
        eval. Raises as `require_clean` does.
        """
        if not self.data.own_calibration:
            rows = np.load(self.data.folder / "calibration.npy")
            return self._with("calibration", self.sketches["train"].pick(rows))
        own = self.data.calibration
        look = sketch(own.images)
        pair = look, self.sketches["eval"]
        shared = between(own, self.data.eval, pair, work.observer)
        require_clean([shared], self.data.classes, allowed, work)
        return self._with("calibration", look, shared)

    def _with(self, name: str, look: Sketch, *overlaps: Overlap) -> Inspection:
        sketches = {**self.sketches, name: look}
        return Inspection(self.data, sketches, (*self.overlaps, *overlaps))

    def report(self, drafts: Drafts, form: Form, work: Work) -> dict[str, Any]:
        """Write the pairs, tell what is worth knowing, and return it for `meta.json`."""
        classes = self.data.classes
        write_pairs(work.out / FILE, (x for found in self.overlaps for x in found.lines(classes)))
        tell, train = work.observer, self.sketches["train"]
        others = {name: one for name, one in self.sketches.items() if name != "train"}
        self._tell_repeats(work)
        return {
            "thresholds": {"correlation": CORRELATION, "detail": DETAIL},
            "pairs": {overlap.name: overlap.counts() for overlap in self.overlaps},
            "leaks": count_leaks(self.overlaps),
            "conflicts": labels.conflicts(self.overlaps, classes, tell),
            "balance": labels.balance(self.data, tell),
            "calibration": labels.calibration(self.data, tell),
            "levels": channels.levels(train, others, tell),
            **channels.pictures(self.sketches, tell),
            "enlarged": channels.sizes(drafts, form, tell),
        }

    def _tell_repeats(self, work: Work) -> None:
        for overlap in self.overlaps:
            if overlap.a is overlap.b and len(overlap.rows):
                again = len(np.unique(overlap.rows[:, 1]))
                work.observer.warn(
                    f"{again} of {len(overlap.b)} {overlap.name} samples repeat another one:"
                    f" {listing(overlap.shown(3), 3)}"
                )
            if overlap.sought is not None and overlap.sought < len(overlap.b):
                work.observer.warn(
                    f"near duplicates of {overlap.name} were sought for {overlap.sought} of"
                    f" {len(overlap.b)} samples, evenly spaced: all would be too many pairs"
                )


def inspect(data: Dataset, train: Sketch, held: Sketch, work: Work) -> Inspection:
    """Look for what train and eval share, and what each has more than once."""
    overlaps = (
        between(data.train, data.eval, (train, held), work.observer),
        within(data.train, train, None),
        within(data.eval, held, work.observer),
    )
    return Inspection(data, {"train": train, "eval": held}, overlaps)
