"""Weights: round trips, others' checkpoints, and files that must not be trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdpipe.stages.models import weights
from kdpipe.targets.errors import DataError


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(2, 2))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    """Every parameter and buffer comes back bit for bit, channels-last and tied ones too."""
    model = net().to(memory_format=torch.channels_last)
    model.append(model[2])
    model[1].running_mean.normal_()
    weights.save(model, tmp_path / "w.safetensors")
    other = net()
    other.append(other[2])
    weights.load(other, tmp_path / "w.safetensors")

    assert_same(model, other)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{key}": value for key, value in s.items()}},
    ],
)
def test_others_checkpoints(tmp_path: Path, suffix: str, wrap: Any) -> None:
    """Plain, wrapped and DataParallel's state dicts are read."""
    model, other = net(), net()
    torch.save(wrap(model.state_dict()), tmp_path / f"w{suffix}")
    weights.load(other, tmp_path / f"w{suffix}")

    assert_same(model, other)


def test_a_prefix_of_the_models_own_is_kept(tmp_path: Path) -> None:
    """A network whose only child is called `module` needs its prefix."""
    model, other = nn.Module(), nn.Module()
    model.module, other.module = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    weights.load(other, tmp_path / "w.pth")

    assert_same(model, other)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    """The code in it never executes: no file appears, the model is untouched."""
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(canary),)

    torch.save({"state_dict": Attack()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="will not run the code"):
        weights.load(net(), tmp_path / "w.pth")

    assert not canary.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    """torch.save(model) holds classes; the error says how to save weights instead."""
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        weights.load(net(), tmp_path / "w.pth")

    assert "model.state_dict()" in caught.value.fix


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """A TorchScript archive is a program, not weights, though its suffix is .pt."""
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    with pytest.raises(DataError, match="plain weights"):
        weights.load(nn.Linear(2, 2), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut", b"\x80\x02]."])
def test_garbage_is_a_data_error(tmp_path: Path, name: str, content: bytes) -> None:
    """Whatever the bytes are, the user reads an error of ours."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        weights.load(net(), tmp_path / name)


def test_a_truncated_file_is_a_data_error(tmp_path: Path) -> None:
    """Half a download is recognised in both formats."""
    weights.save(net(), tmp_path / "w.safetensors")
    torch.save(net().state_dict(), tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError):
            weights.load(net(), path)


def test_misfits_are_listed_by_kind(tmp_path: Path) -> None:
    """Missing, unexpected and wrongly shaped tensors, ten of each at most, and nothing loaded."""
    state = net(width=6).state_dict()
    del state["2.bias"]
    state |= {f"extra{index}": torch.zeros(1) for index in range(12)}
    torch.save(state, tmp_path / "w.pth")
    model = net()
    before = model[2].weight.clone()
    with pytest.raises(DataError) as caught:
        weights.load(model, tmp_path / "w.pth")

    assert "1 missing: 2.bias" in caught.value.found
    assert "12 unexpected: extra0, extra1" in caught.value.found
    assert "extra9 and 2 more" in caught.value.found
    assert "of another shape: 0.weight (6, 3, 3, 3) for (4, 3, 3, 3)" in caught.value.found
    assert torch.equal(before, model[2].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """A diverged training's checkpoint is no teacher."""
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    weights.save(model, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="1 not finite: 2\\.weight"):
        weights.load(net(), tmp_path / "w.safetensors")


def test_integer_weights_are_not_cast(tmp_path: Path) -> None:
    """An int8 checkpoint of the right shapes does not become a float model in silence."""
    state = {key: value.to(torch.int8) for key, value in net().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError, match="of another type"):
        weights.load(net(), tmp_path / "w.pth")


@pytest.mark.parametrize(("name", "match"), [("w.pth", "do not exist"), ("w.h5", "must be")])
def test_missing_files_and_other_formats(tmp_path: Path, name: str, match: str) -> None:
    """A path that leads nowhere, and a format that nobody promised."""
    if name.endswith("h5"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=match):
        weights.load(net(), tmp_path / name)


def test_a_checkpoint_without_a_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    """The keys help to find where the weights are."""
    torch.save({"net": net().state_dict(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        weights.load(net(), tmp_path / "w.pth")

    assert "net: OrderedDict, epoch: int" in caught.value.found
