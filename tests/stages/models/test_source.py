"""Model settings: what `model:` may be, whose paths, and blueprints that survive JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.models.source import Blueprint, ModelSettings
from kdpipe.stages.paths import Typed
from kdpipe.targets.errors import UsageError


def test_paths_are_relative_to_the_config(net: Path) -> None:
    """`net.py:Net` in a config means the file beside the config."""
    settings = ModelSettings.model_validate({"model": "net.py:Net"}, context={"base": net.parent})

    assert f"{net}:Net" == str(settings.model)
    assert {"model.file": net} == dict(settings.files())


def test_typed_paths_are_relative_to_the_shell(net: Path, tmp_path: Path) -> None:
    """`--set teacher.model=net.py:Net` means the file in the shell's folder."""
    given = {"model": Typed("net.py:Net", net.parent)}
    settings = ModelSettings.model_validate(given, context={"base": tmp_path / "config"})

    assert net == settings.model.file


def test_the_function_is_part_of_the_fields_and_the_path_is_its_own(net: Path) -> None:
    """The cache drops the path for the content, but must tell two functions of a file apart."""
    dump = ModelSettings(model=f"{net}:Net").model_dump(mode="json")

    assert {"kind": "module", "name": "Net", "file": str(net), "data": {}} == dump["model"]


def test_settings_survive_their_own_dump(net: Path) -> None:
    """A resolved config can be read again."""
    for model in (f"{net}:Net", "resnet20", "timm:resnet18"):
        settings = ModelSettings(model=model)

        assert settings == ModelSettings.model_validate_json(settings.model_dump_json())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("resnet21", "did you mean 'resnet20'"),
        ("resnet50", "resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, resnet110"),
        ("timm:", "has no name"),
        ("missing.py:f", "does not exist"),
        ("missing.onnx", "does not exist"),
        ("net.py", "the function in it"),
        ("best.pth", "file of weights"),
        ("", "unknown model ''"),
    ],
)
def test_unknown_models_are_reported_with_their_field(model: str, match: str) -> None:
    """A ValidationError at `model`, so that the config can show the line."""
    with pytest.raises(ValidationError, match=match) as caught:
        ModelSettings(model=model)

    assert [error["loc"] for error in caught.value.errors()] == [("model",)]


def test_unknown_arguments_are_reported_with_their_field() -> None:
    """A ValidationError at `arguments`, before anything runs."""
    with pytest.raises(ValidationError, match="has no argument 'depth'") as caught:
        ModelSettings(model="resnet20", arguments={"depth": 2})

    assert [error["loc"] for error in caught.value.errors()] == [("arguments",)]


def test_a_wrong_model_hides_no_second_problem_and_adds_none() -> None:
    """Arguments of an unknown model are not judged."""
    with pytest.raises(ValidationError) as caught:
        ModelSettings(model="resnet21", arguments={"depth": 2})

    assert caught.value.error_count() == 1


def test_argument_types_are_kept() -> None:
    """true stays a truth value and 1 a whole number."""
    given = {"a": True, "b": 1, "c": 0.5, "d": "x"}
    settings = ModelSettings(model="timm:resnet18", arguments=given)

    assert [(True, bool), (1, int), (0.5, float), ("x", str)] == [
        (value, type(value)) for value in settings.arguments.values()
    ]


def test_the_schema_says_text() -> None:
    """An editor offers a string for `model`, not kdpipe's reading of it."""
    schema = ModelSettings.model_json_schema()

    assert schema["properties"]["model"]["type"] == "string"


def test_blueprints_survive_json() -> None:
    """Arguments are complete, so that a later default changes no stored network."""
    blueprint = ModelSettings(model="resnet20").blueprint((1, 28, 28), 10)

    assert blueprint == Blueprint.from_json(blueprint.to_json())
    assert json.loads(blueprint.to_json())["arguments"] == {"width": 1.0}
    assert blueprint.in_channels == 1


def test_blueprints_build_the_same_network_again() -> None:
    """A state dict fits the network that a stored blueprint builds."""
    blueprint = ModelSettings(model="dscnn", arguments={"width": 0.5}).blueprint((1, 28, 28), 4)
    model, again = blueprint.build(), Blueprint.from_json(blueprint.to_json()).build()
    again.load_state_dict(model.state_dict())
    x = torch.randn(3, 1, 28, 28)

    assert torch.equal(model.eval()(x), again.eval()(x))


def test_blueprints_shrink(tmp_path: Path) -> None:
    """A third of resnet20 at half the width, saved and loaded by name."""
    smaller = ModelSettings(model="resnet20").blueprint((3, 32, 32), 10).shrink(0.34, 0.5)
    smaller.save(tmp_path)

    assert Blueprint("resnet8", {"width": 0.5}, (3, 32, 32), 10) == smaller
    assert smaller == Blueprint.load(tmp_path)
    assert {"stage1", "stage2", "stage3", "embedding", "logits"} == set(smaller.taps)


def test_only_the_zoo_shrinks(net: Path) -> None:
    """A user's own network has no description to scale."""
    with pytest.raises(UsageError, match="can be shrunk"):
        ModelSettings(model=f"{net}:Net").blueprint((3, 8, 8), 10).shrink(0.5, 0.5)
