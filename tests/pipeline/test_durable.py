"""Durable writing on a real disk: what is flushed, in which order, and what is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdpipe.pipeline import durable


@pytest.fixture
def flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(name, whether `file` had its final name yet) of each fsync, which is carried out as well."""
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((path.name, (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    return seen


def test_write_replaces(tmp_path: Path) -> None:
    """The new text is there whole, and no draft beside it."""
    path = tmp_path / "file"
    durable.write(path, "old and long")
    durable.write(path, "né")

    assert path.read_bytes() == "né".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_content_then_rename_then_name(tmp_path: Path, flushed: list[tuple[str, bool]]) -> None:
    """The content is on the disk before the rename, and the folder's names after it."""
    durable.write(tmp_path / "file", "text")

    assert flushed == [(f"file.{os.getpid()}", False), (tmp_path.name, True)]
    assert (tmp_path / "file").exists()


def test_all_of_a_tree(tmp_path: Path, flushed: list[tuple[str, bool]]) -> None:
    """Every file and folder is flushed, read-only ones too, the outermost folder last."""
    (tmp_path / "sub/empty").mkdir(parents=True)
    (tmp_path / "sub/a").touch(0o444)
    durable.sync_tree(tmp_path)

    names = [name for name, _ in flushed]
    assert sorted(names[:-1]) == ["a", "empty", "sub"]
    assert names[-1] == tmp_path.name
