"""Networks of the user's own functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.stages.models.source import Blueprint, ModelSettings
from kdpipe.targets.errors import DataError, UsageError


def blueprint(file: Path, function: str, **arguments: Any) -> Blueprint:
    settings = ModelSettings(model=f"{file}:{function}", arguments=arguments)
    return settings.blueprint((3, 8, 8), 10)


def test_classes_and_channels_are_passed_where_asked_for(net: Path) -> None:
    """The function gets the data's numbers and the user's arguments."""
    model = blueprint(net, "Net", width=12).build()

    assert model.features[0].weight.shape[:2] == (12, 3)  # type: ignore[union-attr, index]
    assert tuple(model(torch.zeros(2, 3, 8, 8)).shape) == (2, 10)
    assert model.training


def test_the_users_own_numbers_win(net: Path) -> None:
    """`classes` from the arguments is passed on; that it does not fit the data is reported."""
    shapes = r"must return a tensor of shape \(2, 10\) for .* or \(2, 10, h, w\) where every pixel"
    with pytest.raises(UsageError, match=shapes) as caught:
        blueprint(net, "Net", classes=4).build()

    assert caught.value.found == "shape (2, 4)"


def test_functions_that_take_anything_get_what_is_given(net: Path) -> None:
    """Nothing is added to **options."""
    assert blueprint(net, "anything", outputs=10).build() is not None


@pytest.mark.parametrize(
    ("function", "arguments", "match"),
    [
        ("Nett", {}, "did you mean 'Net'"),
        ("Net", {"widht": 3}, "no argument 'widht'; did you mean 'width'"),
        ("number", {}, "does not return a torch.nn.Module"),
        ("broken", {}, "no such checkpoint"),
        ("probabilities", {}, "must return a tensor"),
    ],
)
def test_mistakes_are_usage_errors(
    net: Path, function: str, arguments: dict[str, Any], match: str
) -> None:
    """Each one says what was found and what to type."""
    with pytest.raises(UsageError, match=match) as caught:
        blueprint(net, function, **arguments).build()

    assert caught.value.found
    assert caught.value.fix


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("import nowhere_to_be_found", "install 'nowhere_to_be_found'"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, source: str, match: str) -> None:
    """What Python says is passed on, and no half module stays behind."""
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(UsageError, match=match):
        blueprint(path, "f").build()

    assert not [name for name in sys.modules if name.startswith("kdpipe_user_bad")]


def test_neighbours_of_the_file_are_not_importable(net: Path) -> None:
    """What the cache cannot see must not change the network in silence."""
    (net.parent / "neighbour.py").write_text("WIDTH = 8")
    net.write_text("from neighbour import WIDTH")
    with pytest.raises(UsageError, match="install 'neighbour'"):
        blueprint(net, "Net").build()

    assert str(net.parent) not in sys.path


def test_an_edit_is_seen_at_once_and_leaves_no_bytecode(net: Path) -> None:
    """Also within one second and with the same length, where a .pyc would be trusted."""
    assert blueprint(net, "Net").build().fc.in_features == 8  # type: ignore[union-attr]
    net.write_text(net.read_text().replace("width=8", "width=9"))

    assert blueprint(net, "Net").build().fc.in_features == 9  # type: ignore[union-attr]
    assert [net] == list(net.parent.iterdir())


def test_a_changed_file_does_not_build_an_old_result(net: Path) -> None:
    """A blueprint knows its file by content."""
    drawn = blueprint(net, "Net")
    net.write_text(net.read_text() + "\n# edited\n")
    with pytest.raises(DataError, match="not the one that this result was made with"):
        drawn.build()


def test_stored_blueprints_bring_their_file_along(net: Path, tmp_path: Path) -> None:
    """A stored network can be built after the user's folder moved, the store too."""
    drawn = blueprint(net, "Net", width=12)
    drawn.save(tmp_path / "stored")
    net.unlink()
    (tmp_path / "stored").rename(tmp_path / "elsewhere")
    loaded = Blueprint.load(tmp_path / "elsewhere")

    assert (drawn.arguments, drawn.shape, drawn.sha256) == (
        loaded.arguments,
        loaded.shape,
        loaded.sha256,
    )
    assert loaded.build().fc.in_features == 12  # type: ignore[union-attr]


def test_dense_outputs_are_accepted(net: Path) -> None:
    """A segmentation network returns a map of logits for each class."""
    net.write_text("from torch import nn\ndef make(classes):\n    return nn.Conv2d(3, classes, 1)")

    assert blueprint(net, "make").build() is not None
