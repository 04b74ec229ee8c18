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
from kdpipe.stages.base import Files
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


def digest(memory: Path, read: Path | Files) -> str:
    """What a new process would say, which remembers what earlier ones saved."""
    contents = Contents(memory)
    found = contents.digest(read)
    contents.save()
    return found


def test_file(memory: Path, file: Path) -> None:
    """A file's digest is its sha256."""
    assert digest(memory, file) == hashlib.sha256(b"one").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `a` and `sub/b`."""
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "a").write_text("1")
    (tmp_path / "folder" / "sub" / "b").write_text("2")
    return tmp_path / "folder"


def test_files_of_a_folder(memory: Path, folder: Path) -> None:
    """The digest is that of sorted lines, in whatever order the names came."""
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    lines = sorted([f"{one}  a\n", f"{two}  sub/b\n", "folder  sub\n"])

    found = digest(memory, Files(folder, ("sub/b", "sub", "a")))

    assert found == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_files_are_names_and_contents(memory: Path, folder: Path, tmp_path: Path) -> None:
    """Where the folder is does not matter, nor what else it holds; names and contents do."""
    first = digest(memory, Files(folder, ("a", "sub/b")))
    moved = folder.rename(tmp_path / "moved")
    (moved / "other").write_text("of no concern")

    assert digest(memory, Files(moved, ("a", "sub/b"))) == first

    renamed = (moved / "a").rename(moved / "c")
    second = digest(memory, Files(moved, ("c", "sub/b")))
    renamed.write_text("3")
    third = digest(memory, Files(moved, ("c", "sub/b")))
    assert len({first, second, third}) == 3


def test_a_link_counts_as_what_it_leads_to(memory: Path, folder: Path, file: Path) -> None:
    """A file behind a linked folder is read through the link, and so is a change of it."""
    (folder / "link").symlink_to(file.parent)
    first = digest(memory, Files(folder, ("link/data.bin",)))

    file.write_bytes(b"more")

    assert digest(memory, Files(folder, ("link/data.bin",))) != first


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
    """A path that leads to no file has no digest: not an absent one, a folder, a broken link."""
    (tmp_path / "broken").symlink_to("absent")

    for name, found in (("absent", ""), (".", "a folder"), ("broken", "a broken link")):
        with pytest.raises(DataError, match="there is no file") as error:
            digest(memory, tmp_path / name)
        assert error.value.found == found
    with pytest.raises(DataError, match="there is no file"):
        digest(memory, Files(tmp_path, ("broken",)))
