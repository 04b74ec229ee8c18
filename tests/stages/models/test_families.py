"""The zoo's families: sizes as published, shapes, export, shrinking, taps and errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdpipe.stages.models import FAMILIES, family_of, names
from kdpipe.stages.models.family import channels, kept
from kdpipe.targets.errors import UsageError

SMALL = [
    ("resnet8", {}),
    ("resnet", {"blocks": 2, "width": 0.5}),
    ("mobilenet", {"width": 0.25, "depth": 0.25}),
    ("dscnn", {}),
    ("vit", {"blocks": 1}),
]


def build(name: str, given: dict[str, float], in_channels: int = 3, classes: int = 10) -> nn.Module:
    family = family_of(name)
    return family.build(name, family.arguments(name, given), in_channels, classes)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def resnet_parameters(n: int, classes: int) -> int:
    """He et al. 2016, section 4.2, with option B: each conv followed by 2 numbers per channel."""
    conv = lambda c_in, c_out, k: c_in * c_out * k * k + 2 * c_out  # noqa: E731
    total = conv(3, 16, 3) + 2 * n * conv(16, 16, 3)
    for c_in, c_out in ((16, 32), (32, 64)):
        total += conv(c_in, c_out, 3) + (2 * n - 1) * conv(c_out, c_out, 3) + conv(c_in, c_out, 1)
    return total + 64 * classes + classes


@pytest.mark.parametrize("layers", [8, 14, 20, 32, 44, 56, 110])
def test_resnet_has_the_papers_layers_and_parameters(layers: int) -> None:
    """6n+2 weighted layers on the main path, and the parameters of an independent formula."""
    model = build(f"resnet{layers}", {})
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]

    assert layers == len(convs) + 1
    assert resnet_parameters((layers - 2) // 6, 10) == count(model)


def test_resnet20_has_the_known_number_of_parameters() -> None:
    """272,474: the paper's 0.27 M with 1x1 convolutions as shortcuts."""
    assert count(build("resnet20", {})) == 272_474


def test_mobilenet_has_the_published_number_of_parameters() -> None:
    """3,504,872 with 1000 classes, as torchvision's mobilenet_v2: strides change no weight."""
    assert count(build("mobilenet", {}, classes=1000)) == 3_504_872


def test_dscnn_counts_as_derived_by_hand() -> None:
    """Stem 27c + 2c, four blocks of 9c + 2c + cc + 2c, head 10c + 10, with c = 64."""
    c = 64

    assert 29 * c + 4 * (13 * c + c * c) + 10 * c + 10 == count(build("dscnn", {}))


def test_vit_counts_as_derived_by_hand() -> None:
    """Patches 48c + c, position 9c + c, four blocks, a norm of 2c, head 10c + 10, with c = 64.

    A block has two norms (4c), attention (3cc + 3c, cc + c) and the MLP (4cc + 4c, 4cc + c).
    """
    c = 64

    assert 49 * c + 10 * c + 4 * (12 * c * c + 13 * c) + 12 * c + 10 == count(build("vit", {}))


@pytest.mark.parametrize(
    ("patch", "height", "width", "size", "fitting"),
    [(3, 8, 8, "[6, 6]", 2), (32, 8, 8, "[32, 32]", 8), (4, 28, 30, "[28, 28]", 2)],
)
def test_vit_refuses_images_that_its_patches_do_not_cover(
    patch: int, height: int, width: int, size: str, fitting: int
) -> None:
    """Pixels that no patch sees would be lost in silence."""
    vit = family_of("vit")
    arguments = vit.arguments("vit", {"patch": patch})

    with pytest.raises(UsageError, match=f"multiples of {patch}") as error:
        vit.check_size("vit", arguments, height, width)
    assert error.value.found == f"images of {height}x{width}"
    assert error.value.fix == f"data.image_size: {size}, or `arguments: {{patch: {fitting}}}`"
    vit.check_size("vit", arguments, 2 * patch, 3 * patch)


