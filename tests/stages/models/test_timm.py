"""Networks of timm, where it is installed, and what is said where it is not."""

from __future__ import annotations

import importlib.util

import pytest

from kdpipe.stages.models.source import ModelSettings
from kdpipe.targets.errors import UsageError

INSTALLED = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not INSTALLED, reason="timm is not installed: kdpipe[timm]")


@pytest.mark.skipif(INSTALLED, reason="timm is installed")
def test_without_timm_the_extra_is_named() -> None:
    """The error is the command to type."""
    with pytest.raises(UsageError) as caught:
        ModelSettings(model="timm:resnet18").blueprint((3, 32, 32), 10).build()

    assert caught.value.fix == "pip install 'kdpipe[timm]'"


@needs_timm
def test_a_network_of_timm() -> None:
    """Channels and classes are the data's, and the four stages are found."""
    blueprint = ModelSettings(model="timm:resnet18").blueprint((1, 64, 64), 7)
    model = blueprint.build()

    assert blueprint.taps_of(model) == {
        "stage1": "layer1",
        "stage2": "layer2",
        "stage3": "layer3",
        "stage4": "layer4",
        "embedding": "fc:in",
        "logits": "fc",
    }


@needs_timm
@pytest.mark.parametrize(
    ("model", "arguments", "match"),
    [
        ("timm:resnet1888", {}, "did you mean"),
        ("timm:resnet18", {"widht": 2}, "cannot make 'resnet18'"),
        ("timm:resnet18", {"num_classes": 3}, "must return a tensor"),
    ],
)
def test_mistakes_are_usage_errors(model: str, arguments: dict[str, int], match: str) -> None:
    """Unknown names, arguments that timm refuses, and numbers that do not fit the data."""
    with pytest.raises(UsageError, match=match):
        ModelSettings(model=model, arguments=arguments).blueprint((3, 64, 64), 7).build()


@needs_timm
def test_stored_networks_are_not_downloaded_again() -> None:
    """`pretrained` stays in the blueprint, and is overruled where stored weights follow."""
    nowhere = {"pretrained": True, "cache_dir": "/dev/null/no-download-can-land-here"}
    blueprint = ModelSettings(model="timm:resnet18", arguments=nowhere).blueprint((3, 64, 64), 7)

    assert blueprint.arguments == nowhere
    assert blueprint.build(pretrained=False) is not None
