"""PyYAML's complaints about a file in plain words; `nodes.py` reads the files that are sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import yaml

from kdpipe.pipeline.place import REST_OF_LINE, Problem, Span, count, lines_of

_Wording = Callable[[yaml.MarkedYAMLError, Sequence[str]], Problem]


def span_of(start: yaml.Mark, end: yaml.Mark | None = None) -> Span:
    """PyYAML's marks as a span: one character without `end`, the first line of several."""
    if end is None:
        return Span(start.line + 1, start.column + 1, 1)
    width = end.column - start.column if end.line == start.line else REST_OF_LINE
    return Span(start.line + 1, start.column + 1, width)


def unprintable(error: yaml.reader.ReaderError, text: str) -> Problem:
    """Words for a character that YAML does not allow."""
    before = lines_of(text[: error.position])
    return Problem(
        f"the character U+{ord(text[error.position]):04X} is not allowed in YAML",
        Span(len(before), len(before[-1]) + 1, 1),
        ("help: remove it; it is invisible in most editors",),
    )


def explain(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    """Words for a syntax error; `lines` is the whole text."""
    here = _here(error)
    if here and "\t" in _indent(lines, here.line):
        return _tab(here, lines)
    for pattern, wording in _WORDINGS:
        if re.search(pattern, error.problem or ""):
            return wording(error, lines)
    return Problem(f"this is not valid YAML: {error.problem or error.context}", _here(error))


def _here(error: yaml.MarkedYAMLError) -> Span | None:
    """Where PyYAML gave up."""
    mark = error.problem_mark or error.context_mark
    return span_of(mark) if mark else None


def _start(error: yaml.MarkedYAMLError) -> Span | None:
    """Where the thing began that PyYAML could not finish."""
    mark = error.context_mark or error.problem_mark
    return span_of(mark) if mark else None


def _indent(lines: Sequence[str], number: int) -> str:
    """The blanks at the start of line `number` (from 1); none behind the last line."""
    line = lines[number - 1] if number <= len(lines) else ""
    return line[: len(line) - len(line.lstrip())]


def _above(lines: Sequence[str], number: int) -> int | None:
    """The number of the last line before line `number` that is neither empty nor a comment."""
    written = (n for n in range(number - 1, 0, -1) if lines[n - 1].strip())
    return next((n for n in written if not lines[n - 1].lstrip().startswith("#")), None)


def _indentation_note(lines: Sequence[str], number: int) -> tuple[str, ...]:
    """Compares the indentation of line `number` with the line above; empty when it is equal."""
    above = _above(lines, number)
    if above is None or _indent(lines, above) == _indent(lines, number):
        return ()
    own, other = (len(_indent(lines, n)) for n in (number, above))
    return (
        f"note: this line is indented by {count(own, 'space')}, the line above it by {other}",
        "help: lines of one mapping or list start in the same column",
    )


def _tab(here: Span, lines: Sequence[str]) -> Problem:
    column = _indent(lines, here.line).index("\t") + 1
    notes = ("help: YAML indents with spaces; put spaces in place of the tab",)
    return Problem("this line is indented with a tab", Span(here.line, column, 1), notes)


def _indentation(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    here = _here(error)
    notes = _indentation_note(lines, here.line) if here else ()
    either = ("help: a list item `- ...` and a `key: value` cannot follow each other here",)
    return Problem("this line does not fit the lines before it", here, notes or either)


def _colon(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    here = _here(error)
    notes: tuple[str, ...] = ("help: put text that contains `: ` in quotes",)
    if here and ":" not in lines[here.line - 1][: here.column - 1]:
        above = _above(lines, here.line) or here.line
        glued = re.match(r"\s*(- +)?[\w-]+:[^\s:]", lines[above - 1])
        spaced = (f"help: put a space after the colon of line {above}",)
        unfit = _indentation_note(lines, here.line)
        notes = spaced if glued else unfit or (f"help: line {above} needs `: ` after its key",)
    return Problem("a `:` is not expected here", here, notes)


def _no_colon(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    return Problem(
        "this line is not `key: value`", _start(error), ("help: put `: ` after the key",)
    )


def _unclosed_bracket(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    opened, closing = ("{", "}") if "mapping" in (error.context or "") else ("[", "]")
    here = _here(error)
    where = f"; this was noticed in line {here.line}" if here else ""
    notes = (f"help: close it with `{closing}`, and put `,` between its entries{where}",)
    return Problem(f"the `{opened}` opened here is not closed", _start(error), notes)


def _unclosed_quote(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    return Problem(
        "the quote opened here is not closed",
        _start(error),
        ("help: end the text with the same quote",),
    )


def _alias(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    name = str(error.problem).split("'")[1]
    here = _here(error)
    span = here._replace(width=len(name) + 1) if here else None
    notes = (f"help: mark the value to repeat with `&{name}`, before this line",)
    return Problem(f"the alias `*{name}` has no anchor", span, notes)


def _anchor(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    name = str(error.context).split("'")[1]
    here, first = _here(error), _start(error)
    notes = (f"note: it is already given in line {first.line}",) if first else ()
    return Problem(f"the anchor `&{name}` is given twice", here, notes)


def _character(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    notes = ("help: put the text in quotes",)
    return Problem("a plain text cannot start with this character", _here(error), notes)


def _documents(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    here = _here(error)
    return Problem(
        "a second document starts here",
        here._replace(width=3) if here else None,
        ("help: keep one config per file; remove this `---` or move what follows to its own file",),
    )


def _list_entry(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    notes = ("help: put `- ` on a line of its own, or write the list as `[a, b]`",)
    return Problem("a list item is not expected here", _here(error), notes)


def _content(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    notes = ("help: put text that starts with such a character in quotes",)
    return Problem("a value is expected here", _here(error), notes)


def _escape(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> Problem:
    notes = ("help: write `\\\\` for a backslash, or use single quotes",)
    return Problem("this backslash means nothing in double quotes", _here(error), notes)


_WORDINGS: tuple[tuple[str, _Wording], ...] = (
    (r"expected <block end>", _indentation),
    (r"mapping values are not allowed", _colon),
    (r"could not find expected ':'", _no_colon),
    (r"expected ',' or", _unclosed_bracket),
    (r"found unexpected (end of stream|document separator)", _unclosed_quote),
    (r"undefined alias", _alias),
    (r"second occurrence", _anchor),
    (r"cannot start any token", _character),
    (r"found another document", _documents),
    (r"sequence entries are not allowed", _list_entry),
    (r"expected the node content", _content),
    (r"unknown escape character", _escape),
)