@pytest.mark.parametrize(("name", "given"), SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 96])
def test_every_family_takes_any_image(
    name: str, given: dict[str, float], in_channels: int, size: int
) -> None:
    """Logits (N, classes), finite, in eval and in train mode."""
    model = build(name, given, in_channels, classes=7)
    x = torch.randn(2, in_channels, size, size)
    for training in (False, True):
        logits = model.train(training)(x)

        assert tuple(logits.shape) == (2, 7)
        assert logits.isfinite().all()


@pytest.mark.parametrize(("name", "given"), SMALL)
def test_every_family_exports(name: str, given: dict[str, float]) -> None:
    """torch.export with a free batch gives the same logits as the network."""
    model = build(name, given).eval()
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=free)
    x = torch.randn(5, 3, 16, 16)

    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize(("name", "given"), SMALL)
def test_taps_exist_and_carry_what_their_role_says(name: str, given: dict[str, float]) -> None:
    """Stages are maps of non-growing resolution; the embedding is a vector; logits the output."""
    model = build(name, given)
    modules = dict(model.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}
    for role, tap in family_of(name).taps.items():
        path, _, side = tap.partition(":")

        def record(_m, inputs, output, role=role, side=side):  # type: ignore[no-untyped-def]
            shapes[role] = tuple((inputs[0] if side else output).shape)

        modules[path].register_forward_hook(record)
    model(torch.randn(2, 3, 32, 32))
    stages = [shapes[role] for role in sorted(shapes) if role.startswith("stage")]

    assert all(len(shape) == 4 for shape in stages)
    assert stages == sorted(stages, key=lambda shape: -shape[2])
    assert len(shapes["embedding"]) == 2
    assert shapes["logits"] == (2, 10)


@pytest.mark.parametrize(("name", "given"), SMALL)
def test_no_activation_works_in_place(name: str, given: dict[str, float]) -> None:
    """A tapped feature keeps its values while the rest of the network runs."""
    model = build(name, given).eval()
    kept_at_tap: list[torch.Tensor] = []
    for module in list(model.modules())[1:]:
        module.register_forward_hook(lambda _m, _i, out: kept_at_tap.extend((out, out.clone())))
    model(torch.randn(2, 3, 16, 16))

    assert all(torch.equal(a, b) for a, b in zip(kept_at_tap[::2], kept_at_tap[1::2], strict=True))


@pytest.mark.parametrize(("name", "given"), SMALL)
def test_weights_follow_the_callers_seed(name: str, given: dict[str, float]) -> None:
    """The same seed gives the same network, another seed another one."""
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in build(name, given).parameters()]))

    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("name", "given"), SMALL)
def test_signal_keeps_its_scale_at_the_start(name: str, given: dict[str, float]) -> None:
    """Kaiming's fan-in holds for depthwise convolutions too: logits neither vanish nor explode."""
    torch.manual_seed(0)
    logits = build(name, given).train()(torch.randn(16, 3, 32, 32))

    assert 0.1 < logits.std().item() < 10


@pytest.mark.parametrize(
    ("name", "given"), [("resnet56", {}), ("mobilenet", {}), ("dscnn", {"blocks": 6})]
)
def test_shrinking_is_monotone(name: str, given: dict[str, float]) -> None:
    """Less depth or less width never gives more parameters, and at the ends clearly fewer."""
    family = family_of(name)
    for axis in ("depth", "width"):
        sizes = [count(build(name, given))]
        for share in (0.75, 0.5, 0.25, 0.1):
            shares = {"depth": 1.0, "width": 1.0, axis: share}
            sizes.append(count(build(*family.shrink(name, given, **shares))))

        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < 0.6 * sizes[0]


def test_shrinking_resnet_keeps_names_where_there_are_any() -> None:
    """resnet20 at a third of its depth is resnet8; resnet110 at a third is no named depth."""
    family = family_of("resnet20")

    assert family.shrink("resnet20", {}, 0.34, 0.5) == ("resnet8", {"width": 0.5})
    assert family.shrink("resnet110", {}, 0.34, 1) == ("resnet", {"blocks": 6, "width": 1.0})


