"""A dataset as later stages see it: splits of images and labels, and one preprocessing.

`data.py` makes it; this file reads it. Pixels stay uint8 and on disk until a batch is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.base import Artifact
from kdpipe.stages.tasks import TASKS, Task
from kdpipe.targets.device.preprocess import Preprocess


class Images(Protocol):
    """Random access to decoded images, all of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices`, uint8 (n, H, W, C)."""


@dataclass(frozen=True)
class Split:
    """Part of a dataset. `ids` name the samples for people; `groups` are resampled whole."""

    name: str
    images: Images
    labels: NDArray[np.generic]
    preprocess: Preprocess
    ids: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Model inputs for `indices`: normalised float32 (n, C, H, W)."""
        return self.preprocess(self.images[indices])

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.generic]]]:
        """The whole split in order, `size` samples at a time: (inputs, labels)."""
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield self.inputs(indices), self.labels[indices]


class Dataset(Artifact):
    """The output of the data stage."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What `meta.json` says: task, class names, preprocessing, sizes, source."""
        meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text("utf-8"))
        return meta

    @cached_property
    def task(self) -> Task:
        """The task that the labels belong to."""
        (task,) = [t for t in TASKS if t.model_fields["kind"].default == self.meta["task"]["kind"]]
        return task.model_validate(self.meta["task"])
