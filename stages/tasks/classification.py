"""Single-label classification: one class index per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.tasks.base import Outcome, Task
from kdpipe.targets.errors import DataError, UsageError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from kdpipe.stages.images import Labels
    from kdpipe.stages.quality.compared import Compared
else:
    from kdpipe.targets.lazy import np


class Classification(Task):
    """One of C classes per sample; outputs are logits (N, C), labels are integers (N,)."""

    metric: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "one class per sample; metric: accuracy"

    kind: Literal["classification"] = "classification"

    def outputs(self, classes: int) -> int:
        """One logit per class."""
        return classes

    def check_labels(self, labels: NDArray[np.generic], classes: int, split: str) -> None:
        """Raise DataError when a label is not an integer from 0 to classes - 1."""
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise DataError(
                f"the labels of {split} are not class numbers",
                found=f"{labels.dtype} of shape {labels.shape}",
                fix="give one whole number from 0 to C - 1 per sample"
                + (", or set `task: segmentation`" if labels.ndim == 3 else ""),
            )
        values = labels.astype(np.int64)
        bad = np.flatnonzero((values < 0) | (values >= classes))
        if bad.size:
            raise DataError(
                f"{bad.size} label(s) of {split} are out of range 0..{classes - 1}",
                found=listing([f"sample {i}: {values[i]}" for i in bad]),
                fix="correct the labels, or set data.classes to the right number",
            )

    def check_outputs(self, outputs: tuple[int, ...], image: tuple[int, int]) -> None:
        """Raise UsageError unless `outputs` are vectors (N, C)."""
        if len(outputs) != 2:
            raise UsageError(
                "classification needs a network that gives one vector of logits per image, (N, C)",
                found=f"outputs of shape {outputs} for images of {image[0]}x{image[1]}",
                fix="use a classifier, such as `model: resnet20`, or set `task: segmentation`",
            )

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy with optional label smoothing (Szegedy et al. 2016), mean over N.

        With `class_weights` (C,) it is the weighted mean, `sum_i w_yi l_i / sum_i w_yi`.
        """
        from torch.nn import functional as F

        return F.cross_entropy(
            outputs.float(),
            labels.long(),
            weight=class_weights,
            label_smoothing=label_smoothing,
        )

    def outcome(self, outputs: NDArray[np.float32], labels: NDArray[np.generic]) -> Outcome:
        """The highest logit wins. A row with NaN or infinity is predicted -1 and scores 0.

        Probabilities are the softmax, in float64 until they are stored; such a row has zeros.
        """
        prediction = outputs.argmax(axis=1).astype(np.int64)
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(outputs).all(axis=1))
        prediction[~finite] = -1
        probability = _softmax(np.where(finite[:, None], outputs, 0)) * finite[:, None]
        return Outcome(
            score=(prediction == labels).astype(np.float32),
            prediction=prediction,
            confidence=probability.max(axis=1).astype(np.float32),
            probability=probability.astype(np.float16),
        )

    def agreement(self, a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float32]:
        """1 where both models say the same class; -1 is no class (see `outcome`) and never does."""
        same: NDArray[np.float32] = (np.equal(a, b) & np.not_equal(a, -1)).astype(np.float32)
        return same

    def decisions(self, own: Outcome, teacher: Outcome, labels: Labels) -> Decisions:
        """Classes, and how sure of them both were; NaN where an older teacher was not asked."""
        unknown = np.full(len(labels), np.nan, np.float32)
        return Decisions(
            labels=labels[:].astype(np.int64),
            prediction=own.prediction.astype(np.int64),
            teacher_prediction=teacher.prediction.astype(np.int64),
            confidence=unknown if own.confidence is None else own.confidence,
            teacher_confidence=unknown if teacher.confidence is None else teacher.confidence,
        )

    def quality(self, compared: Compared) -> dict[str, Any]:
        """Also what each class loses, F1, confusions, calibration, and precision over recall."""
        from kdpipe.stages.quality.classification import classification

        decisions = self.decisions(compared.own, compared.teacher, compared.labels)
        return super().quality(compared) | classification(compared, decisions)


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities of finite logits (N, C), row by row."""
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
