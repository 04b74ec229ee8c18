"""Digests of the user's files, remembered by size and time so that plans are quick."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from kdpipe.stages.base import Files
from kdpipe.targets.digest import sha256_file
from kdpipe.targets.errors import DataError

QUIET_NS = 2_000_000_000
"""Files that changed less than this long ago are not remembered.

The clock of a file system ticks coarsely: two writes within one tick leave the same times, and the
second would go unseen. Git calls such entries "racily clean".
"""


class Contents:
    """sha256 of files, remembered in one JSON file under the store.

    A file is read again when its size, modification time, change time or inode differ.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[object]] = _load(memory)
        self._changed = False

    def digest(self, read: Path | Files) -> str:
        """The digest of a file, or of some files of a folder as sorted `sha256  name` lines.

        A folder among them has `folder` in the place of the sha256. Raises DataError for a file
        that is not there.
        """
        if isinstance(read, Path):
            return self._file(read)
        lines = sorted(f"{self._member(read.folder / name)}  {name}\n" for name in read.names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def save(self) -> None:
        """Remember for the next time; a failure to do so costs only time."""
        if not self._changed:
            return
        draft = self._memory.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # a store that can only be read may still be planned
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._known))
            draft.replace(self._memory)

    def _member(self, path: Path) -> str:
        return "folder" if path.is_dir() else self._file(path)

    def _file(self, path: Path) -> str:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "a broken link" if path.is_symlink() else ""
            raise DataError(f"there is no file {path}", found=found, fix="correct the path")
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if known and known[:-1] == state:
            return str(known[-1])
        now = time.time_ns()
        sha = sha256_file(path)
        if stat.st_ctime_ns < now - QUIET_NS:
            self._known[str(path)] = [*state, sha]
            self._changed = True
        return sha


def _load(memory: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
