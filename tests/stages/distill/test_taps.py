"""Taps: named tensors inside a network, returned beside its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdpipe.stages.distill.taps import LOGITS, Tapped
from kdpipe.targets.errors import UsageError

torch.set_num_threads(1)


class Net(nn.Module):
    """Two convolutions, a head, and a module that the forward pass does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 6, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 3)."""
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3)))


class Skipping(nn.Module):
    """A network that leaves its first block out where the input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) -> (B, 2)."""
        return self.block(x) if x.sum() > 0 else x


@pytest.fixture
def net() -> Net:
    """A fresh network in eval mode."""
    torch.manual_seed(0)
    return Net().eval()


TAPS = {"stage1": "stem", "stage2": "body", "embedding": "head:in"}


def test_without_taps_there_is_only_the_output(net: Net):
    """The role `logits` is the output of the network, whatever it is called inside."""
    x = torch.randn(2, 1, 8, 8)

    seen = Tapped(net, TAPS)(x)

    assert list(seen) == [LOGITS]
    assert torch.equal(seen[LOGITS], net(x))


def test_a_tap_is_an_output_or_an_input_of_a_module(net: Net):
    """`path` gives what the module returns, `path:in` what it takes."""
    x = torch.randn(2, 1, 8, 8)

    seen = Tapped(net, TAPS, ["stage1", "embedding", LOGITS])(x)

    assert sorted(seen) == ["embedding", LOGITS, "stage1"]
    assert torch.equal(seen["stage1"], net.stem(x))
    assert torch.equal(net.head(seen["embedding"]), seen[LOGITS])


def test_a_path_is_a_role_of_its_own(net: Net):
    """Modules that have no role can be tapped by their path."""
    seen = Tapped(net, {}, ["body", "head:in"])(torch.randn(2, 1, 8, 8))

    assert seen["body"].shape == (2, 6, 8, 8)
    assert seen["head:in"].shape == (2, 6)


def test_a_call_remembers_nothing_of_the_one_before(net: Net):
    """What was returned earlier stays as it was."""
    tapped = Tapped(net, TAPS, ["stage1"])
    first = tapped(torch.zeros(2, 1, 8, 8))
    kept = first["stage1"].clone()

    tapped(torch.ones(5, 1, 8, 8))

    assert torch.equal(first["stage1"], kept)


def test_a_tap_left_out_by_one_call_is_not_filled_from_another():
    """A tensor of the batch before would be silently wrong; it is an error."""
    tapped = Tapped(Skipping(), {}, ["block"])
    tapped(torch.ones(1, 2))

    with pytest.raises(UsageError, match="tap 'block' gave no tensor"):
        tapped(-torch.ones(1, 2))


@pytest.mark.parametrize("wanted", ["stage9", "body.3", "stem:out"])
def test_a_missing_tap_lists_what_there_is(net: Net, wanted: str):
    """The message names the tap, the network, its roles and its modules."""
    with pytest.raises(UsageError, match=f"tap '{wanted}' does not exist in Net") as error:
        Tapped(net, TAPS, [wanted])

    assert "roles logits, stage1, stage2, embedding" in error.value.found
    assert "modules stem, body, unused, head" in error.value.found
    assert "taps" in error.value.fix


def test_a_tap_that_never_runs_is_named(net: Net):
    """A module outside the forward pass has nothing to give; that is said, with its path."""
    with pytest.raises(UsageError, match="tap 'unused' gave no tensor") as error:
        Tapped(net, {}, ["unused"])(torch.randn(2, 1, 8, 8))

    assert "Net" in error.value.found


def test_a_tap_of_several_tensors_is_refused():
    """A method compares tensors; a module that returns a tuple has to be tapped further inside."""
    tapped = Tapped(nn.Sequential(nn.LSTM(4, 3)), {"memory": "0"}, ["memory"])

    with pytest.raises(UsageError, match="tap 'memory' gave no tensor") as error:
        tapped(torch.randn(5, 2, 4))

    assert "tuple" in error.value.found


def test_gradients_flow_through_taps(net: Net):
    """A loss on a tap trains what is before it, and nothing behind it."""
    Tapped(net, TAPS, ["stage1"])(torch.randn(2, 1, 8, 8))["stage1"].square().sum().backward()

    assert net.stem.weight.grad is not None
    assert net.head.weight.grad is None


def test_taps_survive_compilation(net: Net):
    """As outputs of one graph, they are what they are without torch.compile."""
    x = torch.randn(2, 1, 8, 8)
    tapped = Tapped(net, TAPS, ["stage1", "embedding"])
    expected = tapped(x)

    found = torch.compile(tapped, fullgraph=True, backend="aot_eager")(x)

    assert sorted(found) == sorted(expected)
    assert all(torch.allclose(found[role], expected[role]) for role in expected)
