"""The data stage: from the user's files to a checked, split dataset. `dataset.py` reads its output.

Whatever the source, pixels pass through in chunks: memory does not grow with the data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

from kdpipe.stages.augment import Augment
from kdpipe.stages.base import Artifact, Files, Observer, Stage, Work
from kdpipe.stages.calibration import Calibration, write_calibration
from kdpipe.stages.coverage import (
    check_coverage,
    check_groups,
    known_classes,
    require_kind,
    shown_classes,
)
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.draft import Draft, Drafts, split_pool, whole
from kdpipe.stages.label_maps import check_maps, class_count, write_maps
from kdpipe.stages.paired import RESERVED, paired_drafts, require_same_maps
from kdpipe.stages.pictures import Pictures
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Contents, Faults, standing_under
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    from kdpipe.targets.device.preprocess import Preprocess


@dataclass(frozen=True)
class DataInputs:
    """The task says which labels make sense."""

    task: Task


@dataclass(frozen=True)
class Labelled:
    """Drafts whose labels are read: the form of their images, and the names of the classes.

    `faults` are those of mask files. Where there are any, nobody has judged the labels.
    """

    drafts: Drafts
    form: Form
    names: list[str]
    faults: Faults


class Data(Pictures, Stage):
    """Which samples there are, how they are split, and what a model's input looks like."""

    name: ClassVar[str] = "data"
    version: ClassVar[int] = 2  # calibration keeps clear of eval
    packages: ClassVar[tuple[str, ...]] = ("numpy", "pillow")
    Inputs: ClassVar[type] = DataInputs
    Output: ClassVar[type[Artifact]] = Dataset

    paired: dict[str, Pictures] = Field(
        {}, description="other pictures of the same samples, for teachers of another modality"
    )
    eval_fraction: float = Field(
        0.25, gt=0, lt=1, description="held out of a source without a split of its own"
    )
    split_seed: int = Field(0, ge=0, lt=2**32, description="of the split and of all subsets")
    calibration: PositiveInt | Calibration = Field(
        256, description="samples of train for quantization ranges, or a source of their own"
    )
    max_train: PositiveInt | None = Field(None, description="train on a subset, for quick runs")
    max_eval: PositiveInt | None = Field(None, description="judge on a subset, for quick runs")
    classes: PositiveInt | None = Field(
        None, description="number of classes, when it is more than the labels show"
    )
    augment: Augment = Field(Augment(), description="how training batches are varied")
    cache: bool = Field(
        True,
        description="keep decoded files in the store: epochs are quick and the folder may move; "
        "false reads them where they are, takes no disk space, and starts over when they move; "
        "label maps, a byte per pixel, are kept either way",
    )

    def files(self) -> Mapping[str, Path | Files]:
        """What the sources read."""
        own = {f"source.{name}": read for name, read in self.source.files().items()}
        if isinstance(self.calibration, Calibration):
            theirs = self.calibration.source.files()
            own |= {f"calibration.source.{name}": read for name, read in theirs.items()}
        return own | {
            f"paired.{kind}.source.{name}": read
            for kind, pictures in self.paired.items()
            for name, read in pictures.source.files().items()
        }

    def places(self) -> Collection[str]:
        """Without the cache, later stages read the source's images where they lie."""
        return () if self.cache else tuple(f"source.{name}" for name in self.source.places())

    def check(self) -> None:
        """Raise DataError when the sources' files are not there."""
        self.source.check()
        if isinstance(self.calibration, Calibration):
            with standing_under("data.calibration.source"):
                self.calibration.source.check()
        for name, pictures in self.paired.items():
            if name in RESERVED or not name.isidentifier():
                raise DataError(
                    f"data.paired cannot have the name '{name}'",
                    found=listing(sorted(RESERVED)) + " have a meaning; other names are words",
                    fix="choose another name, e.g. depth",
                )
            with standing_under(f"data.paired.{name}.source"):
                pictures.source.check()

    def run(self, inputs: DataInputs, work: Work) -> None:
        """Read every image and every label map once, and write the dataset."""
        contents = self.source.read()
        for warning in contents.warnings:
            work.observer.warn(warning)
        require_kind(contents, inputs.task)
        read_labels = self._read_maps if inputs.task.dense else self._read_numbers
        labelled = read_labels(contents, inputs.task, work)
        preprocess = self._write_images(labelled, work)
        train, held = labelled.drafts
        for draft in labelled.drafts:
            draft.save(work.out)
        meta: dict[str, Any] = {
            "task": inputs.task.model_dump(mode="json"),
            "classes": labelled.names,
            "preprocess": preprocess.to_dict(),
            "paired": self._write_paired(labelled, contents, work),
            "augment": self.augment.model_dump(mode="json"),
            "source": contents.described,
            "samples": {"train": len(train), "eval": len(held)},
            "files": None if self._stored(train) else str(train.part.frames.root),
        }
        (work.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
        write_calibration(self.calibration, self, Dataset(work.out), self.split_seed, work)
        work.observer.fact(contents.described, classes=len(labelled.names), **meta["samples"])

    def _read_numbers(self, contents: Contents, task: Task, work: Work) -> Labelled:
        """Judge class numbers, before any pixel is read."""
        count = known_classes(contents, self.classes) or shown_classes(contents)
        for name, part in contents.parts.items():
            task.check_labels(part.numbers, count, name)
        drafts = train, held = self._drafts(contents, work.observer)
        names = check_coverage(
            train.labels, held.labels, count, contents.classes, bool(self.classes), work.observer
        )
        return Labelled(drafts, self.form(drafts, "data"), names, {})

    def _read_maps(self, contents: Contents, task: Task, work: Work) -> Labelled:
        """Write label maps and judge them, before the images, which are larger."""
        self._require_fill(task)
        known = known_classes(contents, self.classes)
        drafts = self._drafts(contents, work.observer)
        form = self.form(drafts, "data")
        faults: Faults = {}
        values = [write_maps(draft, form, faults, work) for draft in drafts]
        if faults:
            return Labelled(drafts, form, [], faults)
        count = class_count(values[0] | values[1], task.ignored, known)
        train, held = (check_maps(draft, task, count, work.out) for draft in drafts)
        declared, observer = bool(self.classes), work.observer
        names = check_coverage(train, held, count, contents.classes, declared, observer, "pixels")
        return Labelled(drafts, form, names, {})

    def _require_fill(self, task: Task) -> None:
        if self.augment.shift and task.ignored is None:
            raise DataError(
                "data.augment.shift brings in pixels, and the task has no label for them",
                found=f"shift {self.augment.shift}, task.ignore_index null",
                fix="set task.ignore_index to a number that is no class, e.g. 255,"
                " or data.augment.shift to 0",
            )

    def _drafts(self, contents: Contents, observer: Observer) -> Drafts:
        """Train and eval: a pool is split, declared splits are taken as they are; then subsets."""
        if "pool" in contents.parts:
            train, held = split_pool(contents.parts["pool"], self.eval_fraction, self.split_seed)
        else:
            train, held = whole("train", contents.parts), whole("eval", contents.parts)
            if "eval_fraction" in self.model_fields_set:
                observer.warn("data.eval_fraction is not used: the source has an eval split")
        train = train.subset(self.max_train, self.split_seed)
        held = held.subset(self.max_eval, self.split_seed)
        check_groups(train.groups, held.groups, observer)
        return train, held

    def _write_images(self, labelled: Labelled, work: Work) -> Preprocess:
        """Nothing is kept of files that can be decoded again later."""
        drafts = labelled.drafts
        train, held = (draft.name if self._stored(draft) else "" for draft in drafts)
        return self.write(drafts, (train, held), labelled.form, labelled.faults, "data", work)

    def check_form(self, form: Form, where: str) -> None:
        """No augmentation may push an image out of sight."""
        super().check_form(form, where)
        if self.augment.shift >= min(form.height, form.width):
            raise DataError(
                "data.augment.shift can push an image out of sight",
                found=f"shift {self.augment.shift}, images of {form.height}x{form.width}",
                fix=f"set data.augment.shift to {min(form.height, form.width) // 8} or so",
            )

    def _write_paired(self, labelled: Labelled, contents: Contents, work: Work) -> dict[str, Any]:
        """The same samples in their other pictures: {name: how they are normalised}."""
        found, own = {}, labelled.form
        for name, pictures in self.paired.items():
            where = f"data.paired.{name}"
            with standing_under(f"{where}.source"):
                given = pictures.source.read()
            others = paired_drafts(labelled.drafts, contents, given, where)
            form = pictures.form(others, where)
            if self.augment.shift and (form.height, form.width) != (own.height, own.width):
                raise DataError(
                    f"data.augment.shift would move {where} by another share of the picture",
                    found=f"{own.height}x{own.width} and {form.height}x{form.width} pixels",
                    fix=f"set {where}.image_size to [{own.height}, {own.width}], or shift: 0",
                )
            for draft in others:
                if draft.part.dense:
                    require_same_maps(draft, own, work.out, where)
            files = f"train.{name}", f"eval.{name}"
            found[name] = pictures.write(others, files, form, {}, where, work).to_dict()
        return found

    def _stored(self, draft: Draft) -> bool:
        return self.cache or draft.part.frames.root is None
