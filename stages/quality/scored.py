"""What a compiled file answers on the eval split: as pictures are, and corrupted if asked for.

The file runs as it is when it is timed, and the teacher's file beside it in the same runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evaluate import evaluate, session_forward
from kdpipe.stages.quality.robustness import Robustness, robustness
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.base import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scored:
    """`outcome` on the whole eval split, and `fp32`, that of the twin in fp32, if it is another
    file. `corrupted`: see `robustness`, empty if not asked for."""

    outcome: Outcome
    corrupted: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    fp32: Outcome | None = None


def score(
    target: Target,
    compiled: Compiled,
    data: Dataset,
    settings: Robustness | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Scored:
    """Judge the `artifact` of a compile stage, and its fp32 twin; with `settings` on corrupted
    pictures, too."""
    plain = target.model_copy(update={"precision": "fp32"})
    twin = None
    if "fp32" in compiled.roles:
        with plain.open(compiled.path("fp32")) as session:
            twin = evaluate(session_forward(session), data.eval, data.task)
    with target.open(compiled.path("artifact")) as session:
        forward = session_forward(session)
        outcome = evaluate(forward, data.eval, data.task, probabilities=True)
        if settings is None:
            return Scored(outcome, {}, twin)
        with plain.open(compiled.path("teacher")) as teacher:
            forwards = {"artifact": forward, "teacher": session_forward(teacher)}
            found = robustness(forwards, data.eval, data.task, settings, on_progress)
    return Scored(outcome, found, twin)
