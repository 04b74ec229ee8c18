"""Writes the other pictures of a dataset's samples; `paired.py` asks whether they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdpipe.stages.base import Work
from kdpipe.stages.draft import Drafts
from kdpipe.stages.paired import paired_drafts, require_same_maps
from kdpipe.stages.pictures import Pictures
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Contents, standing_under
from kdpipe.targets.errors import DataError


def write_paired(
    paired: Mapping[str, Pictures],
    drafts: Drafts,
    own: Form,
    contents: Contents,
    shift: int,
    work: Work,
) -> dict[str, Any]:
    """The same samples in their other pictures: {name: how they are normalised}.

    `own` is the form of the data's own images, and `shift` how far training moves them. Raises
    DataError when samples are not the same, and when a shift would move them unlike.
    """
    found = {}
    for name, pictures in paired.items():
        where = f"data.paired.{name}"
        with standing_under(f"{where}.source"):
            given = pictures.source.read()
        others = paired_drafts(drafts, contents, given, where)
        form = pictures.form(others, where)
        if shift and (form.height, form.width) != (own.height, own.width):
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
