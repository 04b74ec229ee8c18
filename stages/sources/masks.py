"""Image files beside mask files of the same name; unlike `folder.py`, every pixel has a class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from kdpipe.stages.base import Files
from kdpipe.stages.paths import UserPath
from kdpipe.stages.sources.base import EVAL_NAMES, Contents, Part, PartName, Source, require
from kdpipe.stages.sources.listed import FileFrames, FileMaps, files_under, folders_in, is_image
from kdpipe.targets.errors import DataError, listing

_IMAGES, _MASKS = "images", "masks"


class Masks(Source):
    """`train/images/*` and `train/masks/*.png`, the same in `eval/` (or `val`, or `test`).

    Or `images/` and `masks/` alone, one pool. A mask has the name of its image up to the suffix;
    files may lie in folders below, in `images` and `masks` alike, and links to folders are
    followed. What a mask is made of says `stages/masks.py`. Hidden files are left out, others that
    are no images too, with a warning.
    """

    summary: ClassVar[str] = "image files beside PNG masks of the same name"

    kind: Literal["masks"] = "masks"
    folder: UserPath = Field(
        description="holds train/ and eval/ with images/ and masks/ in each, or these two"
    )
    classes: tuple[str, ...] | None = Field(None, description="names of the classes, in order")

    def files(self) -> Mapping[str, Files]:
        """The images and the masks; whatever else is in the folder does not matter."""
        pairs = [pair for root in self._roots().values() for pair in self._pairs(root)]
        return {"folder": Files(self.folder, tuple(name for pair in pairs for name in pair))}

    def places(self) -> Collection[str]:
        """The folder."""
        return ("folder",)

    def check(self) -> None:
        """Every image must have its mask, and every mask its image."""
        self.files()

    def read(self) -> Contents:
        """List all files."""
        roots = self._roots()
        parts = {name: self._part(root) for name, root in roots.items()}
        sizes = ", ".join(f"{len(part.ids)} {name}" for name, part in parts.items())
        others = [
            self._id(path)
            for root in roots.values()
            for path in (*files_under(root / _IMAGES), *files_under(root / _MASKS))
            if not is_image(path)
        ]
        warnings = (f"left out, not images: {listing(others)}",) if others else ()
        return Contents(parts, self.classes, f"masks: {self.folder.name} ({sizes})", warnings)

    def _roots(self) -> dict[PartName, Path]:
        fix = "set data.source.folder to the folder that holds train/ and eval/, or images/"
        require(self.folder, Path.is_dir, "the folder of images and masks", fix)
        inside = folders_in(self.folder)
        evals = [name for name in EVAL_NAMES if name in inside]
        roots: dict[PartName, Path] = {}
        if _IMAGES in inside and "train" not in inside and not evals:
            roots = {"pool": self.folder}
        elif _IMAGES not in inside and "train" in inside and len(evals) == 1:
            roots = {"train": self.folder / "train", "eval": self.folder / evals[0]}
        if not roots:
            raise DataError(
                f"{self.folder} is neither train/ with one of {'/, '.join(EVAL_NAMES)}/"
                f" nor {_IMAGES}/ with {_MASKS}/",
                found=f"folders {listing(inside)}" if inside else "no folders",
                fix=fix,
            )
        for root in roots.values():
            require(root / _IMAGES, Path.is_dir, "the folder of images", f"make {root / _IMAGES}")
            require(root / _MASKS, Path.is_dir, "the folder of masks", f"make {root / _MASKS}")
        return roots

    def _part(self, root: Path) -> Part:
        pairs = self._pairs(root)
        images, masks = (tuple(pair[side] for pair in pairs) for side in (0, 1))
        return Part(images, FileMaps(self.folder, masks, images), FileFrames(self.folder, images))

    def _pairs(self, root: Path) -> list[tuple[str, str]]:
        """(image, mask) of each sample, relative to the folder. Raises DataError naming the odd."""
        images, masks = (_by_name(root / kind) for kind in (_IMAGES, _MASKS))
        odd = {
            "without a mask": [images[name][0] for name in images if name not in masks],
            "without an image": [masks[name][0] for name in masks if name not in images],
            "of one name": [
                path for paths in (*images.values(), *masks.values()) if paths[1:] for path in paths
            ],
        }
        found = [
            f"{what}: {listing(self._ids(paths), limit=len(paths))}"
            for what, paths in odd.items()
            if paths
        ]
        if found:
            raise DataError(
                f"the images and masks in {root} do not pair up",
                found="; ".join(found),
                fix="add or remove files, or list the pairs in a CSV with the columns path,mask",
            )
        return [(self._id(images[name][0]), self._id(masks[name][0])) for name in sorted(images)]

    def _ids(self, paths: Sequence[Path]) -> list[str]:
        return [self._id(path) for path in paths]

    def _id(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The images under `folder` by what an image and its mask have in common: `site/0001`."""
    named: dict[str, list[Path]] = {}
    for path in filter(is_image, files_under(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        named.setdefault(name, []).append(path)
    return named
