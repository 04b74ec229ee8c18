"""The store: outputs of stages, whole or absent, verified when they are used.

An entry is a folder named after its key, written elsewhere, made durable, and renamed into place;
`manifest.json` inside it holds the record that the key is the hash of and a sha256 per file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.pipeline import durable
from kdpipe.targets.digest import sha256_file
from kdpipe.targets.errors import StageError, listing

MANIFEST = "manifest.json"
Record = Mapping[str, Any]
"""All that an output depends on; its canonical JSON is what the key hashes."""


def key_of(step: str, record: Record) -> str:
    """The name of an entry: the step, readable, and 24 hex digits of the record's sha256."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{slug(step)}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def slug(step: str) -> str:
    """A step's id as a file name. Example: compile[openvino-int8] -> compile.openvino-int8"""
    return step.replace("[", ".").replace("]", "")


@dataclass(frozen=True)
class Entry:
    """One stored output: where its files are, and the digest of all of them."""

    key: str
    folder: Path
    digest: str
    record: Record


class Store:
    """Outputs of stages under one root folder, shared by any number of runs and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._drafts = root / "drafts"
        self._scratch = root / "scratch"
        self._locks = root / "locks"

    def find(self, key: str) -> Entry | None:
        """The entry of `key`, or None when it is absent or its manifest cannot be read."""
        folder = self._objects / key
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            return Entry(key, folder, manifest["digest"], manifest["record"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def damage(self, key: str) -> str | None:
        """What is wrong with the stored files of `key`, or None when every byte is as written."""
        folder = self._objects / key
        try:
            written = (folder / MANIFEST).read_bytes()
            manifest = json.loads(written)
            files, step, record = manifest["files"], manifest["step"], manifest["record"]
            # Compared with what put would write, so that not even a blank may differ.
            whole = written == _manifest(step, record, files) and key == key_of(step, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        if not whole:
            return f"{MANIFEST} does not match its own hash"
        present = _names(folder)
        if present != set(files):
            return f"files differ from the manifest: {', '.join(sorted(present ^ set(files)))}"
        changed = [name for name, sha in files.items() if _sha256(folder / name) != sha]
        return f"changed since it was stored: {', '.join(changed)}" if changed else None

    def holds(self, key: str) -> bool:
        """Whether anything is stored as `key`, sound or not."""
        return (self._objects / key).exists()

    def set_aside(self, key: str) -> Path:
        """Move a damaged entry out of the way, keeping it for inspection; returns where it is."""
        place = self.root / "damaged" / f"{key}-{time.time_ns()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        (self._objects / key).rename(place)
        return place

    def scratch(self, key: str) -> Path:
        """A folder for unfinished work on `key`; it survives a kill and goes when `key` is put."""
        folder = self._scratch / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold `key` against other processes; `on_wait()` is called once if one holds it now."""
        from filelock import FileLock, Timeout

        self._locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._locks / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait:
                on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def draft(self, key: str) -> Path:
        """An empty folder to write the output of `key` into, in the store's own file system.

        Whoever calls holds the lock of `key`, so other drafts of it are those of killed runs.
        """
        for dead in self._drafts.glob(f"{key}-*"):
            shutil.rmtree(dead)
        folder = self._drafts / f"{key}-{os.getpid()}"
        folder.mkdir(parents=True)
        return folder

    def put(self, key: str, step: str, record: Record, draft: Path) -> Entry:
        """Publish `draft` as the output of `key`, replacing an older one that differs from it.

        Order (trust in a power cut): files and their folders reach the disk, then the rename,
        then the parent folder; only after that is the entry reported. Raises StageError for a
        link among the files: what it leads to could change unseen.
        """
        names = sorted(_names(draft))
        if links := [name for name in names if (draft / name).is_symlink()]:
            raise StageError(f"{step} left links among its files", found=listing(links))
        files = {name: sha256_file(draft / name) for name in names}
        (draft / MANIFEST).write_bytes(_manifest(step, record, files))
        entry = Entry(key, self._objects / key, _digest(files), record)
        if self._has(entry):  # what other runs may be reading just now stays where it is
            shutil.rmtree(draft)
        else:
            self._replace(entry, draft)
        shutil.rmtree(self._scratch / key, ignore_errors=True)
        return entry

    def _has(self, entry: Entry) -> bool:
        """Whether the very same output is stored already, and sound."""
        stored = self.find(entry.key)
        return bool(stored and stored.digest == entry.digest) and not self.damage(entry.key)

    def _replace(self, entry: Entry, draft: Path) -> None:
        """Move `draft` to its place; an older entry steps aside first and is deleted last."""
        _make_durable(draft)
        self._objects.mkdir(parents=True, exist_ok=True)
        old = self._drafts / f"{entry.key}-old-{os.getpid()}"
        if entry.folder.exists():
            entry.folder.rename(old)
        draft.rename(entry.folder)
        durable.sync(self._objects)
        if old.exists():
            shutil.rmtree(old)


def _manifest(step: str, record: Record, files: Mapping[str, str]) -> bytes:
    manifest = {"step": step, "record": record, "files": files, "digest": _digest(files)}
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _names(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in files} - {MANIFEST}


def _sha256(path: Path) -> str | None:
    """The digest of a plain file; None for a link, and for a file that the disk gives no more."""
    try:
        return None if path.is_symlink() else sha256_file(path)
    except OSError:
        return None


def _digest(files: Mapping[str, str]) -> str:
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _make_durable(folder: Path) -> None:
    """Make the files below `folder` read-only, and have all of it reach the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    durable.sync_tree(folder)
