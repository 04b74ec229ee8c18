"""Taps found in unknown networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdpipe.stages.models import family_of
from kdpipe.stages.models.roles import roles


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "dscnn"])
def test_found_taps_are_the_declared_ones(name: str) -> None:
    """What the search finds in the zoo's networks is what their families declare."""
    family = family_of(name)
    model = family.build(name, family.arguments(name, {}), 3, 10)

    assert family.taps == roles(model, (3, 32, 32))


def test_stages_end_where_a_decoder_begins() -> None:
    """In an hourglass only the way down has stages."""

    def block(stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 3, stride, 1), nn.Conv2d(3, 3, 3, 1, 1))

    model = nn.Sequential(block(1), block(2), nn.Upsample(scale_factor=2), block(1))

    assert roles(model, (3, 16, 16)) == {"stage1": "0", "stage2": "1"}


def test_the_search_leaves_no_hooks() -> None:
    """The model runs afterwards as before."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    found = roles(model, (3, 2, 2))

    assert found == {"embedding": "1:in", "logits": "1"}
    assert not any(module._forward_hooks for module in model.modules())


def test_other_outputs_than_tensors_are_passed_over() -> None:
    """Modules may return tuples and dicts inside."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.pair(x)[0].mean((2, 3)))
            return out

    assert roles(Net(), (3, 4, 4)) == {"embedding": "fc:in", "logits": "fc"}
    assert torch.is_grad_enabled()
