"""The supervised term of a training, as a recipe asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.recipe import Recipe
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.stages.distill.graph import Supervised
else:
    from kdpipe.targets.lazy import np


def supervised(recipe: Recipe, data: Dataset, weight: float = 1.0, start: int = 0) -> Supervised:
    """The task's loss with the recipe's label smoothing and class weights, from epoch `start`."""
    from kdpipe.stages.distill.graph import Supervised

    return Supervised(
        task=data.task,
        label_smoothing=recipe.label_smoothing,
        class_weights=_class_weights(recipe, data),
        weight=weight,
        start=start,
    )


def _class_weights(recipe: Recipe, data: Dataset) -> tuple[float, ...] | None:
    """One weight per class; `balanced` is N / (C n_c), as scikit-learn's `class_weight`.

    N counts what has a label, samples or pixels. A class without any has nothing to weigh: 0.
    """
    classes, given = data.outputs, recipe.class_weights
    if given is None:
        return None
    if given == "balanced":
        counts = data.task.counts(data.train.labels, len(data.classes))
        weights = np.where(counts > 0, counts.sum() / (classes * np.maximum(counts, 1)), 0.0)
        return tuple(float(weight) for weight in weights)
    if len(given) != classes:
        raise UsageError(
            f"`class_weights` needs one weight for each of the {classes} classes",
            found=f"{len(given)} weights",
            fix="give one per class, or `class_weights: balanced`",
        )
    return given