def test_shrinking_twice_multiplies() -> None:
    """Half of half the width is a quarter."""
    family = family_of("mobilenet")
    once = family.shrink("mobilenet", {}, 1, 0.5)

    assert family.shrink("mobilenet", {}, 1, 0.25) == family.shrink(*once, 1, 0.5)


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [("resnet8", 0.5, 1.0), ("resnet20", 1.0, 1.0), ("dscnn", 0.99, 0.99), ("resnet20", 0.9, 0.99)],
)
def test_shrinking_that_changes_nothing_is_refused(name: str, depth: float, width: float) -> None:
    """A student as large as its teacher is a mistake in the config."""
    with pytest.raises(UsageError, match="changes nothing"):
        family_of(name).shrink(name, {}, depth, width)


@pytest.mark.parametrize(("depth", "width"), [(0, 1), (1.5, 0.5), (0.5, -1), (float("nan"), 0.5)])
def test_shares_outside_0_to_1_are_refused(depth: float, width: float) -> None:
    """Growing, vanishing and NaN are not shrinking."""
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        family_of("resnet20").shrink("resnet20", {}, depth, width)


def test_channels_are_multiples_of_4_and_at_least_8() -> None:
    """Rounded half up, as the docstring says."""
    assert [channels(16, width) for width in (1, 0.75, 0.5, 0.1, 1.375)] == [16, 12, 8, 8, 24]


def test_blocks_round_half_up_and_never_vanish() -> None:
    """3 blocks at a half are 2; one block stays one."""
    assert [kept(3, 0.5), kept(3, 0.34), kept(1, 0.01), kept(18, 0.5)] == [2, 1, 1, 9]


def test_unknown_argument_names_what_is_allowed() -> None:
    """The whole message, as a user reads it."""
    with pytest.raises(UsageError) as caught:
        family_of("resnet20").arguments("resnet20", {"widht": 2})

    expected = (
        "model 'resnet20' has no argument 'widht'; did you mean 'width'?\n"
        "  try:   use width (a number from 0.05 to 16)"
    )
    assert expected == str(caught.value)


@pytest.mark.parametrize("value", ["wide", True, 0, -1, float("nan"), float("inf"), 1e9])
def test_unfit_argument_is_refused(value: object) -> None:
    """Neither text, nor a truth value, nor a number out of bounds is a width."""
    with pytest.raises(UsageError, match="must be a number from"):
        family_of("dscnn").arguments("dscnn", {"width": value})


@pytest.mark.parametrize("value", [1.5, 0, "2", True])
def test_blocks_are_whole_numbers(value: object) -> None:
    """Half a block is not rounded in silence."""
    with pytest.raises(UsageError, match="must be a whole number"):
        family_of("resnet").arguments("resnet", {"blocks": value})


def test_unknown_model_lists_the_known_ones() -> None:
    """resnet50 is no CIFAR depth of ours; the error names all that are."""
    with pytest.raises(UsageError) as caught:
        family_of("resnet50")

    assert all(name in str(caught.value) for name in names())
    assert "timm:NAME" in str(caught.value)


def test_names_are_unique() -> None:
    """No two families claim one name."""
    assert len(names()) == len(set(names()))
    assert all(family.summary and family.taps for family in FAMILIES)


def test_describing_models_imports_no_torch() -> None:
    """`kdpipe plan` names, checks and shrinks models without paying for torch."""
    code = (
        "import sys, kdpipe.stages.models as m, kdpipe.stages.models.source as s\n"
        "b = s.ModelSettings(model='resnet20').blueprint((3, 32, 32), 10).shrink(0.34, 0.5)\n"
        "s.ModelSettings(model='timm:resnet18')\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(b.model)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("resnet8\n", "")
