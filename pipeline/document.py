"""A config file as read: its data and where each part was written; `diagnose.py` judges it.

`Document.read` takes the file, `override` applies `--set a.b=c` to it. Neither knows any setting.
"""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdpipe.pipeline import nodes
from kdpipe.pipeline.assignment import assign
from kdpipe.pipeline.place import (
    REST_OF_LINE,
    Address,
    Place,
    Problem,
    Span,
    count,
    lines_of,
    shown,
)
from kdpipe.targets.errors import ConfigError, UsageError, listing


@dataclass(frozen=True)
class Document:
    """A YAML mapping with places. `path` is as the user typed it; `text` is what the file says.

    `data` is what it means, with `--set` applied. `places` has every address of the
    file, and those that `--set` gave.
    """

    path: Path
    data: dict[Any, Any]
    text: str
    places: dict[Address, Place]

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a config file with PyYAML's safe loader.

        Raises UsageError when there is no such file, ConfigError with every problem when it is not
        one YAML mapping in UTF-8, when a key is repeated, and when aliases never end.
        """
        text = _text(path)
        lines = lines_of(text)
        try:
            reading = nodes.read(text)
        except nodes.Refused as error:
            raise _refusal(path, error.problems, lines) from error
        if not isinstance(reading.value, dict):
            raise _refusal(path, [_not_a_mapping(reading)], lines)
        return cls(path, reading.value, text, reading.places)

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines of the file."""
        return lines_of(self.text)

    def override(self, assignments: Sequence[str]) -> Document:
        """This document after `--set`: each assignment is `path=value`, the value is YAML.

        A path is `distill.epochs`, `targets[0].precision` or `targets.0.precision`. Mappings that
        are absent or null are made on the way; list items are not. Text in the value becomes
        `Typed`, so that paths in it are relative to the shell's folder.

        Raises UsageError showing what is there when a path leads nowhere.
        """
        document = self
        for assignment in assignments:
            document = document._assigned(assignment)
        return document

    def place(self, address: Address) -> Place:
        """Where `address` was written, or the nearest parent of it that was written at all."""
        while address not in self.places:
            address = address[:-1]
        return self.places[address]

    def written(self, span: Span | None) -> str | None:
        """The words of the file at `span`, e.g. `on` where the value is True.

        None where there is no span, or it has several lines.
        """
        if span is None or span.width == REST_OF_LINE:
            return None
        start = span.column - 1
        return self.lines[span.line - 1][start : start + span.width].strip()

    def refuse(self, problems: Sequence[Problem]) -> ConfigError:
        """The error that lists `problems` in the order of the file, those of --set last."""
        return _refusal(self.path, problems, self.lines)

    def _assigned(self, assignment: str) -> Document:
        data, address = assign(self.data, assignment)
        here = Place(assignment=assignment)
        places = {a: p for a, p in self.places.items() if a[: len(address)] != address}
        for end in range(1, len(address) + 1):
            places.setdefault(address[:end], here)
        return replace(self, data=data, places=places)


def _refusal(path: Path, problems: Sequence[Problem], lines: Sequence[str]) -> ConfigError:
    ordered = sorted(problems, key=lambda problem: problem.order)
    sources = []
    if any(problem.assignment is None for problem in ordered):
        sources.append(str(path))
    if any(problem.assignment is not None for problem in ordered):
        sources.append("--set")
    return ConfigError(
        f"{count(len(ordered), 'error')} in {' and '.join(sources)}; nothing was run.",
        [problem.block(str(path), lines) for problem in ordered],
    )


def _text(path: Path) -> str:
    """The file's text. Raises UsageError, or ConfigError when it is not UTF-8."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _absent(path) from error
    except IsADirectoryError as error:
        raise UsageError(
            f"{path} is a folder, not a config file",
            found=_configs(path),
            fix=f"name a file in it, e.g. {next(iter(_yaml_files(path)), path / 'kdpipe.yaml')}",
        ) from error
    except OSError as error:
        raise UsageError(
            f"the config file {path} cannot be read",
            found=error.strerror or type(error).__name__,
            fix=f"check its permissions: ls -l {path}",
        ) from error
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = lines_of(content[: error.start].decode())
        what = f"this is not UTF-8 text (byte 0x{content[error.start]:02x})"
        span = Span(len(before), len(before[-1]) + 1, 1)
        lines = lines_of(content.decode(errors="replace"))
        problem = Problem(what, span, ("help: save the file as UTF-8",))
        raise _refusal(path, [problem], lines) from error


def _absent(path: Path) -> UsageError:
    names = [p.name for p in _yaml_files(path.parent)]
    near = difflib.get_close_matches(path.name, names, 1) or names
    fix = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file"
    return UsageError(f"there is no config file {path}", found=_configs(path.parent), fix=fix)


def _configs(folder: Path) -> str:
    names = [p.name for p in _yaml_files(folder)]
    where = folder.absolute()
    if not folder.is_dir():
        return f"no folder {where}"
    return f"{listing(names)} in {where}" if names else f"no YAML file in {where}"


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.suffix in {".yaml", ".yml"})


def _not_a_mapping(reading: nodes.Reading) -> Problem:
    if reading.value is None:
        return Problem("the file is empty")
    what = f"the config is {shown(reading.value)}, not a mapping"
    return Problem(what, reading.places[()].value, ("help: write `key: value` lines",))
