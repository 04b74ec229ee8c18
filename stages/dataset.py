"""A dataset as later stages see it: splits of images and labels, and one preprocessing.

`data.py` makes it; this file reads it. Pixels stay uint8 and on disk until a batch is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.stages.augment import Augment
from kdpipe.stages.base import Artifact
from kdpipe.stages.images import FileImages, Labels, PickedImages, StoredImages, StoredMaps
from kdpipe.stages.images import Images as Images
from kdpipe.stages.pixels import Form
from kdpipe.stages.split import strata
from kdpipe.stages.tasks import TASKS, Task
from kdpipe.targets.errors import UsageError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.targets.device.preprocess import Preprocess
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Paired:
    """Other pictures of a split's samples, in its order."""

    images: Images
    preprocess: Preprocess

    def pick(self, rows: NDArray[np.int64]) -> Paired:
        """Those of the samples at `rows`."""
        return Paired(PickedImages(self.images, rows), self.preprocess)


@dataclass(frozen=True)
class Split:
    """Part of a dataset. `ids` name the samples for people; `groups` are bounded as wholes.

    A sample's number is its position: `ids[i]`, `labels[i]`, `groups[i]` and `images[i]` agree.
    In label maps `ignored` is the value of a pixel without a label, where there is one.
    """

    name: str
    images: Images
    labels: Labels
    preprocess: Preprocess
    ids: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None
    paired: Mapping[str, Paired] = field(default_factory=dict)
    ignored: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def strata(self) -> NDArray[np.int64]:
        """(N,) what `stratified` keeps in proportion."""
        return strata(self.labels)

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Model inputs for `indices`: normalised float32 (n, C, H, W)."""
        return self.preprocess(self.images[indices])

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.generic]]]:
        """The whole split in order, `size` samples at a time: (inputs, labels)."""
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield self.inputs(indices), self.labels[indices]

    def pick(self, name: str, rows: NDArray[np.int64]) -> Split:
        """The samples at `rows` as a split of their own."""
        return Split(
            name=name,
            images=PickedImages(self.images, rows),
            labels=_picked(self.labels, rows),
            preprocess=self.preprocess,
            ids=tuple(self.ids[row] for row in rows),
            groups=None if self.groups is None else self.groups[rows],
            paired={name: paired.pick(rows) for name, paired in self.paired.items()},
            ignored=self.ignored,
        )


def _picked(labels: Labels, rows: NDArray[np.int64]) -> Labels:
    return labels.pick(rows) if isinstance(labels, StoredMaps) else labels[rows]


class Dataset(Artifact):
    """The output of the data stage.

    `meta.json` says what is in the folder; `{train,eval}.labels.npy` (int64 (N,), or maps, uint8
    (N, H, W)), `.ids.json` and, where there are groups, `.groups.npy` describe the samples;
    `.images.npy` holds their pixels, or
    `.checksums.npy` those of the user's own files; `.<name>.images.npy` holds paired pictures;
    `duplicates.csv` lists samples that show the same;
    `calibration.npy` holds rows of train, or `calibration.images.npy` and `.ids.json` samples of a
    source of their own; `calibration.json` says how they were chosen.
    """

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

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the label of a sample is a position in it."""
        return tuple(self.meta["classes"])

    @property
    def outputs(self) -> int:
        """How many output channels a model needs."""
        return self.task.outputs(len(self.classes))

    @property
    def source(self) -> str:
        """Where the samples come from, in words, for reports."""
        return str(self.meta["source"])

    @property
    def leaks(self) -> Mapping[str, Any]:
        """Eval samples that were trained or calibrated on, which the user allowed; {} as a rule.

        `eval` is their number, `share` that of all; `exact`, `near`, `mirrored` and `group` count
        by kind. Every number measured on eval carries a mark when this is not empty.
        """
        leaks: dict[str, Any] = self.meta["hygiene"]["leaks"]
        return leaks

    @cached_property
    def preprocess(self) -> Preprocess:
        """From uint8 (n, H, W, C) to what every model of the chain takes."""
        from kdpipe.targets.device.preprocess import Preprocess

        return Preprocess.from_dict(self.meta["preprocess"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one model input."""
        return self.preprocess.channels, self.preprocess.height, self.preprocess.width

    def shape_of(self, entry: str) -> tuple[int, int, int]:
        """(C, H, W) of what models find in a batch under `entry`: `input`, or a paired picture."""
        if entry == "input":
            return self.shape
        paired = self.train.paired
        if entry not in paired:
            raise UsageError(
                f"the data has no pictures '{entry}'",
                found=listing(["input", *paired]),
                fix=f"add `data.paired.{entry}: {{source: ...}}`, or read one of these",
            )
        how = paired[entry].preprocess
        return how.channels, how.height, how.width

    @cached_property
    def augment(self) -> Augment:
        """How training batches are varied, for the teacher and the student alike."""
        return Augment.model_validate(self.meta["augment"])

    @cached_property
    def train(self) -> Split:
        """What networks learn from."""
        return self._split("train")

    @cached_property
    def eval(self) -> Split:
        """What networks are judged on, and never see before."""
        return self._split("eval")

    @cached_property
    def calibration(self) -> Split:
        """What quantization reads the ranges of activations from: samples of train, as a rule.

        Those of a source of their own have no labels: all are 0.
        """
        if self.own_calibration:
            path = self.folder / "calibration.images.npy"
            ids = tuple(json.loads((self.folder / "calibration.ids.json").read_text("utf-8")))
            labels = np.zeros(len(ids), np.int64)
            return Split("calibration", StoredImages(path), labels, self.preprocess, ids)
        return self.train.pick("calibration", np.load(self.folder / "calibration.npy"))

    @property
    def own_calibration(self) -> bool:
        """Whether the calibration samples come from a source of their own, without labels."""
        return (self.folder / "calibration.images.npy").exists()

    def example(self, n: int) -> NDArray[np.float32]:
        """Model inputs float32 (n, C, H, W): the first `n` of eval, repeated where short."""
        return self.eval.inputs(np.arange(n) % len(self.eval))

    def _split(self, name: str) -> Split:
        groups = self.folder / f"{name}.groups.npy"
        ids = tuple(json.loads((self.folder / f"{name}.ids.json").read_text("utf-8")))
        return Split(
            name=name,
            images=self._images(name, ids),
            labels=self._labels(name),
            preprocess=self.preprocess,
            ids=ids,
            groups=np.load(groups) if groups.exists() else None,
            paired=self._paired(name),
            ignored=self.task.ignored,
        )

    def _labels(self, name: str) -> Labels:
        path = self.folder / f"{name}.labels.npy"
        if self.task.dense:
            return StoredMaps(path)
        labels: NDArray[np.generic] = np.load(path)
        return labels

    def _paired(self, split: str) -> dict[str, Paired]:
        from kdpipe.targets.device.preprocess import Preprocess

        return {
            name: Paired(
                StoredImages(self.folder / f"{split}.{name}.images.npy"), Preprocess.from_dict(how)
            )
            for name, how in self.meta["paired"].items()
        }

    def _images(self, name: str, ids: tuple[str, ...]) -> Images:
        root = self.meta["files"]
        if root is None:
            return StoredImages(self.folder / f"{name}.images.npy")
        channels, height, width = self.shape
        return FileImages(
            paths=tuple(Path(root, id) for id in ids),
            checksums=np.load(self.folder / f"{name}.checksums.npy"),
            form=Form(height, width, channels),
        )
