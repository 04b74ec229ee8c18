"""Which line of the config, or of the policy, a rule stands in, for formats that point at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.pipeline import nodes
from kdpipe.pipeline.ci.findings import Results, limit_of


@dataclass(frozen=True)
class Source:
    """The file that the rules were read from, as its repository names it.

    `name`: the file's name. `path`: relative to the repository with forward slashes, None where the
    file lies outside of it. `rules`: those of the file, each with its line.
    """

    name: str
    path: str | None = None
    rules: tuple[tuple[Mapping[str, Any], int], ...] = ()

    @classmethod
    def of(cls, results: Results, root: Path) -> Source:
        """The config of a run, or the policy that it was judged by later, seen from `root`.

        Without lines where the file can no longer be read.
        """
        policy = results["gate"].get("source", "config")
        file = Path(results["run"]["config"] if policy == "config" else policy)
        found, root = file.parent.resolve() / file.name, root.resolve()
        path = found.relative_to(root).as_posix() if found.is_relative_to(root) else None
        return cls(file.name, path, _rules(file))

    def line(self, rule: Mapping[str, Any]) -> int | None:
        """The line of the rule in the file that says all that the file's rule says, or nothing.

        A rule that came from `--set`, from the defaults or from another file has none. So has one
        that was changed since.
        """
        fitting = [(len(written), line) for written, line in self.rules if _fits(written, rule)]
        return max(fitting, key=lambda found: (found[0], -found[1]))[1] if fitting else None


def _rules(file: Path) -> tuple[tuple[Mapping[str, Any], int], ...]:
    """The rules under `gate`, or in a bare list, with their lines."""
    try:
        reading = nodes.read(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, nodes.Refused):
        return ()
    value = reading.value
    rules = value.get("gate") if isinstance(value, dict) else value
    above = ("gate",) if isinstance(value, dict) else ()
    if not isinstance(rules, list):
        return ()
    spans = [reading.places[(*above, index)].value for index in range(len(rules))]
    return tuple(
        (rule, span.line)
        for rule, span in zip(rules, spans, strict=True)
        if isinstance(rule, dict) and span
    )


def _fits(written: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether one limit of the rule in the file was judged as `rule`, which may have more limits
    in the file and defaults beside."""
    limits = limit_of(rule)
    others = {name: value for name, value in written.items() if name not in limit_of(written)}
    return all(name in written and written[name] == limits[name] for name in limits) and all(
        rule.get(name) == value for name, value in others.items()
    )
