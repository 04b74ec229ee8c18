"""Scores on corrupted pictures, of artifact and teacher on the same pixels: its settings and run.

`band.py` says what they prove; this file is read with the config and imports no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from kdpipe.stages.dataset import Split
from kdpipe.stages.evaluate import Forward, together
from kdpipe.stages.quality.corruptions import corrupt
from kdpipe.stages.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]
else:
    from kdpipe.targets.lazy import np

Kind = Literal["gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg"]


class Robustness(BaseModel):
    """Which corruptions, on how many samples. Fields are the YAML under `benchmark.robustness`.

    It costs as much as judging corruptions x severities x samples twice, by artifact and teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    corruptions: tuple[Kind, ...] = Field(
        ("gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg"),
        min_length=1,
        description="what is done to the pictures, before preprocessing",
    )
    severities: tuple[Literal[1, 2, 3], ...] = Field(
        (1, 2, 3), min_length=1, description="how much, after Hendrycks and Dietterich 2019"
    )
    samples: PositiveInt = Field(512, description="random eval samples, or all of fewer")
    seed: int = Field(0, ge=0, description="of the noise")

    @field_validator("corruptions", "severities")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("one of them is named twice; name each once")
        return values


def chosen(total: int, samples: int) -> NDArray[np.int64]:
    """Numbers of the samples that are corrupted, in order: the same ones for the same two numbers.

    So what is kept of them, their scores, is enough to tell which groups they belong to.
    """
    if samples >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).permutation(total)[:samples])


def robustness(
    forwards: Mapping[str, Forward],
    split: Split,
    task: Task,
    settings: Robustness,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, tuple[Scores, Scores]]:
    """{"gaussian_noise/1": (scores of the artifact, of the teacher)}, (M,) each, paired.

    `forwards`: the `artifact` and the `teacher`, each as its compiled file runs in one runtime.
    """
    rows = chosen(len(split), settings.samples)
    variants = [(kind, level) for kind in settings.corruptions for level in settings.severities]
    found = {}
    for done, (kind, level) in enumerate(variants, start=1):
        own, teacher = _scores(forwards, split, task, rows, kind, level, settings.seed)
        found[f"{kind}/{level}"] = own, teacher
        if on_progress:
            on_progress(done, len(variants), f"{kind} {level}")
    return found


def _scores(
    forwards: Mapping[str, Forward],
    split: Split,
    task: Task,
    rows: NDArray[np.int64],
    kind: str,
    level: int,
    seed: int,
) -> tuple[Scores, Scores]:
    size = together(task, split.preprocess.height, split.preprocess.width)
    parts: dict[str, list[Scores]] = {"artifact": [], "teacher": []}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        x = split.preprocess(corrupt(split.images[batch], kind, level, batch, seed))
        for role, scores in parts.items():
            scores.append(task.outcome(forwards[role](x), split.labels[batch]).score)
    return np.concatenate(parts["artifact"]), np.concatenate(parts["teacher"])
