"""A trained network in the store: blueprint, weights, what it did on the eval split, its size."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Artifact
from kdpipe.stages.models.source import Blueprint
from kdpipe.stages.tasks import Outcome

if TYPE_CHECKING:
    from torch import nn

    from kdpipe.stages.dataset import Dataset

WEIGHTS = "weights.safetensors"


class Judged(Artifact):
    """A network in PyTorch, whatever its form, with what it did on the eval split."""

    @cached_property
    def outcome(self) -> Outcome:
        """What the network did on each eval sample, in PyTorch, in fp32."""
        return Outcome.load(self.folder / "outcome.npz")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """How it was made, and of a `Network` also `parameters` and `macs`."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text("utf-8"))
        return facts


class Network(Judged):
    """The output of the teacher stage, and of every stage that trains a network.

    `parameters` and `macs` among its facts are None for a black box.
    """

    @cached_property
    def blueprint(self) -> Blueprint:
        """How to build the network."""
        return Blueprint.load(self.folder)

    @property
    def onnx(self) -> Path | None:
        """The user's ONNX file, where the network is a black box."""
        return self.blueprint.onnx

    def load(self) -> nn.Module:
        """The network with its weights, in eval mode."""
        return load_weights(self.blueprint, self.folder / WEIGHTS)


def load_weights(blueprint: Blueprint, weights: Path) -> nn.Module:
    """Build a network and give it stored weights; a black box brings its own."""
    from kdpipe.stages.models import weights as files

    network = blueprint.build(pretrained=False)
    if weights.exists():
        files.load(network, weights)
    return network.eval()


def require_outputs(network: nn.Module, blueprint: Blueprint, data: Dataset) -> None:
    """Raise UsageError unless what the network gives is what the data's task needs."""
    from kdpipe.stages.models.dry_run import dry_run

    _, height, width = blueprint.shape
    output = dry_run(network, blueprint.shape)
    data.task.check_outputs(tuple(output.shape), (height, width))


def judge(network: nn.Module, data: Dataset, *, probabilities: bool = False) -> Outcome:
    """What a network does on each eval sample, in PyTorch, in eval mode and fp32."""
    from kdpipe.stages.evaluate import evaluate, network_forward

    forward = network_forward(network)
    return evaluate(forward, data.eval, data.task, probabilities=probabilities)


def details(outcome: Outcome, data: Dataset) -> dict[str, float]:
    """What the task reports of an outcome on the eval split beside its headline metric."""
    return dict(data.task.details(outcome.prediction, data.eval.labels, data.classes))


def save_network(
    folder: Path,
    network: nn.Module,
    blueprint: Blueprint,
    data: Dataset,
    *,
    probabilities: bool = False,
    **facts: Any,
) -> Outcome:
    """Judge `network` on the eval split and write all that `Network` reads; returns the outcome.

    `probabilities`: those of every class are part of the outcome, see `evaluate`.
    """
    from kdpipe.stages.models import size, weights

    outcome = judge(network, data, probabilities=probabilities)
    folder.mkdir(exist_ok=True)
    outcome.save(folder / "outcome.npz")
    blueprint.save(folder)
    if any(True for _ in network.parameters()):
        weights.save(network, folder / WEIGHTS)
    facts |= {
        "parameters": size.parameters(network),
        "macs": size.macs(network, blueprint.shape),
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    return outcome
