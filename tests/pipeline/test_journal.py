"""The journal: every event kept in order, and readable whatever a kill left behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kdpipe.pipeline.journal import Event, Journal, StepObserver, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal in a run folder that does not exist yet."""
    return tmp_path / "run" / "journal.jsonl"


def tell(path: Path, *events: str) -> None:
    """One run that tells some events."""
    journal = Journal(path)
    for event in events:
        journal.tell(event, step="toy")
    journal.close()


def names(path: Path) -> list[str]:
    """The kept events."""
    return [event["event"] for event in read(path)]


def test_events_are_kept_in_order(path: Path) -> None:
    """Runs append to one another, each event with its values and its time."""
    before = time.time()
    tell(path, "run", "started")
    tell(path, "run")

    assert names(path) == ["run", "started", "run"]
    first = next(iter(read(path)))
    assert first["step"] == "toy"
    assert before - 1 < first["time"] < time.time() + 1


def test_an_event_is_on_disk_when_it_is_told(path: Path) -> None:
    """A kill right after an event does not lose it."""
    journal = Journal(path)
    journal.tell("started", step="toy")

    assert names(path) == ["started"]
    journal.close()


def test_progress_is_told_and_not_kept(path: Path) -> None:
    """Listeners hear progress; the file would only grow by it."""
    heard: list[Event] = []
    journal = Journal(path, (heard.append,))
    observer = StepObserver(journal, "toy")
    observer.progress(1, 3, "epoch 1")
    observer.fact("score", value=0.9)
    observer.warn("an odd file")
    journal.close()

    assert [event["event"] for event in heard] == ["progress", "fact", "warning"]
    assert heard[0] | {"time": 0} == {
        "time": 0, "event": "progress", "step": "toy", "done": 1, "total": 3, "note": "epoch 1",
    }  # fmt: skip
    assert [event["event"] for event in read(path)] == ["fact", "warning"]
    assert [event.get("value") for event in read(path)] == [0.9, None]


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_torn_last_line(path: Path, cut: int) -> None:
    """A line cut short by a kill is left out, and swallows nothing of the next run."""
    tell(path, "run", "started")
    path.write_bytes(path.read_bytes()[:-cut])
    assert names(path) == ["run"]

    tell(path, "run", "finished")
    assert [name for name in names(path) if name != "started"] == ["run", "run", "finished"]


def test_torn_inside_a_letter(path: Path) -> None:
    """A kill in the middle of a letter of two bytes leaves a readable journal."""
    journal = Journal(path)
    journal.tell("warning", text="é")
    journal.close()
    content = path.read_bytes()
    path.write_bytes(content[: content.index("é".encode()) + 1])

    tell(path, "run")
    assert names(path) == ["run"]


def test_names_that_are_not_unicode(path: Path) -> None:
    """A file name with a stray byte is kept and comes back as it was."""
    journal = Journal(path)
    journal.tell("warning", text="bad name \udcff é")
    journal.close()

    assert [event["text"] for event in read(path)] == ["bad name \udcff é"]
