"""Counting parameters and multiply-accumulates, against formulas worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.stages.models import family_of
from kdpipe.stages.models.dry_run import dry_run
from kdpipe.stages.models.size import macs, parameters


def test_macs_of_resnet20_are_the_formulas() -> None:
    """40.81 M for 32x32: 9 C_in C_out H W per 3x3 convolution, the shortcuts and the head."""
    family = family_of("resnet20")
    model = family.build("resnet20", family.arguments("resnet20", {}), 3, 10)
    stem = 9 * 3 * 16 * 32**2
    stages = 6 * 9 * 16 * 16 * 32**2
    for c_in, c_out, side in ((16, 32, 16), (32, 64, 8)):
        stages += (9 * c_in * c_out + 5 * 9 * c_out * c_out + c_in * c_out) * side**2

    assert stem + stages + 640 == macs(model, (3, 32, 32))


def test_macs_of_grouped_convolutions_count_each_group() -> None:
    """A depthwise 3x3 on C channels costs 9 C H W."""
    model = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    assert macs(model, (8, 10, 12)) == 9 * 8 * 10 * 12


def test_shared_weights_count_once() -> None:
    """Tied layers are one set of parameters."""
    layer = nn.Linear(4, 4)

    assert parameters(nn.Sequential(layer, layer)) == 20


def test_what_torch_cannot_see_is_none_and_not_zero() -> None:
    """A black box has no parameters here; that is not a model of size 0."""
    assert parameters(nn.Identity()) is None
    assert macs(nn.Identity(), (3, 8, 8)) is None


def test_a_dry_run_leaves_no_trace() -> None:
    """BatchNorm does not move, no gradients appear, and frozen parts stay frozen."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    output = dry_run(model, (3, 8, 8))
    after = model.state_dict()

    assert not output.requires_grad
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_dry_run_that_fails_restores_the_modes_too() -> None:
    """A wrong shape does not leave the model in eval mode."""
    model = nn.Conv2d(3, 4, 3).train()
    try:
        dry_run(model, (2, 8, 8))
    except RuntimeError:
        assert model.training
    else:
        raise AssertionError("two channels must not fit a convolution of three")
