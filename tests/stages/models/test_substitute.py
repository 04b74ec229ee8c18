"""`student.substitute`: which activations are replaced, and what is said when there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.models.substitute import CLASSES, REPLACEMENTS, substitute
from kdpipe.stages.student import Student
from kdpipe.targets.errors import UsageError


class Shared(nn.Module):
    """One SiLU in two places, one of them nested, beside a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), self.act, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x))


class HardSwishMe(nn.Module):
    """As timm calls its own: known by its class name, wherever it is from."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.clamp(x + 3, 0, 6) / 6


@pytest.mark.parametrize("name", [n for n in CLASSES if n != "relu"])
def test_each_activation_of_torch_is_found(name: str) -> None:
    """Every name stands for one class of torch.nn, and that is replaced."""
    (kind,) = CLASSES[name] & set(vars(nn))
    model = nn.Sequential(nn.Linear(2, 2), getattr(nn, kind)())

    substitute(model, {name: "relu"})

    assert type(model[1]) is nn.ReLU


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_each_replacement_is_made(name: str) -> None:
    """Never in place, because a tap may hold the tensor that it would overwrite."""
    model = nn.Sequential(nn.Tanh())

    substitute(model, {"tanh": name})

    assert type(model[0]).__name__ == REPLACEMENTS[name]
    assert not getattr(model[0], "inplace", False)


def test_a_shared_module_is_replaced_in_all_its_places() -> None:
    """It stays shared, and others stay as they are."""
    model = Shared()

    substitute(model, {"silu": "relu"})

    assert type(model.act) is nn.ReLU
    assert model.body[1] is model.act
    assert type(model.body[2]) is nn.GELU
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(model(x), torch.relu(model.body(x)))


def test_two_replacements_are_made_at_once() -> None:
    """A chain of names is not followed: what was a SiLU becomes h-swish, and stays it."""
    model = nn.Sequential(nn.SiLU(), nn.Hardswish())

    substitute(model, {"silu": "hardswish", "hardswish": "relu6"})

    assert [type(m) for m in model] == [nn.Hardswish, nn.ReLU6]


def test_classes_of_other_libraries_go_by_their_names() -> None:
    """timm has activations of its own, and is not needed to know them."""
    model = nn.Sequential(HardSwishMe())

    substitute(model, {"hardswish": "relu6"})

    assert type(model[0]) is nn.ReLU6


@pytest.mark.parametrize(
    ("model", "found"),
    [(Shared(), "gelu (1 of them), silu (2 of them)"), (nn.Linear(1, 1), "no activation modules")],
    ids=["others", "none"],
)
def test_nothing_to_replace_is_refused(model: nn.Module, found: str) -> None:
    """The message lists the activations that there are, and says what a call would need."""
    with pytest.raises(UsageError, match="no module of the activation 'mish'") as caught:
        substitute(model, {"mish": "relu"})

    assert found in caught.value.found
    assert "F.silu(x)" in caught.value.fix


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"sillu": "relu"}, "did you mean 'silu'?"),
        ({"silu": "relu5"}, "did you mean 'relu'?"),
        ({"silu": "gelu"}, "'gelu' cannot stand here"),
        ({"relu": "relu"}, "would replace itself"),
    ],
)
def test_unknown_names_are_config_errors(wanted: dict[str, str], said: str) -> None:
    """Before anything runs, with the name that was probably meant."""
    with pytest.raises(ValidationError, match="substitute") as caught:
        Student.model_validate({"substitute": wanted})

    assert said in str(caught.value)


def test_it_is_part_of_the_blueprint(tmp_path: Path) -> None:
    """Stored and loaded again, the same network is built, and it is another than without."""
    plain = Blueprint("resnet8", {}, (1, 16, 16), 4)
    changed = Blueprint("resnet8", {}, (1, 16, 16), 4, substitute={"relu": "hardswish"})

    changed.save(tmp_path)
    again = Blueprint.load(tmp_path)

    assert again.builds_same(changed)
    assert not changed.builds_same(plain)
    kinds = {type(m) for m in again.build().modules()}
    assert nn.Hardswish in kinds
    assert nn.ReLU not in kinds
