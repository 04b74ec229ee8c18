"""How a run shows itself while it goes: a live bar on a terminal, plain lines elsewhere.

Everything here goes to stderr; results go to stdout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal, TextIO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kdpipe.pipeline.journal import Event

HEARTBEAT_SECONDS = 60.0
Style = Literal["auto", "bar", "lines", "none"]

_WORDS = {
    "reused": "stored",
    "started": "run",
    "finished": "done",
    "blocked": "skip",
    "failed": "FAIL",
    "warning": "warn",
    "damaged": "DAMAGED",
    "waiting": "wait",
    "interrupted": "STOP",
}


def listener(stream: TextIO, style: Style = "auto") -> Callable[[Event], None]:
    """The listener that fits where `stream` goes: CI and pipes get lines, a terminal a bar."""
    if style == "none":
        return _ignore
    wanted = style == "bar" or (style == "auto" and not os.environ.get("CI"))
    if wanted and stream.isatty():
        return Live(stream)
    return Lines(stream)


def _ignore(event: Event) -> None:
    """Says nothing."""


class Lines:
    """One line per event, without cursor codes; a heartbeat where a step is silent for a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print `event` if a reader of a log wants it."""
        if event["event"] == "progress":
            if time.monotonic() - self._last < HEARTBEAT_SECONDS:
                return
            self._print("...", event["step"], _progress_text(event))
        elif text := describe(event):
            self._print(_WORDS[event["event"]], event["step"], text)

    def _print(self, word: str, step: str, text: str) -> None:
        print(f"  {word:<7} {step:<26} {text}".rstrip(), file=self._stream, flush=True)
        self._last = time.monotonic()


class Live:
    """The same lines, above a bar for the step that is running now."""

    def __init__(self, stream: TextIO) -> None:
        # Said outright, or FORCE_COLOR would send cursor codes into a pipe.
        self._console = RichConsole(
            file=stream, highlight=False, force_terminal=stream.isatty(), force_jupyter=False
        )
        self._bar = Progress(
            TextColumn("  run     {task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )

    def __call__(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        kind = event["event"]
        if kind == "started":
            self._bar.start()
            self._bar.add_task(escape(event["step"]), total=None, note="")
        elif kind == "progress" and self._bar.tasks:
            task = self._bar.tasks[-1].id
            note = escape(event["note"])
            self._bar.update(task, completed=event["done"], total=event["total"], note=note)
        elif text := describe(event):
            if kind in ("finished", "failed", "interrupted"):
                self._clear()
            self._line(_WORDS[kind], event["step"], text)

    def _clear(self) -> None:
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.stop()

    def _line(self, word: str, step: str, text: str) -> None:
        colour = {"done": "green", "FAIL": "bold red", "DAMAGED": "bold red", "warn": "yellow"}
        shown = f"  [{colour.get(word, 'dim')}]{word:<7}[/] {escape(f'{step:<26}')} {escape(text)}"
        self._console.print(shown, soft_wrap=True)


def describe(event: Event) -> str | None:
    """What a line says after the step's name, or None when the event is not for people."""
    kind = event["event"]
    if kind == "finished":
        return duration(event["seconds"])
    texts: dict[str, Callable[[], str]] = {
        "reused": lambda: "",
        "started": lambda: f"({event['why']})",
        "blocked": lambda: event["why"],
        "failed": lambda: str(event["error"]).splitlines()[0],
        "warning": lambda: event["text"],
        "damaged": lambda: f"{event['damage']}; kept in {event['kept']}, made again",
        "waiting": lambda: "another run is making it",
        "interrupted": lambda: "what is finished is kept; run again to resume",
    }
    text = texts.get(kind)
    return text() or " " if text else None


def _progress_text(event: Event) -> str:
    return f"{event['done']}/{event['total']} {event['note']}".rstrip()


def duration(seconds: float) -> str:
    """Seconds for people. Example: 0.31 -> 0.3 s, 75 -> 1 m 15 s, 3661 -> 1 h 01 m"""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"
