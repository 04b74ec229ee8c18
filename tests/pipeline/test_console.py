"""The console: plain lines in a pipe whatever the environment says, user text printed whole."""

from __future__ import annotations

import contextlib
import io
import os
import pty
from collections.abc import Callable
from typing import Any, TextIO

import pytest

from kdpipe.pipeline.console import Lines, Live, describe, duration, listener
from kdpipe.pipeline.journal import Event

STEP = "compile[openvino-int8]"
EVENTS: list[Event] = [
    {"event": "run", "config": "k.yaml"},
    {"event": "reused", "step": "data", "key": "data-1"},
    {"event": "started", "step": STEP, "why": "`targets[0].threads` 1 -> 2", "key": "x"},
    {"event": "progress", "step": STEP, "done": 1, "total": 3, "note": "fold [1]"},
    {"event": "warning", "step": STEP, "text": "image [bold]a[/bold].png has [/] no label"},
    {"event": "fact", "step": STEP, "text": "score", "value": 1},
    {"event": "finished", "step": STEP, "seconds": 75.2},
    {"event": "failed", "step": "benchmark[x]", "error": "no [luck]\n  found: x", "traceback": ""},
    {"event": "damaged", "step": "data", "damage": "changed: [a].npy", "kept": "d/1"},
    {"event": "waiting", "step": "data"},
    {"event": "interrupted", "step": "data"},
    {"event": "ended", "line": "FAILED | x", "exit_code": 1, "seconds": 3},
]
LINES = [
    "  stored  data",
    "  run     compile[openvino-int8]     (`targets[0].threads` 1 -> 2)",
    "  warn    compile[openvino-int8]     image [bold]a[/bold].png has [/] no label",
    "  done    compile[openvino-int8]     1 m 15 s",
    "  FAIL    benchmark[x]               no [luck]",
    "  DAMAGED data                       changed: [a].npy; kept in d/1, made again",
    "  wait    data                       another run is making it",
    "  STOP    data                       what is finished is kept; run again to resume",
]


def shown(make: Callable[[TextIO], Callable[[Event], None]]) -> str:
    """What a listener writes into a pipe for all EVENTS."""
    stream = io.StringIO()
    listen = make(stream)
    for event in EVENTS:
        listen(event)
    return stream.getvalue()


def drain(master: int) -> str:
    """All that was written to a terminal whose other end is closed by now."""
    chunks = []
    with contextlib.suppress(OSError):  # how Linux says that there is no more
        while chunk := os.read(master, 4096):
            chunks.append(chunk)
    os.close(master)
    return b"".join(chunks).decode()


@pytest.fixture(params=[False, True], ids=["plain", "FORCE_COLOR"])
def _colour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a user who forces colours."""
    monkeypatch.delenv("CI", raising=False)
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")


@pytest.mark.usefixtures("_colour")
def test_lines_in_a_pipe() -> None:
    """A pipe gets one plain line per event, with everything the user wrote in it."""
    assert shown(listener).splitlines() == LINES


@pytest.mark.usefixtures("_colour")
@pytest.mark.parametrize("make", [Lines, Live])
def test_no_cursor_codes_in_a_pipe(make: Any) -> None:
    """Neither carriage returns nor escape codes, though colours be forced."""
    text = shown(make)

    assert "\r" not in text
    assert "\x1b" not in text
    assert "image [bold]a[/bold].png has [/] no label" in text


@pytest.mark.parametrize("style", ["auto", "bar"])
def test_a_bar_needs_a_terminal(style: Any) -> None:
    """Where no bar can be drawn, there are lines."""
    assert isinstance(listener(io.StringIO(), style), Lines)


def test_none_says_nothing() -> None:
    """`--progress none` is silent."""
    assert shown(lambda stream: listener(stream, "none")) == ""


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a bar, unless it is that of a CI system or lines are wanted."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.delenv("CI", raising=False)
        assert isinstance(listener(terminal), Live)
        assert isinstance(listener(terminal, "lines"), Lines)
        monkeypatch.setenv("CI", "true")
        assert isinstance(listener(terminal), Lines)
        assert isinstance(listener(terminal, "bar"), Live)
    os.close(master)


def test_live_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar names step and note whole, brackets included, and lines stand above it."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        listen = Live(terminal)
        for event in EVENTS[:7]:
            listen(event)
    text = drain(master)

    assert "compile[openvino-int8]" in text
    assert "image [bold]a[/bold].png has [/] no label" in text
    assert "1 m 15 s" in text


def test_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is a line only after a minute of silence."""
    stream = io.StringIO()
    lines = Lines(stream)
    progress = {"event": "progress", "step": "teacher", "done": 3, "total": 9, "note": "epoch 3"}
    lines(progress)
    assert stream.getvalue() == ""

    monkeypatch.setattr("kdpipe.pipeline.console.HEARTBEAT_SECONDS", 0.0)
    lines(progress)
    assert stream.getvalue() == "  ...     teacher                    3/9 epoch 3\n"


def test_events_that_are_not_for_people() -> None:
    """Facts and the frame of a run are journaled and not shown."""
    assert [describe(e) for e in EVENTS if e["event"] in ("run", "fact", "ended")] == [None] * 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.31, "0.3 s"),
        (59.94, "59.9 s"),
        (59.97, "1 m 00 s"),
        (75, "1 m 15 s"),
        (3599.7, "1 h 00 m"),
        (3661, "1 h 01 m"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """Seconds as people say them."""
    assert duration(seconds) == text
