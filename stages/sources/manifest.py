"""A CSV file that lists images, and masks; unlike `folder.py` it says splits, groups, any name."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kdpipe.stages.base import Files
from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.base import EVAL_NAMES, Contents, Part, PartName, Source, require
from kdpipe.stages.sources.listed import FileFrames, FileMaps
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    mask: str
    split: str
    group: str


class Manifest(Source):
    """Columns `path` and `label`, perhaps `split` and `group`; others are not looked at.

    Labels are class numbers when all of them are whole numbers, else class names, numbered in the
    order of their characters. Without `label` there is `mask`, the path of a PNG as
    `stages/masks.py` reads it. `split` is `train` or one of `eval`, `val`, `test`.
    """

    summary: ClassVar[str] = "a CSV file with path and label or mask, perhaps split and group"

    kind: Literal["csv"] = "csv"
    file: UserPath = Field(description="the CSV file, UTF-8, with a header line")
    folder: UserPath | None = Field(
        None, description="where its paths start, and all images lie; by default beside the CSV"
    )

    @property
    def root(self) -> Path:
        """The folder in which all listed files lie."""
        return self.folder or self.file.parent

    def files(self) -> Mapping[str, Path | Files]:
        """The CSV, and the files that it lists."""
        rows = self._rows()
        # Several images may share a mask, as pictures of one scene do.
        names = dict.fromkeys(name for row in rows for name in (row.path, row.mask) if name)
        return {"file": self.file, "folder": Files(self.root, tuple(names))}

    def places(self) -> Collection[str]:
        """Whichever field says where the paths start."""
        return ("folder",) if self.folder else ("file",)

    def check(self) -> None:
        """The CSV and every file that it lists must be there."""
        self._rows()

    def read(self) -> Contents:
        """Turn rows into parts, by their split."""
        rows = self._rows()
        classes = None if rows[0].mask else _class_names(rows)
        groups = np.unique([row.group for row in rows], return_inverse=True)[1]
        grouped = any(row.group for row in rows)
        parts: dict[PartName, Part] = {}
        for name, chosen in self._parts(rows).items():
            members = [rows[i] for i in chosen]
            ids = tuple(row.path for row in members)
            frames = FileFrames(self.root, ids)
            masks = tuple(row.mask for row in members)
            labels = FileMaps(self.root, masks, ids) if masks[0] else _labels(members, classes)
            parts[name] = Part(ids, labels, frames, groups[chosen] if grouped else None)
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        return Contents(parts, classes, f"csv: {self.file.name} ({sizes})")

    def _rows(self) -> list[_Row]:
        require(self.file, Path.is_file, "the CSV file", "set data.source.file to its path")
        require(self.root, Path.is_dir, "the folder of the images", "set data.source.folder")
        try:
            with self.file.open(encoding="utf-8-sig", newline="") as stream:
                rows = list(self._parse(csv.DictReader(stream, strict=True)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise self._wrong("is not a CSV file in UTF-8", str(error)) from error
        if not rows:
            raise self._wrong("lists no images", "only a header line")
        self._refuse(
            "leaves fields empty or has too many",
            [f"line {row.line}" for row in rows if not (row.path and (row.label or row.mask))],
        )
        self._refuse_repeated(rows)
        self._refuse_outside(rows)
        missing = [
            f"line {line}: {name}"
            for line, name in _names(rows)
            if not (self.root / name).is_file()
        ]
        self._refuse(f"lists files that are not in {self.root}", missing)
        alone = [f"line {row.line}" for row in rows if not row.group]
        self._refuse("leaves the group of some rows empty", alone if len(alone) < len(rows) else [])
        return rows

    def _parse(self, reader: csv.DictReader[str]) -> Iterator[_Row]:
        header = list(reader.fieldnames or ())
        if "path" not in header or not {"label", "mask"} & set(header):
            raise self._wrong(
                "lacks the columns path and label, or path and mask", listing(header) or "no header"
            )
        labelled = "label" in header
        for row in reader:
            # DictReader files surplus fields under None; such a row has slipped by a comma.
            cells = {} if None in row else {k: (v or "").strip() for k, v in row.items()}
            path, label, mask, split, group = (
                cells.get(name, "") for name in ("path", "label", "mask", "split", "group")
            )
            yield _Row(reader.line_num, path, label, "" if labelled else mask, split, group)

    def _refuse_repeated(self, rows: Sequence[_Row]) -> None:
        seen: dict[str, int] = {}
        repeated = []
        for row in rows:
            first = seen.setdefault(Path(row.path).as_posix(), row.line)
            if first != row.line:
                repeated.append(f"{row.path} (lines {first} and {row.line})")
        self._refuse("lists files twice", repeated)

    def _refuse_outside(self, rows: Sequence[_Row]) -> None:
        # Paths are ids, part of the output, which must not depend on where the user's folder lies.
        self._refuse(
            f"lists files outside of {self.root}",
            [
                f"line {line}: {name}"
                for line, name in _names(rows)
                if Path(name).is_absolute() or ".." in Path(name).parts
            ],
            fix="set data.source.folder to a folder above them, and write paths relative to it",
        )

    def _parts(self, rows: Sequence[_Row]) -> dict[PartName, NDArray[np.int64]]:
        splits = [row.split for row in rows]
        names = set(splits)
        if names == {""}:
            return {"pool": np.arange(len(rows))}
        evals = names & set(EVAL_NAMES)
        if "train" not in names or len(evals) != 1 or len(names) != 2:
            raise DataError(
                f"the splits of {self.file.name} are not train and one of {', '.join(EVAL_NAMES)}",
                found=listing(sorted(name or "(empty)" for name in names)),
                fix="name two splits, for every row, or drop the column to have it split here",
            )
        in_train = np.array([split == "train" for split in splits])
        return {"train": np.flatnonzero(in_train), "eval": np.flatnonzero(~in_train)}

    def _refuse(self, what: str, places: Sequence[str], fix: str = "") -> None:
        if places:
            raise self._wrong(what, listing(places, limit=len(places)), fix)

    def _wrong(self, what: str, found: str, fix: str = "") -> DataError:
        return DataError(f"{self.file.name} {what}", found=found, fix=fix or f"correct {self.file}")


def _names(rows: Sequence[_Row]) -> Iterator[tuple[int, str]]:
    """(line, file) of all images and masks."""
    for row in rows:
        yield from ((row.line, name) for name in (row.path, row.mask) if name)


def _class_names(rows: Sequence[_Row]) -> tuple[str, ...] | None:
    if all(_NUMBER.fullmatch(row.label) for row in rows):
        return None
    return tuple(sorted({row.label for row in rows}))


def _labels(rows: Sequence[_Row], classes: Sequence[str] | None) -> NDArray[np.int64]:
    if classes is None:
        return np.array([int(row.label) for row in rows], np.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[row.label] for row in rows], np.int64)
