"""What identifies an artifact: the sha256 of a file, or of a folder with every name in it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

from kdpipe.targets.errors import DataError


def digest(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, or of a folder's files and their names.

    A folder's is the sha256 of its sorted lines `<sha256>  <path inside, with />`, as `sha256sum`
    prints them, so that renaming a file changes it and moving the folder does not. Empty folders
    and file modes do not count. Raises DataError for links, devices and the like inside a folder,
    for names with a line break, and when there is nothing at `path`.
    """
    if path.is_file():
        return sha256_file(path)
    lines = [f"{sha256_file(path / name)}  {name}\n" for name in _names(path)]
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes in a file, or in all files of a folder; refuses what `digest` refuses."""
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in _names(path))


def _names(folder: Path) -> Iterator[str]:
    """Paths of the files in `folder`, relative to it; symbolic links are never followed."""
    if not folder.is_dir():
        raise DataError(f"there is no file or folder {folder}")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise DataError(
                f"{path} is a symbolic link: its content could change unseen",
                fix="replace it by a copy of what it points to: cp -L",
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or "\n" in name:
            raise DataError(f"{str(path)!r} is neither a plain file nor a folder, or badly named")
        if stat.S_ISREG(mode):
            yield name
