"""The identity of files and folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kdpipe.targets.digest import digest, size
from kdpipe.targets.errors import DataError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, one of them in a folder inside."""
    root = tmp_path / "artifact"
    (root / "inner").mkdir(parents=True)
    (root / "model.bin").write_bytes(b"abc")
    (root / "inner" / "model.xml").write_bytes(b"<net/>")
    return root


def test_file_is_its_sha256(folder: Path) -> None:
    """A file's digest is the sha256 of its bytes."""
    assert digest(folder / "model.bin") == ABC


def test_folder_is_its_sorted_lines(folder: Path) -> None:
    """A folder's digest is the sha256 of what `sha256sum` prints of its files, sorted."""
    xml = hashlib.sha256(b"<net/>").hexdigest()
    lines = sorted([f"{ABC}  model.bin\n", f"{xml}  inner/model.xml\n"])

    assert digest(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_moving_keeps_the_identity(folder: Path) -> None:
    """The folder's own name and place do not count."""
    before = digest(folder)

    assert digest(folder.rename(folder.with_name("elsewhere"))) == before


def test_renaming_changes_the_identity(folder: Path) -> None:
    """The names inside are bound to the contents: two files that swap names are another folder."""
    before = digest(folder)
    (folder / "model.bin").rename(folder / "other.bin")

    assert digest(folder) != before


def test_one_flipped_bit_changes_the_identity(folder: Path) -> None:
    """Every byte counts."""
    before = digest(folder)
    (folder / "model.bin").write_bytes(b"abb")

    assert digest(folder) != before


@pytest.mark.parametrize("aim", ["model.bin", "inner", "nowhere"])
def test_links_are_refused(folder: Path, aim: str) -> None:
    """Symbolic links to files, to folders and to nothing are errors, in `size` as well."""
    (folder / "link").symlink_to(aim)

    for question in (digest, size):
        with pytest.raises(DataError, match="link is a symbolic link"):
            question(folder)


def test_pipes_are_refused(folder: Path) -> None:
    """What is no plain file cannot be read to its end."""
    os.mkfifo(folder / "pipe")

    with pytest.raises(DataError, match="neither a plain file nor a folder"):
        digest(folder)


def test_line_breaks_in_names_are_refused(folder: Path) -> None:
    """A name with a line break could imitate another file's line."""
    (folder / "a\nb").write_bytes(b"")

    with pytest.raises(DataError, match="badly named"):
        digest(folder)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    """A path that does not exist has no identity."""
    with pytest.raises(DataError, match="there is no file or folder"):
        digest(tmp_path / "nowhere")


def test_size_is_the_sum_of_the_files(folder: Path) -> None:
    """3 bytes and 6 bytes make 9."""
    assert (size(folder / "model.bin"), size(folder)) == (3, 9)
