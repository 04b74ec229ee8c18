"""Calibration samples: what quantization reads the ranges of activations from, and what it may not.

They are drawn from train, or come from a source of the user's own. The eval split has no say: an
image that is in it, whatever its name, would tune the network to what judges it. Which those are is
found in `hygiene/`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from kdpipe.stages.base import Observer, Work
from kdpipe.stages.dataset import Dataset, Images, Split
from kdpipe.stages.images import store_images
from kdpipe.stages.pictures import AnySource, Pictures, refuse_faults
from kdpipe.stages.pixels import Form, Histogram
from kdpipe.stages.sources.base import Contents, Faults, Part, standing_under
from kdpipe.stages.split import Purpose, stratified
from kdpipe.targets.errors import DataError, UsageError, listing

ENOUGH = 59
"""`statistics.needed_samples(0.95, 0.95)`."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_CHUNK = 16
"""Images at a time: mapped pages of scattered rows count as memory, and each brings neighbours."""
_SHOWN = 5


class Calibration(BaseModel):
    """Samples that serve calibration alone; their labels, if there are any, are not read."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    source: AnySource = Field(
        description="where they come from, as `data.source`; of declared splits its train"
    )
    samples: PositiveInt = Field(256, description="how many of them are drawn, by `split_seed`")


def write_calibration(
    wanted: int | Calibration,
    pictures: Pictures,
    data: Dataset,
    leaked: NDArray[np.int64],
    seed: int,
    work: Work,
) -> None:
    """Choose the calibration samples of a dataset that is otherwise complete, and write them.

    `calibration.json` says how they were chosen; `calibration.npy` holds their rows in train, or
    `calibration.images.npy` and `calibration.ids.json` those of a source of their own. `pictures`
    says how `data` was read.

    `leaked` rows of train, which are in eval too, are left out, with a warning, even where none
    remain: not every chain calibrates, and those that do ask `require_usable`. Of a source of
    their own samples are named by the user and must be right: raises DataError when they do not
    have the form of the model's input, or are not usable.
    """
    if isinstance(wanted, Calibration):
        origin = _write_own(wanted, pictures, data, seed, work)
    else:
        np.save(
            work.out / "calibration.npy", _drawn(wanted, data.train, leaked, seed, work.observer)
        )
        origin = "train"
    chosen = {"origin": origin, "seed": seed, "std_given": pictures.std is not None}
    (work.out / "calibration.json").write_text(json.dumps(chosen))
    if isinstance(wanted, Calibration):
        require_usable(data)


def require_usable(data: Dataset) -> None:
    """Raise DataError when ranges of activations cannot be read from the calibration samples.

    That is so when there are none, when all are alike, or when a channel is the same in every
    pixel of all of them, unless `data.std` says how that channel is to be taken.
    """
    fix = "give samples that show what the network will see, by `data.calibration: {source: ...}`"
    look, count = _Look.at(data.calibration.images), len(data.calibration)
    if not count:
        found = "every sample of train is in eval too"
        raise DataError("there are no calibration samples", found=found, fix=fix)
    if count > 1 and len(set(look.digests)) == 1:
        found = f"{count} images with the same pixels, such as {data.calibration.ids[0]}"
        raise DataError("calibration samples are all alike", found=found, fix=fix)
    constant = [str(c) for c, spread in enumerate(look.levels.moments()[1]) if spread == 0]
    if constant and not _stored(data)["std_given"]:
        found = f"channel {listing(constant)} in {count} images"
        what = "a channel is the same in every pixel of the calibration samples"
        raise DataError(what, found=found, fix=fix)


def few(data: Dataset) -> str:
    """What to say of calibration samples that are too few to show the ranges; "" when they are not.

    Of activations whose largest value over n samples is the range, it holds 95 % of all others' at
    95 % confidence when n >= ENOUGH.
    """
    count = len(data.calibration)
    if count >= ENOUGH:
        return ""
    return (
        f"{count} calibration samples: more than one image in twenty may lie beyond the ranges that"
        f" they show; take {ENOUGH} or more by data.calibration"
    )


def require_labels(own: bool) -> None:
    """Raise UsageError when samples are of a source of their `own`, which has no labels."""
    if own:
        raise UsageError(
            "quantize.max_drop needs calibration samples with labels",
            found="data.calibration has a source of its own, whose labels are not read",
            fix="draw them from train, such as `data.calibration: 256`, or remove `max_drop`",
        )


def facts(data: Dataset) -> dict[str, Any]:
    """Which samples a stage calibrated with: origin, seed, number, and SHA-256 of their ids.

    The digest is over the ids in order, each followed by a line feed.
    """
    ids = data.calibration.ids
    listed = "".join(f"{id}\n" for id in ids)
    chosen = _stored(data)
    return {
        "origin": chosen["origin"],
        "seed": chosen["seed"],
        "samples": len(ids),
        "ids_sha256": hashlib.sha256(listed.encode()).hexdigest(),
    }


def _stored(data: Dataset) -> dict[str, Any]:
    chosen: dict[str, Any] = json.loads((data.folder / "calibration.json").read_text("utf-8"))
    return chosen


def _drawn(
    count: int, train: Split, leaked: NDArray[np.int64], seed: int, observer: Observer
) -> NDArray[np.int64]:
    """`count` rows of train in the proportions of the classes, none of them `leaked`."""
    rows = np.setdiff1d(np.arange(len(train)), leaked)
    if leaked.size:
        observer.warn(
            f"{len(leaked)} sample(s) of train are in eval too and are not used for calibration:"
            f" {listing([train.ids[row] for row in leaked], _SHOWN)}"
        )
    if count > len(rows):
        observer.warn(
            f"calibration uses all {len(rows)} samples of train, "
            f"fewer than the {count} of data.calibration"
        )
    return rows[stratified(train.strata[rows], count, seed, Purpose.CALIBRATION)]


def _write_own(
    wanted: Calibration, pictures: Pictures, data: Dataset, seed: int, work: Work
) -> str:
    """Samples of a source of their own, in the form of the data; returns where they come from."""
    with standing_under("data.calibration.source"):
        contents = wanted.source.read()
    for warning in contents.warnings:
        work.observer.warn(f"data.calibration: {warning}")
    part = _part(contents)
    rows = _any(len(part.ids), wanted.samples, seed)
    if wanted.samples > len(rows):
        work.observer.warn(
            f"calibration uses all {len(rows)} samples of data.calibration.source, "
            f"fewer than the {wanted.samples} of data.calibration.samples"
        )
    how = data.preprocess
    form = Form(how.height, how.width, how.channels)
    _require_form(part, rows, form, pictures)
    faults: Faults = {}
    path, shape = work.out / "calibration.images.npy", (len(rows), *form.shape)
    store_images(path, shape, (chunk.pixels for chunk in part.frames.chunks(rows, form, faults)))
    refuse_faults(faults)
    ids = tuple(part.ids[row] for row in rows)
    (work.out / "calibration.ids.json").write_text(json.dumps(ids), "utf-8")
    return contents.described


def _part(contents: Contents) -> Part:
    """The pool, or train; DataError when there is nothing in it."""
    part = contents.parts.get("pool") or contents.parts.get("train")
    if part is None or not part.ids:
        raise DataError(
            "data.calibration.source: there are no calibration samples",
            found=contents.described,
            fix="add images, or draw from train: `calibration: 256`",
        )
    return part


def _any(available: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` rows, ascending, of samples without classes."""
    return stratified(np.zeros(available, np.int64), count, seed, Purpose.CALIBRATION)


