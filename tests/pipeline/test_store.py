"""The store on real files: whole or absent, every damaged byte noticed, one maker at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.pipeline.store import MANIFEST, Entry, Store, key_of
from kdpipe.targets.errors import StageError

RECORD = {"stage": "toy", "version": 1, "fields": {"note": "é", "epochs": 3}}
KEY = key_of("toy", RECORD)
FILES = {"a.txt": "hello", "sub/b.txt": "b", "empty": ""}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


def put(store: Store, files: dict[str, str] = FILES) -> Entry:
    """Publish `files` as the output of KEY."""
    draft = store.draft(KEY)
    for name, text in files.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_text(text)
    return store.put(KEY, "toy", RECORD, draft)


def write(path: Path, content: bytes) -> None:
    """Overwrite a file of the store, as a broken disk would."""
    path.chmod(0o644)
    path.write_bytes(content)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns how it ended, 0 or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_put_and_find(store: Store) -> None:
    """What was put is found, with its record and a digest of all its files."""
    entry = put(store)

    assert store.find(KEY) == entry
    assert entry.record == RECORD
    assert {n: (entry.folder / n).read_text() for n in FILES} == FILES
    assert store.damage(KEY) is None


def test_absent(store: Store) -> None:
    """What was never put is neither found nor held."""
    assert store.find(KEY) is None
    assert not store.holds(KEY)


def test_key_is_a_function_of_the_record() -> None:
    """The order of keys does not matter, every value does; the number pins the format."""
    turned = {"fields": {"epochs": 3, "note": "é"}, "version": 1, "stage": "toy"}

    assert key_of("toy", turned) == KEY == "toy-77eb26676cc5fbea5b10edf8"
    assert key_of("toy", {**RECORD, "version": 2}) != KEY
    assert key_of("compile[openvino-int8]", RECORD).startswith("compile.openvino-int8-")


def test_digest_covers_names_and_contents(store: Store) -> None:
    """Equal files give equal digests; renaming two files changes it."""
    first = put(store).digest

    assert put(store).digest == first
    assert put(store, {"a.txt": "b", "sub/b.txt": "hello", "empty": ""}).digest != first


def test_files_are_read_only(store: Store) -> None:
    """No file of an entry can be written by accident."""
    entry = put(store)

    modes = {p.stat().st_mode & 0o777 for p in entry.folder.rglob("*") if p.is_file()}
    assert modes == {0o444}


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", MANIFEST])
def test_every_flipped_byte_is_noticed(store: Store, name: str) -> None:
    """A flipped bit in any byte of any file, the manifest included, is damage."""
    path = put(store).folder / name
    good = path.read_bytes()

    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        write(path, bytes(bad))
        assert store.damage(KEY), position

    write(path, good)
    assert store.damage(KEY) is None


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", MANIFEST])
def test_every_truncation_is_noticed(store: Store, name: str) -> None:
    """A file cut at any length, zero included, is damage."""
    path = put(store).folder / name
    good = path.read_bytes()

    for length in range(len(good)):
        write(path, good[:length])
        assert store.damage(KEY), length


@pytest.mark.parametrize("text", [b"[]", b"null", b'"x"', b"{}", b"\xff"])
def test_manifest_of_another_kind_is_damage(store: Store, text: bytes) -> None:
    """Valid JSON that is no manifest is damage and not found, and never an exception."""
    path = put(store).folder / MANIFEST
    write(path, text)

    assert store.damage(KEY)
    assert store.find(KEY) is None
    assert store.holds(KEY)


def test_blank_in_the_manifest_is_noticed(store: Store) -> None:
    """Not even a change that JSON does not see goes through."""
    path = put(store).folder / MANIFEST
    write(path, path.read_bytes().replace(b" ", b"\t", 1))

    assert store.damage(KEY) == f"{MANIFEST} does not match its own hash"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "a.txt").unlink(), "differ from the manifest: a.txt"),
        (lambda folder: (folder / "new").write_text(""), "differ from the manifest: new"),
        (lambda folder: (folder / "link").symlink_to("/"), "differ from the manifest: link"),
        (lambda folder: (folder / MANIFEST).unlink(), "cannot be read"),
        (lambda folder: (folder / "a.txt").rename(folder / "c"), "manifest: a.txt, c"),
    ],
    ids=["missing", "extra", "link", "no manifest", "renamed"],
)
def test_wrong_set_of_files(store: Store, change: Callable[[Path], object], said: str) -> None:
    """A missing, extra or renamed file is damage, and named."""
    change(put(store).folder)

    assert said in str(store.damage(KEY))


def test_file_behind_a_link_is_damage(store: Store, tmp_path: Path) -> None:
    """Equal bytes behind a link are not accepted: they could change unseen."""
    file = put(store).folder / "a.txt"
    outside = tmp_path / "outside"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)

    assert store.damage(KEY) == "changed since it was stored: a.txt"


def test_links_are_not_stored(store: Store, tmp_path: Path) -> None:
    """A stage that leaves a link fails, and the file that the link leads to stays as it is."""
    outside = tmp_path / "outside"
    outside.touch(0o644)
    draft = store.draft(KEY)
    (draft / "link").symlink_to(outside)

    with pytest.raises(StageError, match="toy left links among its files"):
        store.put(KEY, "toy", RECORD, draft)

    assert outside.stat().st_mode & 0o777 == 0o644
    assert not store.holds(KEY)


def test_entry_of_another_key_is_damage(store: Store) -> None:
    """An entry that is whole but stands under a wrong name is damage."""
    folder = put(store).folder
    folder.rename(folder.with_name("toy-0"))

    assert store.damage("toy-0")


def test_set_aside_keeps_what_was_there(store: Store) -> None:
    """A damaged entry is moved where it can be looked at, and the key is free again."""
    folder = put(store).folder
    write(folder / "a.txt", b"broken")

    place = store.set_aside(KEY)

    assert (place / "a.txt").read_bytes() == b"broken"
    assert store.find(KEY) is None
    assert put(store).folder == folder


def test_put_replaces_an_older_entry(store: Store) -> None:
    """The newest output counts, and nothing of the older one is left behind."""
    put(store)
    entry = put(store, {"a.txt": "new"})

    assert [p.name for p in sorted(entry.folder.iterdir())] == ["a.txt", MANIFEST]
    assert list((store.root / "drafts").iterdir()) == []


def test_put_of_an_equal_output_keeps_the_old_one(store: Store) -> None:
    """Files that another run may be reading are not exchanged for equal ones."""
    first = put(store)
    file = (first.folder / "a.txt").stat().st_ino
    (store.scratch(KEY) / "checkpoint").write_text("epoch 3")

    assert put(store) == first
    assert (first.folder / "a.txt").stat().st_ino == file
    assert list((store.root / "drafts").iterdir()) == []
    assert list((store.root / "scratch").iterdir()) == []


def test_put_replaces_an_equal_output_that_is_damaged(store: Store) -> None:
    """An old entry that only claims to be equal is replaced."""
    write(put(store).folder / "a.txt", b"broken")
    put(store)

    assert store.damage(KEY) is None


def test_scratch_survives_until_put(store: Store) -> None:
    """Unfinished work is there again after a kill, and gone when the output is stored."""
    (store.scratch(KEY) / "checkpoint").write_text("epoch 3")

    assert (Store(store.root).scratch(KEY) / "checkpoint").read_text() == "epoch 3"

    put(store)
    assert list((store.root / "scratch").iterdir()) == []


def test_drafts_of_killed_runs_go(store: Store) -> None:
    """What a killed run left half written is removed by the next run that makes the same."""

    def die() -> None:
        (store.draft(KEY) / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    left = list((store.root / "drafts").iterdir())
    assert [(folder / "half").exists() for folder in left] == [True]

    assert list(store.draft(KEY).iterdir()) == []
    assert not left[0].exists()


def kill_at(event: int) -> None:
    """Let this process be killed just before its `event`-th change of the file system."""
    watched = {"open", "os.rename", "os.chmod", "os.mkdir", "os.remove", "os.rmdir"}
    seen = 0

    def hook(name: str, _: object) -> None:
        nonlocal seen
        if name not in watched:
            return
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_killed_anywhere_in_put(store: Store, replacing: bool) -> None:
    """However far put came when it was killed, the entry is whole or absent; then put works.

    An older one is absent for one step only, while it changes places with the new one.
    """
    absent = []
    for event in range(1, 200):
        if replacing:
            put(store, {"a.txt": "old"})

        def die(event: int = event) -> None:
            kill_at(event)
            put(store)

        ended = in_child(die)
        assert not store.holds(KEY) or store.damage(KEY) is None, event
        absent += [] if store.holds(KEY) else [event]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        if store.holds(KEY) and not replacing:
            store.set_aside(KEY)

    assert event > 10
    assert len(absent) <= 1 or not replacing
    assert put(store).folder.is_dir()
    assert store.damage(KEY) is None


def test_second_process_waits(store: Store, tmp_path: Path) -> None:
    """While a key is held another process waits, and says so once."""
    waiting, done = FORK.Event(), tmp_path / "done"

    def second() -> None:
        with store.lock(KEY, waiting.set):
            done.touch()

    with store.lock(KEY):
        process = FORK.Process(target=second)
        process.start()
        assert waiting.wait(30)
        assert not done.exists()
    process.join(30)

    assert process.exitcode == 0
    assert done.exists()


def test_lock_dies_with_its_process(store: Store) -> None:
    """A killed run holds nothing: the next one gets the key without waiting."""

    def die() -> None:
        with store.lock(KEY):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL

    waited: list[bool] = []
    with store.lock(KEY, lambda: waited.append(True)):
        assert waited == []
