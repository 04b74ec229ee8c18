"""What a model's input looks like: where pictures come from, their form and normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from kdpipe.stages.base import Work
from kdpipe.stages.choice import choice
from kdpipe.stages.draft import Draft, Drafts
from kdpipe.stages.images import store_images
from kdpipe.stages.pixels import Form, Histogram
from kdpipe.stages.sources import SOURCES
from kdpipe.stages.sources.base import Chunk, Faults, Source
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


class Pictures(BaseModel):
    """The settings of one kind of input. `where` below is their place in the YAML, for errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

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

    def write(
        self,
        drafts: Drafts,
        names: tuple[str, str],
        form: Form,
        faults: Faults,
        where: str,
        work: Work,
    ) -> Preprocess:
        """Decode everything once and say how it is normalised; files go to `<name>.images.npy`.

        Of an empty name only the checksums of its files are kept, under the draft's own name.
        Raises DataError naming all `faults`: those of its files, and those that came with it.
        """
        histogram = Histogram(form.channels)
        for draft, name in zip(drafts, names, strict=True):
            chunks = _watched(draft.part.frames.chunks(draft.rows, form, faults), draft, work)
            if draft.name == "train":
                chunks = _counted(chunks, histogram)
            if name:
                shape = (len(draft), *form.shape)
                path = work.out / f"{name}.images.npy"
                store_images(path, shape, (chunk.pixels for chunk in chunks))
            else:
                checksums = [checksum for chunk in chunks for checksum in chunk.checksums]
                np.save(work.out / f"{draft.name}.checksums.npy", np.array(checksums, np.uint32))
        refuse_faults(faults)
        return self._preprocess(form, histogram, where)

    def check_form(self, form: Form, where: str) -> None:
        """Raise DataError when these settings do not fit images of this form."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != form.channels:
                raise DataError(
                    f"{where}.{name} does not fit the images",
                    found=f"{len(values)} value(s), the images have {form.channels} channel(s)",
                    fix=f"give one {name} per channel, or set {where}.channels",
                )

    def form(self, drafts: Drafts, where: str) -> Form:
        """What the settings say, completed by what the images are. Raises as `check_form` does."""
        form = self._form(drafts, where)
        self.check_form(form, where)
        return form

    def _form(self, drafts: Drafts, where: str) -> Form:
        size = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        if size and self.channels:
            return Form(*size, self.channels)
        surveys = [draft.part.frames.survey(draft.rows) for draft in drafts]
        sizes = {size: id for survey in reversed(surveys) for size, id in survey.sizes.items()}
        if not size and len(sizes) > 1:
            raise DataError(
                "the images have different sizes (height x width)",
                found=listing([f"{h}x{w} ({id})" for (h, w), id in sizes.items()]),
                fix=f"set {where}.image_size, e.g. `image_size: 64`",
            )
        # Without one readable header any form will do: decoding names every file as bad.
        height, width = size or next(iter(sizes), (1, 1))
        return Form(height, width, self.channels or max(survey.channels for survey in surveys))

    def _preprocess(self, form: Form, histogram: Histogram, where: str) -> Preprocess:
        from kdpipe.targets.device.preprocess import Preprocess

        mean, std = histogram.moments()
        if self.std is None and 0 in std:
            raise DataError(
                "a channel has the same value in every pixel of train",
                found=f"standard deviation per channel {std}",
                fix=f"check the images, or set {where}.std",
            )
        return Preprocess(form.height, form.width, self.mean or mean, self.std or std)


def refuse_faults(faults: Faults) -> None:
    """Raise DataError naming every file that cannot be used."""
    if faults:
        bad = [f"{id} {fault}" for id, fault in faults.items()]
        raise DataError(
            f"{len(faults)} image file(s) cannot be used",
            found=listing(bad, limit=len(bad)),
            fix="replace or remove them",
        )


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
