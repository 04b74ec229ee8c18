"""Image files in one folder per class; unlike `manifest.py`, names alone say what is what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kdpipe.stages.base import Files
from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.base import EVAL_NAMES, Contents, Part, PartName, Source, require
from kdpipe.stages.sources.listed import FileFrames, files_under, folders_in, is_image
from kdpipe.targets.errors import DataError, listing

if TYPE_CHECKING:
    import numpy as np
else:
    from kdpipe.targets.lazy import np


class Folder(Source):
    """`train/<class>/*` and `eval/<class>/*` (or `val`, or `test`), or `<class>/*`, one pool.

    Files may lie deeper inside a class; links to folders are followed. Classes are numbered in the
    order of their names' characters: `10` comes before `2`. Hidden files are left out, others
    that are no images too, with a warning.
    """

    summary: ClassVar[str] = "image files in one folder per class"

    kind: Literal["folder"] = "folder"
    folder: UserPath = Field(description="holds train/ and eval/, or one folder per class")

    def files(self) -> Mapping[str, Files]:
        """The images, and the folders that name classes: one without images is a class too."""
        roots = self._roots().values()
        classes = [root / name for root in roots for name in folders_in(root)]
        images = [path for root in roots for _, path in _members(root) if is_image(path)]
        return {"folder": Files(self.folder, tuple(map(self._id, [*classes, *images])))}

    def places(self) -> Collection[str]:
        """The folder."""
        return ("folder",)

    def check(self) -> None:
        """The folder must be there and hold folders that make sense together."""
        self._roots()

    def read(self) -> Contents:
        """List all files."""
        roots = self._roots()
        classes = tuple(sorted({name for root in roots.values() for name in folders_in(root)}))
        others: list[str] = []
        parts = {name: self._part(root, classes, others) for name, root in roots.items()}
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        warnings = (f"left out, not images: {listing(others)}",) if others else ()
        return Contents(parts, classes, f"folder: {self.folder.name} ({sizes})", warnings)

    def _roots(self) -> dict[PartName, Path]:
        fix = "set data.source.folder to the folder that holds train/ and eval/, or the classes"
        require(self.folder, Path.is_dir, "the folder of images", fix)
        inside = folders_in(self.folder)
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
        numbers = {name: number for number, name in enumerate(classes)}
        members = list(_members(root))
        images = [(self._id(path), numbers[name]) for name, path in members if is_image(path)]
        others.extend(self._id(path) for _, path in members if not is_image(path))
        others.extend(
            self._id(path)
            for path in sorted(root.iterdir())
            if path.is_file() and not path.name.startswith(".")
        )
        ids = tuple(id for id, _ in images)
        labels = np.array([label for _, label in images], np.int64)
        return Part(ids, labels, FileFrames(self.folder, ids))

    def _id(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _members(root: Path) -> Iterator[tuple[str, Path]]:
    """(class, file) for all files in the class folders of `root`, class by class."""
    for name in folders_in(root):
        yield from ((name, path) for path in files_under(root / name))
