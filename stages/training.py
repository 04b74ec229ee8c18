"""The training loop: any scheme, any recipe, resumed at an epoch with the same final weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from kdpipe.stages.base import Observer
from kdpipe.stages.checkpoint import Checkpoint
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.graph import Edge, Node, Scheme
from kdpipe.stages.recipe import Recipe
from kdpipe.targets.errors import StageError, listing

_CALM = "lower learning_rate, raise warmup_epochs, or set amp: fp32"


@dataclass(frozen=True)
class Device:
    """Where training runs, and whether it runs under bf16 autocast there."""

    kind: str
    bf16: bool

    @classmethod
    def pick(cls, amp: str) -> Device:
        """CUDA where there is one; bf16 only where the processor computes it natively."""
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        native = torch.cuda.is_bf16_supported() if kind == "cuda" else _cpu_has_bf16()
        return cls(kind, amp == "bf16" or (amp == "auto" and native))

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run."""
        return torch.autocast(self.kind, dtype=torch.bfloat16, enabled=self.bf16)

    def put(self, array: np.ndarray) -> Tensor:
        """A tensor here; images are laid out channels last, which convolutions prefer."""
        tensor = torch.from_numpy(array).to(self.kind)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


class Loader:
    """Batches of one epoch, a pure function of (seed, epoch): order and augmentation included."""

    def __init__(self, data: Dataset, size: int, seed: int, device: Device) -> None:
        self.data = data
        self.size = min(size, len(data.train))
        self.seed = seed
        self.device = device

    def __len__(self) -> int:
        """Steps per epoch; an incomplete last batch is left out of that epoch."""
        return len(self.data.train) // self.size

    def epoch(self, number: int) -> Iterator[dict[str, Tensor]]:
        """Yield {input, target, index} for each step of epoch `number`."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.data.train))
        for step in range(len(self)):
            indices = np.sort(order[step * self.size : (step + 1) * self.size])
            yield self._batch(indices, rng, self.device)

    def sample(self) -> dict[str, Tensor]:
        """Two training samples for dry runs, on the CPU: networks move to the device in `fit`."""
        indices = np.arange(min(2, len(self.data.train)))
        return self._batch(indices, np.random.default_rng(0), Device("cpu", bf16=False))

    def _batch(
        self, indices: np.ndarray, rng: np.random.Generator, device: Device
    ) -> dict[str, Tensor]:
        split = self.data.train
        pixels = self.data.augment.apply(split.images[indices], rng)
        return {
            "input": device.put(split.preprocess(pixels)),
            "target": device.put(np.asarray(split.labels[indices])),
            "index": device.put(indices),
        }


def train(
    nodes: Mapping[str, Node],
    edges: Sequence[Edge],
    recipe: Recipe,
    data: Dataset,
    checkpoint: Path,
    observer: Observer,
) -> dict[str, Any]:
    """Train a graph on `data` by `recipe`, wherever it is fastest; its networks end on the CPU.

    Returns how it went: `losses` of the epochs, `device`, `bf16`. Raises what `fit` does.
    """
    if recipe.batch_size > len(data.train):
        observer.warn(f"batch_size {recipe.batch_size} is cut to the {len(data.train)} samples")
    device = Device.pick(recipe.amp)
    loader = Loader(data, recipe.batch_size, recipe.seed, device)
    scheme = Scheme(nodes, edges, loader.sample())
    losses = fit(scheme, loader, recipe, checkpoint, observer)
    scheme.cpu()
    return {"losses": losses, "device": device.kind, "bf16": device.bf16}


def fit(
    scheme: Scheme, loader: Loader, recipe: Recipe, checkpoint: Path, observer: Observer
) -> list[float]:
    """Train `scheme` in place and return the mean loss of each epoch.

    After each epoch the whole state goes to `checkpoint`; when that file exists the training
    continues from it, ending in the same weights as if it had never stopped. Raises StageError
    naming epoch, step and term when a loss is not finite, or the weights that are not.
    """
    scheme.to(device=torch.device(loader.device.kind))
    scheme.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch stub
    optimizer = _optimizer(scheme, recipe)
    scheduler = LambdaLR(optimizer, _schedule(recipe, len(loader)))
    state = Checkpoint(checkpoint, scheme, optimizer, scheduler, observer)
    history = state.load()
    for epoch in range(len(history), recipe.epochs):
        history.append(_epoch(scheme, loader, epoch, optimizer, scheduler))
        _require_finite(scheme, epoch)
        state.save(history)
        observer.progress(epoch + 1, recipe.epochs, f"loss {history[-1]:.4f}")
    return history


def _epoch(
    scheme: Scheme,
    loader: Loader,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
) -> float:
    scheme.train()
    total = 0.0
    for step, batch in enumerate(loader.epoch(epoch)):
        with loader.device.autocast():
            loss, terms, seen = scheme(batch, epoch + step / len(loader))
        value = loss.item()
        if not math.isfinite(value):
            _diverged(terms, epoch, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        scheme.update(batch, seen)
        total += value
    return total / len(loader)


def _diverged(terms: dict[str, Tensor], epoch: int, step: int) -> None:
    values = {name: value.item() for name, value in terms.items()}
    guilty = [name for name, value in values.items() if not math.isfinite(value)] or list(values)
    raise StageError(
        f"the loss is no longer finite at epoch {epoch + 1}, step {step + 1}: {', '.join(guilty)}",
        found=", ".join(f"{name} = {value:.4g}" for name, value in values.items()),
        fix=_CALM,
    )


def _require_finite(scheme: Scheme, epoch: int) -> None:
    """The last step of an epoch has no loss after it that would tell; no checkpoint keeps it."""
    bad = [name for name, tensor in scheme.learned().items() if not tensor.isfinite().all()]
    if bad:
        raise StageError(
            f"the weights are no longer finite after epoch {epoch + 1}",
            found=listing(bad, 5),
            fix=_CALM,
        )


def _optimizer(scheme: Scheme, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay for weights of two and more dimensions only (biases and norms have one)."""
    parameters = list(scheme.trained())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def _schedule(recipe: Recipe, steps_per_epoch: int) -> _Cosine:
    return _Cosine(recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch)


@dataclass(frozen=True)
class _Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine down to zero at `total` steps."""

    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        """The factor of the peak learning rate at `step`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
