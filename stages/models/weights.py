"""Weights in files: safetensors, and others' checkpoints as far as they can be read safely.

A pickle can run any code while it is read, so `.pth` files go through torch's weights-only reader
and through nothing else, whatever it says.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdpipe.targets.errors import DataError, listing

_PICKLED = (".pth", ".pt")
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""


def save(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors; tensors that are shared are written twice."""
    state = model.state_dict()
    save_file({key: t.detach().cpu().contiguous().clone() for key, t in state.items()}, path)


def load(model: nn.Module, path: Path) -> None:
    """Read `.safetensors`, `.pth` or `.pt` into `model`; all of its tensors and no others.

    Raises DataError, and leaves the model as it was, when the file cannot be read safely or does
    not fit.
    """
    if not path.is_file():
        raise DataError("the weights do not exist", found=str(path), fix="check the path")
    if path.suffix == ".safetensors":
        stored = _read_safetensors(path)
    elif path.suffix in _PICKLED:
        stored = _unwrap(_read_pickled(path), path)
    else:
        raise DataError(
            "weights must be .safetensors, .pth or .pt", found=str(path), fix="convert the file"
        )
    own = model.state_dict()
    stored = _without_prefix(stored, own)
    _check(stored, own, path)
    model.load_state_dict(stored)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(
            "the weights are damaged", found=f"{path}: {error}", fix="get the file again"
        ) from error
    return tensors


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which then is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            "the file holds more than weights; kdpipe will not run the code in it",
            found=f"{path}: {str(error).strip().splitlines()[0]}",
            fix="where you trust it: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            "the file is not a checkpoint that torch can read as plain weights",
            found=f"{path}: {str(error).strip()[:200]}",
            fix="save it as torch.save(model.state_dict(), 'weights.pth'), not as TorchScript",
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint that also holds an epoch, an optimizer, ..."""
    if isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        state = inner[0] if len(inner) == 1 else content
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return {str(key): value for key, value in state.items()}
        found = listing([f"{key}: {type(value).__name__}" for key, value in content.items()])
    else:
        found = type(content).__name__
    raise DataError(
        "the checkpoint is not a state dict, nor a dict with one",
        found=f"{path}: {found}",
        fix=f"save the state dict alone, or under {' or '.join(map(repr, _WRAPPERS))}",
    )


def _without_prefix(stored: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        wrapped = all(key.startswith(prefix) for key in stored)
        if wrapped and not any(key.startswith(prefix) for key in own):
            stored = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    return stored


def _check(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """DataError with the first ten of each kind of misfit."""
    both = [key for key in own if key in stored]
    misfits = {
        "missing": [key for key in own if key not in stored],
        "unexpected": [key for key in stored if key not in own],
        "of another shape": [
            f"{key} {tuple(stored[key].shape)} for {tuple(own[key].shape)}"
            for key in both
            if stored[key].shape != own[key].shape
        ],
        "of another type": [
            f"{key} {stored[key].dtype} for {own[key].dtype}"
            for key in both
            if stored[key].is_floating_point() != own[key].is_floating_point()
        ],
        "not finite": [key for key in stored if not torch.isfinite(stored[key]).all()],
    }
    wrong = [f"{len(keys)} {kind}: {listing(keys)}" for kind, keys in misfits.items() if keys]
    if wrong:
        raise DataError(
            f"the weights in {path.name} do not fit the model",
            found="; ".join(wrong),
            fix="check `model`, its `arguments` and the number of classes",
        )
