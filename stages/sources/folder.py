"""Image files in one folder per class; unlike `manifest.py`, names alone say what is what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.base import EVAL_NAMES, Contents, Part, PartName, Source, require
from kdpipe.stages.sources.listed import FileFrames
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
else:
    from kdpipe.targets.lazy import np

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Folder(Source):
    """`train/<class>/*` and `eval/<class>/*` (or `val`, or `test`), or `<class>/*`, one pool.

    Files may lie deeper inside a class. Classes are numbered in the order of their names'
    characters: `10` comes before `2`. Hidden files are left out, others that are no images too,
    with a warning.
    """

    summary: ClassVar[str] = "image files in one folder per class"

    kind: Literal["folder"] = "folder"
    folder: UserPath = Field(description="holds train/ and eval/, or one folder per class")

    def files(self) -> Mapping[str, Path]:
        """The folder."""
        return {"folder": self.folder}

    def check(self) -> None:
        """The folder must be there and hold folders that make sense together."""
        self._roots()

    def read(self) -> Contents:
        """List all files."""
        roots = self._roots()
        classes = tuple(sorted({name for root in roots.values() for name in _folders(root)}))
        others: list[str] = []
        parts = {name: self._part(root, classes, others) for name, root in roots.items()}
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        warnings = (f"left out, not images: {listing(others)}",) if others else ()
        return Contents(parts, classes, f"folder: {self.folder.name} ({sizes})", warnings)

    def _roots(self) -> dict[PartName, Path]:
        fix = "set data.source.folder to the folder that holds train/ and eval/, or the classes"
        require(self.folder, Path.is_dir, "the folder of images", fix)
        inside = _folders(self.folder)
        evals = [name for name in EVAL_NAMES if name in inside]
        if "train" in inside and len(evals) == 1:
            return {"train": self.folder / "train", "eval": self.folder / evals[0]}
        if inside and "train" not in inside and not evals:
            return {"pool": self.folder}
        raise DataError(
            f"{self.folder} is neither train/ with one of {'/, '.join(EVAL_NAMES)}/ nor classes",
            found=f"folders {listing(inside)}" if inside else "no folders",
            fix=fix,
        )

    def _part(self, root: Path, classes: Sequence[str], others: list[str]) -> Part:
        ids: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            for path in _files(root / name):
                file = path.relative_to(self.folder).as_posix()
                if path.suffix.lower() in SUFFIXES:
                    ids.append(file)
                    labels.append(label)
                else:
                    others.append(file)
        others.extend(
            path.relative_to(self.folder).as_posix()
            for path in sorted(root.iterdir())
            if path.is_file() and not path.name.startswith(".")
        )
        frames = FileFrames(self.folder, tuple(ids))
        return Part(tuple(ids), np.array(labels, np.int64), frames)


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """All files under `folder` that are not hidden, in one order on every platform."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))
