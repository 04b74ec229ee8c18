"""Reads the labels of both splits, class numbers or maps, before the images, which are larger.

`label_maps.py` and `Task.check_labels` judge each label, `coverage.py` all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.stages.base import Work
from kdpipe.stages.coverage import check_coverage, known_classes, shown_classes
from kdpipe.stages.draft import Drafts
from kdpipe.stages.label_maps import check_maps, class_count, write_maps
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Contents, Faults
from kdpipe.stages.tasks import Task


@dataclass(frozen=True)
class Labelled:
    """Drafts whose labels are read: the form of their images, and the names of the classes.

    `faults` are those of mask files. Where there are any, nobody has judged the labels.
    """

    drafts: Drafts
    form: Form
    names: list[str]
    faults: Faults


def judge_numbers(contents: Contents, declared: int | None, task: Task) -> int | None:
    """How many classes there are, or None where only label maps can tell.

    Raises DataError for class numbers that make no sense, before any split is drawn by them.
    """
    count = known_classes(contents, declared)
    if task.dense:
        return count
    count = count or shown_classes(contents)
    for name, part in contents.parts.items():
        task.check_labels(part.numbers, count, name)
    return count


def read_labels(
    contents: Contents,
    drafts: Drafts,
    form: Form,
    count: int | None,
    declared: bool,
    task: Task,
    work: Work,
) -> Labelled:
    """Write label maps, if labels are such, and ask whether the splits show all `count` classes.

    Raises DataError for classes without training samples or pixels, unless they are `declared`.
    """
    tell, names = work.observer, contents.classes
    if count is not None and not task.dense:
        train, held = (draft.labels for draft in drafts)
        found = check_coverage(train, held, count, names, declared, tell)
        return Labelled(drafts, form, found, {})
    faults: Faults = {}
    values = [write_maps(draft, form, faults, work) for draft in drafts]
    if faults:
        return Labelled(drafts, form, [], faults)
    count = class_count(values[0] | values[1], task.ignored, count)
    train, held = (check_maps(draft, task, count, work.out) for draft in drafts)
    found = check_coverage(train, held, count, names, declared, tell, "pixels")
    return Labelled(drafts, form, found, {})
