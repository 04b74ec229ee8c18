"""The data stage: from the user's files to a checked, split dataset. `dataset.py` reads its output.

Whatever the source, pixels pass through in chunks: memory does not grow with the data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

from kdpipe.stages.augment import Augment
from kdpipe.stages.base import Artifact, Files, Stage, Work
from kdpipe.stages.calibration import Calibration, write_calibration
from kdpipe.stages.coverage import check_groups, require_kind
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.draft import Draft, Drafts, split_pool, whole
from kdpipe.stages.hygiene.inspection import Inspection, inspect
from kdpipe.stages.hygiene.sketch import Sketcher, Watched
from kdpipe.stages.labelling import Labelled, judge_numbers, read_labels
from kdpipe.stages.paired import RESERVED
from kdpipe.stages.paired_pictures import write_paired
from kdpipe.stages.pictures import Pictures
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Contents, Source, standing_under
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.targets.device.preprocess import Preprocess
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class DataInputs:
    """The task says which labels make sense."""

    task: Task


class Data(Pictures, Stage):
    """Which samples there are, how they are split, and what a model's input looks like."""

    name: ClassVar[str] = "data"
    version: ClassVar[int] = 3  # duplicates are found
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
    drop_twins: bool = Field(
        False, description="leave samples out of train that eval shows too, nearly or mirrored"
    )
    allow_leak: bool = Field(
        False,
        description="go on although eval samples, or others of their groups, are in train;"
        " every number is marked",
    )

    def files(self) -> Mapping[str, Path | Files]:
        """What the sources read."""
        return {
            f"{where}source.{name}": read
            for where, source in self._sources().items()
            for name, read in source.files().items()
        }

    def _sources(self) -> dict[str, Source]:
        """All sources by their place below `data.`, e.g. "paired.depth."."""
        found = {"": self.source}
        if isinstance(self.calibration, Calibration):
            found["calibration."] = self.calibration.source
        return found | {f"paired.{name}.": one.source for name, one in self.paired.items()}

    def places(self) -> Collection[str]:
        """Without the cache, later stages read the source's images where they lie."""
        return () if self.cache else tuple(f"source.{name}" for name in self.source.places())

    def check(self) -> None:
        """Raise DataError when the sources' files are not there."""
        for name in self.paired:
            if name in RESERVED or not name.isidentifier():
                raise DataError(
                    f"data.paired cannot have the name '{name}'",
                    found=listing(sorted(RESERVED)) + " have a meaning; other names are words",
                    fix="choose another name, e.g. depth",
                )
        for where, source in self._sources().items():
            with standing_under(f"data.{where}source"):
                source.check()

    def run(self, inputs: DataInputs, work: Work) -> None:
        """Read every image and every label map once, and write the dataset."""
        contents = self.source.read()
        for warning in contents.warnings:
            work.observer.warn(warning)
        require_kind(contents, inputs.task)
        self._require_fill(inputs.task)
        count = judge_numbers(contents, self.classes, inputs.task)
        drafts = self._drafts(contents, work)
        labelled, meta, found = self._write(contents, drafts, count, inputs.task, work)
        while self.drop_twins and 0 < len(found.leaked) < len(drafts[0]):
            drafts = _without(drafts[0], found.leaked, work), drafts[1]
            labelled, meta, found = self._write(contents, drafts, count, inputs.task, work)
        found.require_clean(self.allow_leak, work)
        shift, seed = self.augment.shift, self.split_seed
        meta["paired"] = write_paired(self.paired, drafts, labelled.form, contents, shift, work)
        write_calibration(self.calibration, self, Dataset(work.out), found.leaked, seed, work)
        found = found.with_calibration(self.allow_leak, work)
        meta["hygiene"] = found.report(drafts, labelled.form, work)
        _save(meta, work)
        work.observer.fact(contents.described, classes=len(labelled.names), **meta["samples"])

    def _write(
        self, contents: Contents, drafts: Drafts, count: int | None, task: Task, work: Work
    ) -> tuple[Labelled, dict[str, Any], Inspection]:
        """Write the samples, and look at them: labels, `meta.json` so far, and what was found."""
        form, declared = self.form(drafts, "data"), bool(self.classes)
        labelled = read_labels(contents, drafts, form, count, declared, task, work)
        looks = Sketcher(), Sketcher()
        preprocess = self._write_images(labelled, looks, work)
        for draft in drafts:
            draft.save(work.out)
        meta: dict[str, Any] = {
            "task": task.model_dump(mode="json"),
            "classes": labelled.names,
            "preprocess": preprocess.to_dict(),
            "paired": {},
            "augment": self.augment.model_dump(mode="json"),
            "source": contents.described,
            "samples": {draft.name: len(draft) for draft in drafts},
            "files": None if self._stored(drafts[0]) else str(drafts[0].part.frames.root),
        }
        _save(meta, work)
        return labelled, meta, inspect(Dataset(work.out), looks[0].done(), looks[1].done(), work)

    def _require_fill(self, task: Task) -> None:
        if task.dense and self.augment.shift and task.ignored is None:
            raise DataError(
                "data.augment.shift brings in pixels, and the task has no label for them",
                found=f"shift {self.augment.shift}, task.ignore_index null",
                fix="set task.ignore_index to a number that is no class, e.g. 255,"
                " or data.augment.shift to 0",
            )

    def _drafts(self, contents: Contents, work: Work) -> Drafts:
        """Train and eval: a pool is split, declared splits are taken as they are; then subsets."""
        if "pool" in contents.parts:
            train, held = split_pool(contents.parts["pool"], self.eval_fraction, self.split_seed)
        else:
            train, held = whole("train", contents.parts), whole("eval", contents.parts)
            if "eval_fraction" in self.model_fields_set:
                work.observer.warn("data.eval_fraction is not used: the source has an eval split")
        train = train.subset(self.max_train, self.split_seed)
        held = held.subset(self.max_eval, self.split_seed)
        check_groups((train, held), self.allow_leak, work)
        return train, held

    def _write_images(
        self, labelled: Labelled, looks: tuple[Sketcher, Sketcher], work: Work
    ) -> Preprocess:
        """Sketch each image; nothing else is kept of files that can be decoded again later."""
        train, held = (draft.name if self._stored(draft) else "" for draft in labelled.drafts)
        drafts = _watched(labelled.drafts[0], looks[0]), _watched(labelled.drafts[1], looks[1])
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

    def _stored(self, draft: Draft) -> bool:
        return self.cache or draft.part.frames.root is None


def _watched(draft: Draft, look: Sketcher) -> Draft:
    """The same split, whose images are sketched as they are read."""
    return replace(draft, part=replace(draft.part, frames=Watched(draft.part.frames, look)))


def _without(train: Draft, leaked: NDArray[np.int64], work: Work) -> Draft:
    """The split but for its samples at `leaked`, which are named."""
    ids = [train.part.ids[row] for row in train.rows[leaked]]
    work.observer.warn(
        f"{len(ids)} sample(s) of train are in eval too and are left out, by data.drop_twins:"
        f" {listing(ids, 5)}"
    )
    return replace(train, rows=np.delete(train.rows, leaked))


def _save(meta: Mapping[str, Any], work: Work) -> None:
    (work.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
