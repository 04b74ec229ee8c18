"""Capturing: the graph computes what the model does, and the model stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.targets.errors import StageError

NAMES = ("residual", "mobile", "unet", "mixed")
ATEN = torch.ops.aten


class After(nn.Module):
    """A convolution, and what a test does with its output."""

    def __init__(self, then: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.then = then

    def forward(self, x: Tensor) -> object:
        return self.then(self.conv(x))


def overwrites_a_slice(y: Tensor) -> Tensor:
    y[:, 0].mul_(2)
    return y


def overwrites_behind_a_view(y: Tensor) -> Tensor:
    flat = y.flatten(1)
    y.add_(1)
    return flat


def reads_an_overwritten_tensor(y: Tensor) -> Tensor:
    z = y.relu_()
    return y + z


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_model_computes(name: str, network, images) -> None:
    """Batch norms are folded into every layer, for any batch size, without changing the output."""
    model = network(name)
    graph = capture(model, images(2))
    x = images(7, seed=5)

    torch.testing.assert_close(graph(x), model(x), atol=2e-6, rtol=1e-5)
    assert not [n for n in graph.graph.nodes if n.target is ATEN.batch_norm.default]
    assert not [n for n in graph.graph.nodes if n.target is ATEN.dropout.default]


@pytest.mark.parametrize("name", NAMES)
def test_shares_nothing_with_the_model(name: str, network, images) -> None:
    """torch.export shares parameters with its source; training the graph must not train it."""
    model = network(name).train()
    before = copy.deepcopy(model.state_dict())
    graph = capture(model, images(2))
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1)

    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.training


def test_everything_left_is_used_and_trains(network, images) -> None:
    """Unused layers and folded statistics are gone; a frozen model's weights can be trained."""
    model = network("residual").requires_grad_(False)
    graph = capture(model, images(2))
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}

    assert set(graph.state_dict()) == read
    assert len(read) == 2 * 5
    assert all(parameter.requires_grad for parameter in graph.parameters())


def test_linear_layers_are_folded() -> None:
    """BatchNorm1d behind a linear layer without bias disappears too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU())
    model(torch.randn(64, 3, 2, 2) * 3 + 1)
    model.eval()
    graph = capture(model, torch.randn(2, 3, 2, 2))
    x = torch.randn(9, 3, 2, 2)

    torch.testing.assert_close(graph(x), model(x), atol=1e-6, rtol=1e-5)
    assert not [n for n in graph.graph.nodes if n.target is ATEN.batch_norm.default]


def test_shared_weights_are_folded_apart(images) -> None:
    """One convolution in front of two batch norms becomes two layers."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = norm(self.conv(x)).relu()
            return x

    torch.manual_seed(0)
    model = Twice()
    model(images(32))
    graph = capture(model.eval(), images(2))

    torch.testing.assert_close(graph(images(5)), model(images(5)), atol=1e-5, rtol=1e-5)
    assert not [n for n in graph.graph.nodes if n.target is ATEN.batch_norm.default]


def test_a_batch_norm_that_cannot_be_folded_stays(images) -> None:
    """Before a convolution, or behind one that is read elsewhere, it is computed in float."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 1)
            self.second = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(F.relu(self.norm(x)))
            return y + self.second(y)

    torch.manual_seed(0)
    model = PreActivation()
    model(images(32))
    graph = capture(model.eval(), images(2))

    torch.testing.assert_close(graph(images(5)), model(images(5)))
    assert len([n for n in graph.graph.nodes if n.target is ATEN.batch_norm.default]) == 2


@pytest.mark.parametrize(
    "then",
    [
        reads_an_overwritten_tensor,
        lambda y: F.relu(y.flatten(2), inplace=True),
        lambda y: y.add_(1),
    ],
)
def test_in_place_operators_become_functional(then, images) -> None:
    """What reads an overwritten tensor afterwards reads the new values."""
    model = After(then)
    graph = capture(model, images(2))

    torch.testing.assert_close(graph(images(5)), model(images(5)))
    schemas = [getattr(node.target, "_schema", None) for node in graph.graph.nodes]
    assert not any(schema.is_mutable for schema in schemas if schema)


@pytest.mark.parametrize("then", [overwrites_a_slice, overwrites_behind_a_view])
def test_overwriting_through_a_view_is_refused(then, images) -> None:
    """Without memory to share, the other view would keep its old values."""
    with pytest.raises(StageError, match="goes on using"):
        capture(After(then), images(2))


def test_a_lone_tensor_in_a_dictionary_is_the_output(images) -> None:
    """Segmentation models return {"out": tensor}."""
    model = After(lambda y: {"out": y})

    torch.testing.assert_close(capture(model, images(2))(images(3)), model(images(3))["out"])


@pytest.mark.parametrize(
    ("then", "says"),
    [
        (lambda y: y if y.sum() > 0 else -y, "GuardOnDataDependentSymNode"),
        (lambda y: y.reshape(2, -1), "batch"),
        (lambda y: (y, y + 1), "2 outputs"),
        (lambda y: y.shape[2], "0 outputs"),
        (lambda y: y.no_such_method(), "no_such_method"),
    ],
)
def test_what_cannot_be_captured_says_why(then, says, images, capfd) -> None:
    """One StageError with the reason and what to do; torch's own report is not printed."""
    with pytest.raises(StageError) as caught:
        capture(After(then), images(2))

    assert says in str(caught.value)
    assert caught.value.fix
    assert capfd.readouterr() == ("", "")


def test_a_single_sample_is_refused(images) -> None:
    """torch.export would take a batch of one for a constant."""
    with pytest.raises(StageError, match="at least two"):
        capture(After(torch.relu), images(1))
