"""Writing so that a power cut leaves the old file or the new one, whole; `store.py` writes folders.

A rename is atomic, but nothing is on the disk before fsync: of the content, then of the folder
that holds the name.
"""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the file at `path`, in a folder that exists, by `text` in UTF-8."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have `folder` and all below it reach the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
