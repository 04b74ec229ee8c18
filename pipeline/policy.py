"""A policy: the rules of a gate in a file of their own, to judge a finished run by.

The file has a list of rules under `gate:`, or is that list. A config is one, too: whatever else it
says has been done already.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdpipe.pipeline import nodes
from kdpipe.pipeline.diagnose import problem_at, validate
from kdpipe.pipeline.document import Document
from kdpipe.pipeline.place import Problem, shown
from kdpipe.pipeline.wording import choose
from kdpipe.stages import STAGES, Rule
from kdpipe.stages.gate.rules import SCORE, SCORES


@dataclass(frozen=True)
class Policy:
    """Rules with the document that they stand in; `path` is as the user typed it."""

    rules: tuple[Rule, ...]
    document: Document

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read and check a policy file.

        Raises UsageError when there is no such file, ConfigError with every problem and its place
        when it is no policy.
        """
        document = _document(path)
        return cls(validate(_Policy, document).gate, document)

    @property
    def path(self) -> Path:
        """Where it was read from."""
        return self.document.path

    def check(self, names: Collection[str], metric: str | None) -> None:
        """Refuse rules that can say nothing about a run.

        `names`: its artifacts and targets. `metric`: its headline metric, None where it got none.
        Raises ConfigError with the place of each.
        """
        problems = [*self._unknown(names), *self._foreign(metric)]
        if problems:
            raise self.document.refuse(problems)

    def _unknown(self, names: Collection[str]) -> Iterator[Problem]:
        for index, rule in enumerate(self.rules):
            if rule.target is not None and rule.target not in names:
                notes, _ = choose(rule.target, list(names), listed=True)
                what = f"{shown(rule.target)} is no artifact or target of this run"
                yield problem_at(self.document, ("gate", index, "target"), what, *notes)

    def _foreign(self, metric: str | None) -> Iterator[Problem]:
        for index, rule in enumerate(self.rules):
            if metric and rule.metric in SCORES and rule.metric not in (SCORE, metric):
                what = f"{shown(rule.metric)} is not the metric of this run"
                note = f"help: write metric: {metric}, or metric: {SCORE} for any run"
                yield problem_at(self.document, ("gate", index, "metric"), what, note)


def _some(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    if not rules:
        raise ValueError("a policy without rules would pass anything")
    return rules


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Annotated[tuple[Rule, ...], AfterValidator(_some)] = Field(
        description="rules that the artifacts must prove"
    )


def _document(path: Path) -> Document:
    """The file as a mapping with `gate`, and nothing else that a config may have."""
    if path.is_file() and (bare := _list_of_rules(path)):
        return bare
    document = Document.read(path)
    other = _config_keys() - {"gate"}
    return replace(document, data={k: v for k, v in document.data.items() if k not in other})


def _list_of_rules(path: Path) -> Document | None:
    """A file that is nothing but the list, as if `gate:` stood above it; None for any other."""
    try:
        text = path.read_text("utf-8")
        reading = nodes.read(text)
    except (UnicodeDecodeError, nodes.Refused):
        return None  # Document.read says what is wrong
    if not isinstance(reading.value, list):
        return None
    below = {("gate", *address): place for address, place in reading.places.items()}
    data: dict[Any, Any] = {"gate": reading.value}
    return Document(path, data, text, {(): reading.places[()], **below})


@functools.cache
def _config_keys() -> frozenset[str]:
    return frozenset({"version", "task", "targets", "gate", *(stage.name for stage in STAGES)})
