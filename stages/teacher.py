"""The teacher stage: train a network here, load one, or take an ONNX file as a black box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.models.source import ModelSettings
from kdpipe.stages.network import Network, require_outputs, save_network
from kdpipe.stages.paths import UserPath
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.errors import DataError, StageError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class TeacherInputs:
    """What the teacher reads."""

    data: Dataset


class Teacher(ModelSettings, Stage):
    """The trained network that the student imitates and every artifact is compared with."""

    name: ClassVar[str] = "teacher"
    packages: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    Inputs: ClassVar[type] = TeacherInputs
    Output: ClassVar[type[Artifact]] = Network

    weights: UserPath | None = Field(
        None, description=".safetensors, or a .pth that loads with weights_only=True"
    )
    train: Recipe | None = Field(None, description="how to train it here, without weights")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        black_box = not self.model.trainable
        if self.weights and self.train:
            raise ValueError("give either `weights` or `train`, not both")
        if black_box and (self.weights or self.train):
            raise ValueError("an ONNX file brings its weights; remove `weights` and `train`")
        return self

    def distributions(self) -> tuple[str, ...]:
        """torch, and what the model itself needs."""
        return self.packages + self.model.packages

    def files(self) -> Mapping[str, Path]:
        """The model's own files and the weights."""
        return {**super().files(), **({"weights": self.weights} if self.weights else {})}

    def check(self) -> None:
        """Raise DataError when the weights are not there."""
        if self.weights and not self.weights.is_file():
            raise DataError(
                f"teacher.weights: there is no file {self.weights}",
                fix="correct the path, or use `train:` to train the teacher here",
            )

    def run(self, inputs: TeacherInputs, work: Work) -> None:
        """Build it, then train it or load its weights, then judge it on the eval split."""
        import torch

        from kdpipe.stages.models import weights

        trained_here = self.model.trainable and not self.weights
        recipe = (self.train or Recipe()) if trained_here else None
        torch.manual_seed(recipe.seed if recipe else 0)
        blueprint = self.blueprint(inputs.data.shape, inputs.data.outputs)
        network = blueprint.build()
        require_outputs(network, blueprint, inputs.data)
        trained: dict[str, Any] = {}
        if self.weights:
            weights.load(network, self.weights)
        elif recipe:
            trained = _train(network, recipe, inputs.data, work)
        data = inputs.data
        outcome = save_network(work.out, network, blueprint, data, probabilities=True, **trained)
        work.observer.fact("eval", value=outcome.mean, n=len(outcome.score))
        _refuse_a_guesser(outcome, inputs.data)


def _refuse_a_guesser(outcome: Outcome, data: Dataset) -> None:
    """Artifacts that agree with a teacher that learned nothing would pass the gate."""
    varied = np.count_nonzero(data.task.counts(data.eval.labels, len(data.classes))) > 1
    answer = outcome.prediction.flat[0]
    if varied and (outcome.prediction == answer).all():
        raise StageError(
            "the teacher has not learned the task: it gives one answer for every eval sample",
            found=f"{answer} for all {len(outcome.score)} samples",
            fix="train it longer or with a lower learning_rate; for loaded weights, check that"
            " they belong to this model, and that data.mean and data.std are those it learned with",
        )


def _train(network: nn.Module, recipe: Recipe, data: Dataset, work: Work) -> dict[str, Any]:
    from kdpipe.stages.distill.graph import Edge, Node
    from kdpipe.stages.supervision import supervised
    from kdpipe.stages.training import train

    loss = supervised(recipe, data)
    nodes, edges = {"teacher": Node(network)}, [Edge("teacher", loss)]
    return train(nodes, edges, recipe, data, work.scratch / "teacher.pt", work.observer)
