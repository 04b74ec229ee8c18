"""Where a value was written, and the text block that shows it; knows no YAML and no model."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Address = tuple[str | int, ...]
"""The way to a value, e.g. `("targets", 0, "precision")`."""

LINE_LIMIT = 100
"""Longer lines of the file are cut to a window of so many characters around the caret."""
VALUE_LIMIT = 60
"""Longer values are cut when they stand in a message."""
REST_OF_LINE = sys.maxsize
"""The width of a span that starts a value of several lines."""
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what PyYAML counts as the end of a line


class Span(NamedTuple):
    """Part of one line; `line` and `column` count from 1, `column` and `width` in characters."""

    line: int
    column: int
    width: int


@dataclass(frozen=True)
class Place:
    """Where a value and its key stand: in the file, or in one `--set` `assignment`.

    `key` is None for list items and for the whole document. `alias` is the `*name` through which
    the value, written at its anchor, came here.
    """

    value: Span | None = None
    key: Span | None = None
    alias: Span | None = None
    assignment: str | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what`, under which part of the file, and `notes` on mending it.

    With neither `span` nor `assignment` it is the file as a whole. Notes are whole lines such as
    `help: did you mean `precision`?`.
    """

    what: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    assignment: str | None = None

    @property
    def order(self) -> tuple[float, float]:
        """Sorts problems by line and column; those of `--set` come last."""
        if self.assignment is not None:
            return (math.inf, 0)
        return (self.span.line, self.span.column) if self.span else (0, 0)

    def block(self, file: str, lines: Sequence[str]) -> str:
        """The problem as people read it; `lines` is the whole file.

        Raises nothing: a span behind the last line is shown with an empty line.
        """
        line, column, _ = self.span or (1, 1, 0)
        where = f"{file}:{line}:{column}"
        if self.assignment is not None:
            where = f"--set {printable(cut(self.assignment))}"
        drawing = _drawing(self.span, lines) if self.span and self.assignment is None else []
        notes = [f"   = {note}" for note in self.notes]
        return "\n".join([f"error: {self.what}", f"  --> {where}", *drawing, *notes])


def dotted(address: Address) -> str:
    """An address as it is typed after --set.

    Example: ("targets", 0, "precision") -> "targets[0].precision"
    """
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in address)
    return printable(text.removeprefix("."))


def shown(value: Any) -> str:
    """A value as it stands in a message: text in quotes, cut at 60 characters, YAML's words.

    Example: "abc" -> "'abc'", True -> "true", None -> "null", [1, 2] -> "a list"
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    return repr(cut(value)) if isinstance(value, str) else cut(str(value))


def cut(text: str) -> str:
    """The text, or its first 57 characters and three dots."""
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 3] + "..."


def printable(text: str) -> str:
    """The text with a blank for a tab and a question mark for what could steer a terminal."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in text)


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a text, numbered as PyYAML numbers them."""
    return tuple(_BREAK.split(text))


def count(number: int, noun: str) -> str:
    """Example: count(1, "error") -> "1 error", count(2, "error") -> "2 errors"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _drawing(span: Span, lines: Sequence[str]) -> list[str]:
    """The line of the span between two rulers, with carets under the span."""
    line = lines[span.line - 1] if span.line <= len(lines) else ""
    before, marked, after = _window(printable(line), span.column - 1, span.width)
    gutter = max(3, len(str(span.line)))
    carets = " " * _cells(before) + "^" * max(1, _cells(marked.rstrip()))
    return [
        f"{'':{gutter}}|",
        f"{span.line:>{gutter}}| {before}{marked}{after}".rstrip(),
        f"{'':{gutter}}| {carets}",
    ]


def _window(line: str, start: int, width: int) -> tuple[str, str, str]:
    """The line in three parts, the middle one marked, cut on both sides when it is too long."""
    if len(line) <= LINE_LIMIT:
        return line[:start], line[start : start + width], line[start + width :]
    width = min(width, LINE_LIMIT // 2)
    left = max(0, min(start - (LINE_LIMIT - width) // 2, len(line) - LINE_LIMIT))
    right = left + LINE_LIMIT
    before = ("..." if left else "") + line[left:start]
    after = line[start + width : right] + ("..." if right < len(line) else "")
    return before, line[start : start + width], after


def _cells(text: str) -> int:
    """How many columns of a terminal the text takes: 2 for wide letters, 0 for combining ones."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
