"""The journal: what happened, in order, as one JSON object per line; console and report read it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""`{"time": seconds since 1970, "event": name, ...}`"""
Listener = Callable[[Event], None]


class Journal:
    """Appends events to a file and tells its listeners; progress is told but not kept."""

    def __init__(self, path: Path, listeners: tuple[Listener, ...] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_mid_line(path)
        # A file name that is not Unicode becomes an escape, which JSON reads back.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        if torn:
            self._file.write("\n")  # what a kill cut short must not swallow the next event
        self._listeners = listeners

    def tell(self, event: str, **values: Any) -> None:
        """Record one event."""
        entry: Event = {"time": round(time.time(), 3), "event": event, **values}
        if event != "progress":
            self._file.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
            self._file.flush()
        for listener in self._listeners:
            listener(entry)

    def close(self) -> None:
        """Stop recording."""
        self._file.close()


class StepObserver:
    """What a stage sees of the journal: an Observer bound to one step."""

    def __init__(self, journal: Journal, step: str) -> None:
        self._journal = journal
        self._step = step

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Told to the console."""
        self._journal.tell("progress", step=self._step, done=done, total=total, note=note)

    def fact(self, text: str, **values: Any) -> None:
        """Kept."""
        self._journal.tell("fact", step=self._step, text=text, **values)

    def warn(self, text: str) -> None:
        """Kept, and shown to the user."""
        self._journal.tell("warning", step=self._step, text=text)


def read(path: Path) -> Iterator[Event]:
    """All events of a journal; lines cut short by a kill are left out."""
    with path.open("rb") as file:
        for line in file:
            event = _event(line)
            if event is not None:
                yield event


def _event(line: bytes) -> Event | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _ends_mid_line(path: Path) -> bool:
    written = path.read_bytes() if path.exists() else b""
    return written[-1:] not in (b"", b"\n")
