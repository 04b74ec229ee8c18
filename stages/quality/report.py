"""`quality.json`: everything that is said of one artifact beside the teacher on the eval split."""

from __future__ import annotations

from typing import Any

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.quality.band import Corrupted, band
from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.tasks import Outcome


def report(
    data: Dataset, own: Outcome, teacher: Outcome, corrupted: Corrupted | None = None
) -> dict[str, Any]:
    """For JSON: what the task says, and the band of scores on `corrupted` pictures, if any.

    Aggregates only, and the ids of at most 20 samples. `docs/quality.md` has the keys.
    """
    compared = Compared.on_eval(data, own, teacher)
    robust = band(corrupted or {}, own.score, teacher.score, compared.confidence, compared.groups)
    return data.task.quality(compared) | {"robustness": robust}
