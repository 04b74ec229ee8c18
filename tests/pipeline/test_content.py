"""Digests of the user's files: remembered while nothing changed, and never a stale one."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from kdpipe.pipeline import content
from kdpipe.pipeline.content import Contents
from kdpipe.targets.errors import DataError


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Where digests are remembered."""
    return tmp_path / "store" / "contents.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the user's."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def _old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now count as quiet."""
    monkeypatch.setattr(content, "QUIET_NS", -3_600_000_000_000)


def digest(memory: Path, path: Path) -> str:
    """What a new process would say, which remembers what earlier ones saved."""
    contents = Contents(memory)
    found = contents.digest(path)
    contents.save()
    return found


def test_file(memory: Path, file: Path) -> None:
    """A file's digest is its sha256."""
    assert digest(memory, file) == hashlib.sha256(b"one").hexdigest()


def test_folder(memory: Path, tmp_path: Path) -> None:
    """A folder's digest covers names and contents of all its files, and not where it is."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    first = digest(memory, folder)

    assert digest(memory, folder.rename(tmp_path / "moved")) == first

    renamed = (tmp_path / "moved" / "a").rename(tmp_path / "moved" / "c")
    second = digest(memory, tmp_path / "moved")
    renamed.write_text("3")
    third = digest(memory, tmp_path / "moved")
    assert len({first, second, third}) == 3


@pytest.mark.usefixtures("_old_enough")
def test_unchanged_files_are_not_read_again(memory: Path, file: Path) -> None:
    """What is remembered is believed while size, times and inode are the same."""
    digest(memory, file)
    known = json.loads(memory.read_text())
    known[str(file)][-1] = "remembered"
    memory.write_text(json.dumps(known))

    assert digest(memory, file) == "remembered"


@pytest.mark.usefixtures("_old_enough")
def test_same_size_and_restored_time(memory: Path, file: Path) -> None:
    """A file changed behind its own back, with size and time of modification kept, is noticed."""
    before = file.stat()
    digest(memory, file)

    while file.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock ticks
        time.sleep(0.002)
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert digest(memory, file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.usefixtures("_old_enough")
def test_replaced_by_another_file(memory: Path, file: Path, tmp_path: Path) -> None:
    """A file of the same size put in its place is noticed by its inode."""
    digest(memory, file)
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)

    assert digest(memory, file) == hashlib.sha256(b"two").hexdigest()


def test_files_changed_just_now_are_not_remembered(memory: Path, file: Path) -> None:
    """Two writes within one tick of the clock leave the same times: both are read."""
    before = file.stat()
    digest(memory, file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert digest(memory, file) == hashlib.sha256(b"two").hexdigest()
    assert not memory.exists()


@pytest.mark.usefixtures("_old_enough")
@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_damaged_memory_costs_only_time(memory: Path, file: Path, text: str) -> None:
    """A memory that cannot be read is forgotten and written anew."""
    memory.parent.mkdir()
    memory.write_text(text)

    assert digest(memory, file) == hashlib.sha256(b"one").hexdigest()
    assert list(json.loads(memory.read_text())) == [str(file)]


@pytest.mark.usefixtures("_old_enough")
def test_memory_that_cannot_be_written(tmp_path: Path, file: Path) -> None:
    """Where nothing can be written, digests are right all the same."""
    (tmp_path / "store").write_text("a file where the folder should be")

    assert digest(tmp_path / "store" / "c.json", file) == hashlib.sha256(b"one").hexdigest()


def test_nothing_there(memory: Path, tmp_path: Path) -> None:
    """A path that leads nowhere has no digest, not that of an empty folder."""
    with pytest.raises(DataError, match="there is no file or folder"):
        digest(memory, tmp_path / "absent")
