"""A second kind of picture of the very same samples: what a teacher of another modality reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdpipe.stages.draft import Draft, Drafts
from kdpipe.stages.images import StoredMaps
from kdpipe.stages.label_maps import maps_file
from kdpipe.stages.pictures import refuse_faults
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Contents, Faults, Part, PartName
from kdpipe.targets.errors import DataError, listing
from kdpipe.targets.lazy import np

RESERVED = frozenset(
    {"input", "target", "index", "mix", "mixed_target", "strong", "partner", "rotated"}
)
"""What a batch may hold anyway, see `training/batches.py` and `views.py`."""


def paired_drafts(drafts: Drafts, contents: Contents, others: Contents, where: str) -> Drafts:
    """The same rows of another source. Raises DataError unless its samples are the same, in order.

    Samples are the same when both sources have as many of them in each part, with equal labels.
    Label maps are compared by `require_same_maps`, once they can be read.
    """
    train, held = drafts
    pool = "pool" in contents.parts
    return (
        _paired(train, "pool" if pool else "train", others, where),
        _paired(held, "pool" if pool else "eval", others, where),
    )


def _paired(draft: Draft, name: PartName, others: Contents, where: str) -> Draft:
    if name not in others.parts:
        raise DataError(
            f"{where} has no split '{name}', which data.source has",
            found=listing(list(others.parts)),
            fix="give both sources the same splits",
        )
    part = others.parts[name]
    _require_same(draft.part, part, name, where)
    return replace(draft, part=part)


def require_same_maps(draft: Draft, form: Form, out: Path, where: str) -> None:
    """Raise DataError unless label maps of another source equal those in the folder `out`.

    They are compared in `form`, that of the data's own images.
    """
    own, maps = StoredMaps(maps_file(out, draft)), draft.part.maps
    faults: Faults = {}
    differ: list[str] = []
    done = 0
    for chunk in maps.chunks(draft.rows, form, faults):
        if faults:
            continue  # only to name them all
        rows = draft.rows[done : done + len(chunk)]
        changed = (chunk != own[done : done + len(chunk)]).any(axis=(1, 2))
        differ += [maps.names[row] for row in rows[changed]]
        done += len(chunk)
    refuse_faults(faults)
    if differ:
        raise _other_samples(
            where, draft.name, f"{len(differ)} label maps differ: {listing(differ)}"
        )


def _require_same(own: Part, other: Part, name: str, where: str) -> None:
    if len(own.ids) != len(other.ids):
        raise _other_samples(where, name, f"{len(own.ids)} and {len(other.ids)} samples")
    if own.dense != other.dense:
        kinds = ["label maps" if part.dense else "class numbers" for part in (own, other)]
        raise _other_samples(where, name, " and ".join(kinds))
    if own.dense:
        return
    differ = np.flatnonzero(own.numbers != other.numbers)
    if differ.size:
        first = int(differ[0])
        found = (
            f"{differ.size} labels differ, first of {own.ids[first]} ({own.numbers[first]}) and"
            f" {other.ids[first]} ({other.numbers[first]})"
        )
        raise _other_samples(where, name, found)


def _other_samples(where: str, split: str, found: str) -> DataError:
    return DataError(
        f"the samples of {where} are not those of data.source in {split}",
        found=found,
        fix="give both sources the same samples in the same order, with the same labels",
    )
