"""What quality is judged from: an artifact and the teacher on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.stages.dataset import Dataset
    from kdpipe.stages.images import Labels
    from kdpipe.stages.tasks import Outcome


@dataclass(frozen=True)
class Compared:
    """Outcomes of both on N samples, in one order, with their labels (N,) or (N, H, W).

    `ids` (N) name the samples for people, `groups` (N,) say which belong together, None where each
    is on its own. `confidence`: of every one-sided bound. `seed`: of resampling.
    """

    own: Outcome
    teacher: Outcome
    labels: Labels
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    confidence: float = 0.95
    seed: int = 0

    @classmethod
    def on_eval(cls, data: Dataset, own: Outcome, teacher: Outcome) -> Self:
        """Both on the eval split of `data`."""
        split = data.eval
        return cls(own, teacher, split.labels, data.classes, split.ids, split.groups)

    @property
    def counted(self) -> str:
        """What is counted as one in n."""
        return "samples" if self.groups is None else "groups"
