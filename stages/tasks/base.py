"""What a task is: what labels mean, what a loss is, and when an output is right.

It is the one place that knows the difference between classification, segmentation and regression.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from kdpipe.stages.evidence import Decisions
    from kdpipe.stages.images import Labels
    from kdpipe.stages.quality.compared import Compared
else:
    from kdpipe.targets.lazy import np

_CHUNK = 1 << 20
"""Labels that `counts` looks at together, each of which counting widens to 8 bytes."""


@dataclass(frozen=True)
class Outcome:
    """What one model did on each sample of a split, in the split's order; all that statistics need.

    `score`: float32 (N,), how right each sample is, 0.0 to 1.0 (classification: 0 or 1); its mean
    is the task's headline metric. `prediction`: (N, ...) what the model decided. `confidence`:
    float32 (N,), the probability that it gave to that decision, 0 where an output was not finite.
    `probability`: float16 (N, C), of each class; kept only where it was asked for (`evaluate`).
    Both are None for a task without classes, and in what older versions stored.
    """

    score: NDArray[np.float32]
    prediction: NDArray[np.generic]
    confidence: NDArray[np.float32] | None = None
    probability: NDArray[np.float16] | None = None

    @property
    def mean(self) -> float:
        """The headline metric, 0.0 to 1.0."""
        return float(self.score.mean())

    def save(self, path: Path) -> None:
        """Write what there is as a compressed .npz."""
        np.savez_compressed(path, **{k: v for k, v in vars(self).items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; never unpickles."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**stored)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The outcomes of consecutive batches as one; at least one, and all with the same parts."""

        def whole(name: str) -> Any:
            pieces = [getattr(part, name) for part in parts]
            return None if pieces[0] is None else np.concatenate(pieces)

        return cls(**{name: whole(name) for name in vars(parts[0])})


class Task(BaseModel, ABC):
    """What the outputs of a model mean. Fields are the YAML under `task:`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    metric: ClassVar[str]
    """Name of the headline metric, the mean of `Outcome.score`."""
    summary: ClassVar[str] = ""
    dense: ClassVar[bool] = False
    """Whether labels are maps (N, H, W), one label per pixel, and not (N,)."""
    mixes: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")
    """Which kinds of mixing are defined for its labels."""

    decision: ClassVar[str] = "argmax over axis 1"
    """How outputs become an answer, a key of `targets.device.decision.DECISIONS`; it is timed."""

    kind: str

    @property
    def ignored(self) -> int | None:
        """The label value that counts as no label; None where every label counts."""
        return None

    def counts(self, labels: Labels, classes: int) -> NDArray[np.int64]:
        """How many labelled samples or pixels each class has, (C,); ignored ones are left out.

        `labels`: those that `check_labels` let pass. Stored maps are read in chunks.
        """
        total = np.zeros(classes, dtype=np.int64)
        step = max(1, _CHUNK // math.prod(labels.shape[1:]))
        for start in range(0, len(labels), step):
            part = np.asarray(labels[start : start + step]).ravel()
            counted = part if self.ignored is None else part[part != self.ignored]
            total += np.bincount(counted, minlength=classes)
        return total

    @abstractmethod
    def outputs(self, classes: int) -> int:
        """How many output channels a model needs for `classes` classes."""

    @abstractmethod
    def check_labels(self, labels: NDArray[np.generic], classes: int, split: str) -> None:
        """Raise DataError naming the split when labels cannot be right for this task.

        Maps may come in chunks (n, H, W) of the split.
        """

    @abstractmethod
    def check_outputs(self, outputs: tuple[int, ...], image: tuple[int, int]) -> None:
        """Raise UsageError when a network whose outputs have this shape cannot do the task.

        `image`: height and width of its inputs.
        """

    @abstractmethod
    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Supervised loss, a scalar: mean over the batch, weighted by class, in fp32."""

    @abstractmethod
    def outcome(self, outputs: NDArray[np.float32], labels: NDArray[np.generic]) -> Outcome:
        """Judge a batch: outputs (N, C, ...) and labels (N, ...) -> score and prediction."""

    @abstractmethod
    def agreement(self, a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float32]:
        """How far two models' predictions agree on each sample, 0.0 to 1.0, shape (N,)."""

    def details(
        self,
        prediction: NDArray[np.generic],
        labels: Labels,
        classes: Sequence[str],
    ) -> Mapping[str, float]:
        """Further metrics over a whole split, for reports; the gate does not judge by them.

        `prediction` and `labels` (N, ...) as in `outcome`, `classes` the names of all classes.
        """
        return {}

    def decisions(self, own: Outcome, teacher: Outcome, labels: Labels) -> Decisions | None:
        """What `own` and the teacher decided on each sample, where that is a class; else None."""
        return None

    def quality(self, compared: Compared) -> dict[str, Any]:
        """What there is to say of an artifact beside the teacher, for `quality.json`.

        Every number stands with its unit, n and bounds. Any task has the drop of its score,
        agreement, subgroups and the worst samples.
        """
        from kdpipe.stages.quality.scores import scores

        return scores(
            compared, self.agreement(compared.own.prediction, compared.teacher.prediction)
        )
