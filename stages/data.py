"""The data stage: from the user's files to a checked, split dataset. `dataset.py` reads its output.

Whatever the source, pixels pass through in chunks: memory does not grow with the data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from kdpipe.stages.augment import Augment
from kdpipe.stages.base import Artifact, Files, Observer, Stage, Work
from kdpipe.stages.choice import choice
from kdpipe.stages.coverage import check_coverage, check_groups, class_count
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.draft import Draft, split_pool, whole
from kdpipe.stages.images import store_images
from kdpipe.stages.pixels import Form, Histogram
from kdpipe.stages.sources import SOURCES
from kdpipe.stages.sources.base import Chunk, Contents, Faults, Source
from kdpipe.stages.split import Purpose, stratified
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.targets.device.preprocess import Preprocess

    AnySource = Source
else:
    from kdpipe.targets.lazy import np

    AnySource = choice(SOURCES, "kind")

Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class DataInputs:
    """The task says which labels make sense."""

    task: Task


class Data(Stage):
    """Which samples there are, how they are split, and what a model's input looks like."""

    name: ClassVar[str] = "data"
    packages: ClassVar[tuple[str, ...]] = ("numpy", "pillow")
    Inputs: ClassVar[type] = DataInputs
    Output: ClassVar[type[Artifact]] = Dataset

    source: AnySource = Field(description="where samples come from, e.g. digits")
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="side, or [height, width], to resize to; default: as they are"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 grey, 3 RGB; default: 1 when all images are grey"
    )
    mean: tuple[Level, ...] | None = Field(
        None, min_length=1, description="per channel, of pixels / 255; default: from train"
    )
    std: tuple[Spread, ...] | None = Field(
        None, min_length=1, description="per channel, of pixels / 255; default: from train"
    )
    eval_fraction: float = Field(
        0.25, gt=0, lt=1, description="held out of a source without a split of its own"
    )
    split_seed: int = Field(0, ge=0, lt=2**32, description="of the split and of all subsets")
    calibration: PositiveInt = Field(256, description="samples of train for quantization ranges")
    max_train: PositiveInt | None = Field(None, description="train on a subset, for quick runs")
    max_eval: PositiveInt | None = Field(None, description="judge on a subset, for quick runs")
    classes: PositiveInt | None = Field(
        None, description="number of classes, when it is more than the labels show"
    )
    augment: Augment = Field(Augment(), description="how training batches are varied")
    cache: bool = Field(
        True,
        description="keep decoded files in the store: epochs are quick and the folder may move; "
        "false reads them where they are, takes no disk space, and starts over when they move",
    )

    def files(self) -> Mapping[str, Path | Files]:
        """What the source reads."""
        return {f"source.{name}": read for name, read in self.source.files().items()}

    def places(self) -> Collection[str]:
        """Without the cache, later stages read the source's images where they lie."""
        return () if self.cache else tuple(f"source.{name}" for name in self.source.places())

    def check(self) -> None:
        """Raise DataError when the source's files are not there."""
        self.source.check()

    def run(self, inputs: DataInputs, work: Work) -> None:
        """Read every image once, and write the dataset."""
        contents = self.source.read()
        for warning in contents.warnings:
            work.observer.warn(warning)
        count = class_count(contents, self.classes)
        for name, part in contents.parts.items():
            inputs.task.check_labels(part.labels, count, name)
        train, held = self._drafts(contents, work.observer)
        check_groups(train.groups, held.groups, work.observer)
        names = check_coverage(
            train.labels, held.labels, count, contents.classes, bool(self.classes), work.observer
        )
        preprocess = self._write_images((train, held), work)
        for draft in (train, held):
            draft.save(work.out)
        self._write_calibration(train, work)
        meta: dict[str, Any] = {
            "task": inputs.task.model_dump(mode="json"),
            "classes": names,
            "preprocess": preprocess.to_dict(),
            "augment": self.augment.model_dump(mode="json"),
            "source": contents.described,
            "samples": {"train": len(train), "eval": len(held)},
            "files": None if self._stored(train) else str(train.part.frames.root),
        }
        (work.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
        work.observer.fact(contents.described, classes=count, **meta["samples"])

    def _drafts(self, contents: Contents, observer: Observer) -> tuple[Draft, Draft]:
        """Train and eval: a pool is split, declared splits are taken as they are; then subsets."""
        if "pool" in contents.parts:
            train, held = split_pool(contents.parts["pool"], self.eval_fraction, self.split_seed)
        else:
            train, held = whole("train", contents.parts), whole("eval", contents.parts)
            if "eval_fraction" in self.model_fields_set:
                observer.warn("data.eval_fraction is not used: the source has an eval split")
        return (
            train.subset(self.max_train, self.split_seed),
            held.subset(self.max_eval, self.split_seed),
        )

    def _write_images(self, drafts: tuple[Draft, Draft], work: Work) -> Preprocess:
        """Decode everything once; nothing is kept of files that can be decoded again later."""
        form = self._form(drafts)
        self._check_form(form)
        faults: Faults = {}
        histogram = Histogram(form.channels)
        for draft in drafts:
            chunks = _watched(draft.part.frames.chunks(draft.rows, form, faults), draft, work)
            if draft.name == "train":
                chunks = _counted(chunks, histogram)
            if self._stored(draft):
                shape = (len(draft), *form.shape)
                path = work.out / f"{draft.name}.images.npy"
                store_images(path, shape, (chunk.pixels for chunk in chunks))
            else:
                checksums = [checksum for chunk in chunks for checksum in chunk.checksums]
                np.save(work.out / f"{draft.name}.checksums.npy", np.array(checksums, np.uint32))
        if faults:
            bad = [f"{id} {fault}" for id, fault in faults.items()]
            raise DataError(
                f"{len(faults)} image file(s) cannot be used",
                found=listing(bad, limit=len(bad)),
                fix="replace or remove them",
            )
        return self._preprocess(form, histogram)

    def _stored(self, draft: Draft) -> bool:
        return self.cache or draft.part.frames.root is None

    def _form(self, drafts: tuple[Draft, Draft]) -> Form:
        """What the settings say, completed by what the images are."""
        size = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        if size and self.channels:
            return Form(*size, self.channels)
        surveys = [draft.part.frames.survey(draft.rows) for draft in drafts]
        sizes = {size: id for survey in reversed(surveys) for size, id in survey.sizes.items()}
        if not size and len(sizes) > 1:
            raise DataError(
                "the images have different sizes (height x width)",
                found=listing([f"{h}x{w} ({id})" for (h, w), id in sizes.items()]),
                fix="set data.image_size, e.g. `image_size: 64`",
            )
        # Without one readable header any form will do: decoding names every file as bad.
        height, width = size or next(iter(sizes), (1, 1))
        return Form(height, width, self.channels or max(survey.channels for survey in surveys))

    def _check_form(self, form: Form) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != form.channels:
                raise DataError(
                    f"data.{name} does not fit the images",
                    found=f"{len(values)} value(s), the images have {form.channels} channel(s)",
                    fix=f"give one {name} per channel, or set data.channels",
                )
        if self.augment.shift >= min(form.height, form.width):
            raise DataError(
                "data.augment.shift can push an image out of sight",
                found=f"shift {self.augment.shift}, images of {form.height}x{form.width}",
                fix=f"set data.augment.shift to {min(form.height, form.width) // 8} or so",
            )

    def _preprocess(self, form: Form, histogram: Histogram) -> Preprocess:
        from kdpipe.targets.device.preprocess import Preprocess

        mean, std = histogram.moments()
        if self.std is None and 0 in std:
            raise DataError(
                "a channel has the same value in every pixel of train",
                found=f"standard deviation per channel {std}",
                fix="check the images, or set data.std",
            )
        return Preprocess(form.height, form.width, self.mean or mean, self.std or std)

    def _write_calibration(self, train: Draft, work: Work) -> None:
        if self.calibration > len(train):
            work.observer.warn(
                f"calibration uses all {len(train)} samples of train, "
                f"fewer than the {self.calibration} of data.calibration"
            )
        rows = stratified(train.labels, self.calibration, self.split_seed, Purpose.CALIBRATION)
        np.save(work.out / "calibration.npy", rows)


def _watched(chunks: Iterable[Chunk], draft: Draft, work: Work) -> Iterator[Chunk]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk.pixels)
        work.observer.progress(done, len(draft), f"{draft.name} images")


def _counted(chunks: Iterable[Chunk], histogram: Histogram) -> Iterator[Chunk]:
    for chunk in chunks:
        histogram.add(chunk.pixels)
        yield chunk
