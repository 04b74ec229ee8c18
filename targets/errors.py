"""Every error kdpipe raises on purpose, on the lowest floor so that all three may raise it.

KdpipeError                 exit 1
├── StageError              exit 1    a stage could not do its work
├── UsageError              exit 2    the command line asks for something that does not exist
│   ├── ConfigError         exit 2    the YAML is wrong; carries every problem with its place
│   └── DataError           exit 2    the user's data or model file is wrong
└── TargetUnavailable       exit 4    a required target cannot run on this machine

An error says what happened, what was there, and what to type next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class KdpipeError(Exception):
    """Base of the family: `what` happened, what was `found`, and the `fix` to type next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, found: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.found:
            lines.append(f"  found: {self.found}")
        if self.fix:
            lines.append(f"  try:   {self.fix}")
        return "\n".join(lines)


class StageError(KdpipeError):
    """A stage could not do its work; what earlier stages computed is kept."""


class UsageError(KdpipeError):
    """The command line asks for something that does not exist or does not fit."""

    exit_code = 2


class DataError(UsageError):
    """The user's data, labels or model file cannot be used; names every bad file."""


class ConfigError(UsageError):
    """The configuration is wrong; `problems` are ready to print, one block each."""

    def __init__(self, what: str, problems: Sequence[str] = (), *, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n\n".join([*self.problems, super().__str__()])


class TargetUnavailable(KdpipeError):
    """A target that the config requires cannot run on this machine."""

    exit_code = 4


def listing(items: Sequence[str], limit: int = 10) -> str:
    """The first `limit` items, comma separated, and how many more there are.

    Example: listing(["a", "b", "c"], 2) -> "a, b and 1 more"
    """
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
