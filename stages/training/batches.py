"""Where training batches come from: the train split, or anything else that is a `Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kdpipe.stages.recipe import Mixing
from kdpipe.stages.training.device import Device
from kdpipe.stages.views import Draw, View

if TYPE_CHECKING:
    from kdpipe.stages.dataset import Split
    from kdpipe.stages.distill.scheme import Scheme


class Source(ABC):
    """Batches, epoch by epoch. What a source learns while it makes them is part of checkpoints."""

    device: Device

    @abstractmethod
    def __len__(self) -> int:
        """Steps per epoch."""

    @abstractmethod
    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of epoch `number`, from step `start` on; the same ones every time."""

    @abstractmethod
    def sample(self) -> dict[str, Tensor]:
        """A small batch for dry runs, on the CPU, where networks are built."""

    @property
    def samples(self) -> int:
        """Every `index` in a batch is below it."""
        return 1

    def name_of(self, index: int) -> str:
        """What people call the sample of this index, for messages."""
        return str(index)

    def attach(self, scheme: Scheme) -> None:  # noqa: B027 (most have nothing to do)
        """Told once, before training, which networks its batches will train."""

    def close(self) -> None:  # noqa: B027 (as `attach`)
        """Let go of the networks after the training."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if never stopped."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (as `attach`)
        """The inverse of `state_dict`."""


class Loader(Source):
    """Batches of a split, each a pure function of (seed, epoch, step): order and augmentation.

    A batch holds `input` (B, C, H, W), `target` (B,) or (B, H, W), `index` (B,), the further views
    that methods ask for, the paired pictures that networks read, and with mixing `mixed_target`
    and `mix`.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int,
        device: Device,
        *,
        augment: Any = None,
        views: Mapping[str, View] | None = None,
        mixing: Mixing | None = None,
        reads: Iterable[str] = (),
    ) -> None:
        from kdpipe.stages.augment import Augment

        self.split = split
        self.size = min(size, len(split))
        self.seed = seed
        self.device = device
        self._augment = augment or Augment()
        self._views = dict(views or {})
        self._mixing = mixing or Mixing()
        self._paired = {name: split.paired[name] for name in reads}

    def __len__(self) -> int:
        """Steps per epoch; an incomplete last batch is left out of that epoch."""
        return len(self.split) // self.size

    @property
    def samples(self) -> int:
        """The length of the split."""
        return len(self.split)

    def name_of(self, index: int) -> str:
        """Its id: a path, or a number in the user's file."""
        return self.split.ids[index] if self.split.ids else str(index)

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of epoch `number` from step `start` on."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.split))
        for step in range(start, len(self)):
            indices = order[step * self.size : (step + 1) * self.size]
            yield self._batch(indices, [self.seed, number, step], self.device)

    def sample(self) -> dict[str, Tensor]:
        """Two training samples for dry runs, on the CPU: networks move to the device in `fit`."""
        indices = np.arange(min(2, len(self.split)))
        return self._batch(indices, [0], Device("cpu", bf16=False))

    def _batch(self, indices: np.ndarray, seed: list[int], device: Device) -> dict[str, Tensor]:
        split, rng = self.split, np.random.default_rng(seed)
        pixels = self._augment.apply(split.images[indices], rng)
        batch = {
            "input": device.put(split.preprocess(pixels)),
            "target": device.put(self._labels(indices, seed)),
            "index": device.put(indices),
        }
        for name, paired in self._paired.items():
            # The same random numbers: paired pictures are shifted and mirrored alike.
            changed = self._augment.apply(paired.images[indices], np.random.default_rng(seed))
            batch[name] = device.put(paired.preprocess(changed))
        draw = Draw(split, indices, pixels, self._augment, rng)
        for name, view in self._views.items():
            batch[name] = device.put(split.preprocess(view.make(draw)))
        return self._mixing.apply(batch, rng)

    def _labels(self, indices: np.ndarray, seed: list[int]) -> np.ndarray:
        labels = np.asarray(self.split.labels[indices])
        if labels.ndim != 3:
            return labels
        # The same random numbers as for the images; what a shift brings in has no label.
        rng, fill = np.random.default_rng(seed), self.split.ignored or 0
        return self._augment.apply(labels[..., None], rng, fill)[..., 0]
