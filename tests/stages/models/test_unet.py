"""U-Net: sizes, shapes, roles, export, shrinking, and images that it cannot halve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.stages.models import family_of
from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.models.dry_run import dry_run
from kdpipe.targets.errors import UsageError

FAMILY = family_of("unet")
SMALL = {"width": 0.125, "depth": 2}


def plan(size: tuple[int, int] = (32, 32), classes: int = 5, **arguments: float) -> Blueprint:
    return Blueprint("unet", {**SMALL, **arguments}, (3, *size), classes)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_are_those_of_the_paper_with_this_way_up() -> None:
    """At width 1: ten 3x3 convolutions down, eight up; a 1x1 where the paper has 2x2 on the way up.

    Each but the head is followed by two numbers per channel, of BatchNorm.
    """

    def conv(c_in: int, c_out: int, k: int) -> int:
        return c_in * c_out * k * k + 2 * c_out

    widths = [64, 128, 256, 512, 1024]
    down = sum(
        conv(a, b, 3) + conv(b, b, 3) for a, b in zip([3, *widths[:-1]], widths, strict=True)
    )
    up = sum(conv(2 * c, c, 1) + conv(2 * c, c, 3) + conv(c, c, 3) for c in widths[:-1])

    assert down + up + 64 * 2 + 2 == count(plan(classes=2, width=1.0, depth=4).build())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_logits_have_the_size_of_the_image(depth: int, size: tuple[int, int]) -> None:
    """(N, classes, H, W), finite, in eval and in train mode; sides may differ."""
    model = plan(size, depth=depth).build()
    for training in (False, True):
        logits = model.train(training)(torch.randn(2, 3, *size))

        assert tuple(logits.shape) == (2, 5, *size)
        assert logits.isfinite().all()


def test_every_level_down_is_joined_on_the_way_up() -> None:
    """Without what comes from below, and without what comes from beside, the logits differ."""
    torch.manual_seed(0)
    model = plan(depth=3).build().eval()
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    for up in model.up:
        join = up.body[0].conv
        for half in (slice(0, join.out_channels), slice(join.out_channels, None)):
            kept = join.weight.detach().clone()
            with torch.no_grad():
                join.weight[:, half] = 0
                assert not torch.equal(before, model(x))
                join.weight.copy_(kept)


def test_roles_follow_the_depth() -> None:
    """Stages go down and halve; the last one is the bottom. `up1` has the full resolution."""
    blueprint = plan(depth=3)
    model, shapes = blueprint.build(), {}
    for role, path in blueprint.taps_of(model).items():

        def record(_m: nn.Module, _i: object, out: torch.Tensor, role: str = role) -> None:
            shapes[role] = tuple(out.shape[1:])

        model.get_submodule(path).register_forward_hook(record)
    dry_run(model, blueprint.shape)

    assert shapes == {
        "stage1": (8, 32, 32),
        "stage2": (16, 16, 16),
        "stage3": (32, 8, 8),
        "stage4": (64, 4, 4),
        "up1": (8, 32, 32),
        "up2": (16, 16, 16),
        "up3": (32, 8, 8),
        "logits": (5, 32, 32),
    }


def test_it_exports_with_a_free_batch() -> None:
    """torch.export gives the same logits for another number of images."""
    model = plan((16, 16)).build().eval()
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=free)
    x = torch.randn(5, 3, 16, 16)

    torch.testing.assert_close(exported.module()(x), model(x))


def test_signal_keeps_its_scale_at_the_start() -> None:
    """Through poolings, joins and enlargements logits neither vanish nor explode."""
    torch.manual_seed(0)
    logits = plan(depth=4).build().train()(torch.randn(8, 3, 32, 32))

    assert 0.1 < logits.std().item() < 10


def test_shrinking_takes_levels_or_channels() -> None:
    """A student of half the depth has half the poolings."""
    assert FAMILY.shrink("unet", {}, 0.5, 1) == ("unet", {"width": 0.5, "depth": 2})
    assert FAMILY.shrink("unet", {}, 1, 0.5) == ("unet", {"width": 0.25, "depth": 4})
    with pytest.raises(UsageError, match="changes nothing"):
        FAMILY.shrink("unet", {"depth": 1}, 0.5, 1)


@pytest.mark.parametrize(
    ("size", "fix"),
    [
        ((100, 100), r"data.image_size: \[96, 96\], or `arguments: {depth: 2}`"),
        ((96, 100), r"data.image_size: \[96, 96\], or `arguments: {depth: 2}`"),
        ((31, 96), r"data.image_size: \[16, 96\]"),
        ((8, 8), r"data.image_size: \[16, 16\], or `arguments: {depth: 3}`"),
    ],
)
def test_sides_that_cannot_be_halved_are_refused(size: tuple[int, int], fix: str) -> None:
    """Nothing is padded or cropped in silence; the error says what would fit."""
    with pytest.raises(UsageError, match="multiples of 16") as error:
        plan(size, depth=4).build()

    assert error.match(fix)