def _require_form(part: Part, rows: NDArray[np.int64], form: Form, pictures: Pictures) -> None:
    """Sizes and channels are brought into the form of the data only where settings ask for it."""
    survey = part.frames.survey(rows)
    wanted = f"{form.height}x{form.width} with {form.channels} channel(s)"
    other = {size: id for size, id in survey.sizes.items() if size != (form.height, form.width)}
    if other and pictures.image_size is None:
        raise DataError(
            "data.calibration.source: images have another size than the model's input",
            found=listing([f"{h}x{w} ({id})" for (h, w), id in other.items()])
            + f"; it is {wanted}",
            fix=f"give images of that size, or set data.image_size: [{form.height}, {form.width}]",
        )
    if survey.sizes and survey.channels != form.channels and pictures.channels is None:
        raise DataError(
            "data.calibration.source: images have other channels than the model's input",
            found=f"{survey.channels} channel(s); it is {wanted}",
            fix=f"give such images, or set data.channels: {form.channels} to convert them",
        )


@dataclass(frozen=True)
class _Look:
    """What one pass over some images found: the SHA-256 of each, and how often levels occur."""

    digests: list[bytes]
    levels: Histogram

    @classmethod
    def at(cls, images: Images, rows: NDArray[np.int64] | None = None) -> _Look:
        """Look at the images at `rows`, or at all of them, a few at a time."""
        rows = np.arange(len(images)) if rows is None else rows
        digests: list[bytes] = []
        levels: Histogram | None = None
        for start in range(0, len(rows), _CHUNK):
            pixels = images[rows[start : start + _CHUNK]]
            levels = levels or Histogram(pixels.shape[-1])
            levels.add(pixels)
            digests += [hashlib.sha256(np.ascontiguousarray(x).data).digest() for x in pixels]
        return cls(digests, levels or Histogram(1))
