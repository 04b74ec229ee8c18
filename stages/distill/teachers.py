"""Who taught before: the teacher of the chain, and the further ones that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, StrictInt, model_validator

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.schemes.base import Actor
from kdpipe.stages.models.source import ModelSettings
from kdpipe.stages.network import Network, require_outputs
from kdpipe.stages.paths import UserPath
from kdpipe.targets.errors import DataError, UsageError, listing


class FurtherTeacher(ModelSettings):
    """A trained network that teaches beside the chain's teacher, or in its place."""

    weights: UserPath | None = Field(
        None, description=".safetensors, or a .pth that loads with weights_only=True"
    )
    classes: tuple[StrictInt | str, ...] | None = Field(
        None,
        min_length=2,
        description="of a specialist: the class of each of its logits, by name or by position",
    )
    reads: str = Field("input", description="the entry of the batch that it looks at")

    @model_validator(mode="after")
    def _is_trained(self) -> Self:
        brings = not self.model.trainable or self.arguments.get("pretrained") is True
        if not self.weights and not brings:
            raise ValueError("a further teacher is not trained here: give its `weights`")
        if self.weights and not self.model.trainable:
            raise ValueError("an ONNX file brings its weights; remove `weights`")
        return self

    def files(self) -> Mapping[str, Path]:
        """The model's own files and the weights."""
        return {**super().files(), **({"weights": self.weights} if self.weights else {})}

    def check(self, field: str) -> None:
        """Raise DataError, naming the config's `field`, when the weights are not there."""
        if self.weights and not self.weights.is_file():
            raise DataError(
                f"{field}.weights: there is no file {self.weights}", fix="correct the path"
            )

    def load(self, data: Dataset, field: str) -> Actor:
        """The network as a frozen node; UsageError, naming the `field`, for unknown classes."""
        from kdpipe.stages.distill.graph import Node
        from kdpipe.stages.models import weights

        classes = self._positions(data.classes, field)
        blueprint = self.blueprint(
            data.shape_of(self.reads), len(classes) if classes else data.outputs
        )
        network = blueprint.build(pretrained=self.weights is None).eval()
        require_outputs(network, blueprint, data)
        if self.weights:
            weights.load(network, self.weights)
        taps = blueprint.taps_of(network)
        return Actor(Node(network, taps, "frozen", self.reads, classes), blueprint)

    def _positions(self, names: tuple[str, ...], field: str) -> tuple[int, ...] | None:
        if self.classes is None:
            return None
        unclear = [str(given) for given in self.classes if not _is_clear(given, names)]
        positions = [names.index(g) if g in names else g for g in self.classes]
        if unclear or len(set(positions)) < len(positions):
            raise UsageError(
                f"{field}.classes must be different classes of the data",
                found=f"{listing(unclear) or 'one class twice'}; the data has {_numbered(names)}",
                fix="give names in quotes, or positions from 0 on",
            )
        return tuple(int(position) for position in positions)


def chain_teacher(network: Network) -> Actor:
    """The teacher of the chain as a frozen node."""
    from kdpipe.stages.distill.graph import Node

    module = network.load()
    return Actor(Node(module, network.blueprint.taps_of(module), mode="frozen"), network.blueprint)


def _is_clear(given: int | str, names: tuple[str, ...]) -> bool:
    """A name, or a position that is not the name of another class."""
    if isinstance(given, str):
        return given in names
    known = 0 <= given < len(names)
    return known and (names[given] == str(given) or str(given) not in names)


def _numbered(names: tuple[str, ...]) -> str:
    return listing([f"{position} {name!r}" for position, name in enumerate(names)], 12)
