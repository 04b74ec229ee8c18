"""The config of a run: one pydantic model made of what stages, tasks and targets declare.

There is no second schema: a stage's fields are the YAML under its name. Leaving a stage's key out
means its defaults, `null` means skip it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from kdpipe.pipeline.chain import Step, steps
from kdpipe.pipeline.diagnose import validate
from kdpipe.pipeline.document import Document
from kdpipe.stages import STAGES, TASKS, Rule, Stage, Task
from kdpipe.stages.choice import choice
from kdpipe.targets import Target, targets
from kdpipe.targets.errors import ConfigError

VERSION = 1


@dataclass(frozen=True)
class Config:
    """A valid config, ready to be planned."""

    path: Path
    text: str
    task: Task
    stages: tuple[Stage, ...]
    targets: tuple[Target, ...]
    rules: tuple[Rule, ...]

    @classmethod
    def read(cls, path: Path, assignments: Sequence[str] = ()) -> Config:
        """Read and check a YAML file, with `--set` assignments applied.

        Raises ConfigError with every problem and its place, or UsageError for a missing file.
        """
        document = Document.read(path).override(assignments)
        values = validate(schema(), document)
        present = (getattr(values, stage.name) for stage in STAGES)
        chain = tuple(stage for stage in present if stage is not None and not stage.skipped)
        wanted = _resolve(getattr(values, "targets"), chain)  # noqa: B009 (made at run time)
        rules = getattr(values, "gate") or ()  # noqa: B009
        return cls(path, document.text, getattr(values, "task"), chain, wanted, rules)  # noqa: B009

    def steps(self) -> list[Step]:
        """The chain of this config, in running order."""
        return steps(self.stages, {"task": self.task}, self.targets)

    def check(self) -> None:
        """Let every stage look at the files it was given; quick, before anything runs."""
        for stage in self.stages:
            stage.check()


@functools.cache
def schema() -> type[BaseModel]:
    """The pydantic model of the whole YAML file."""
    fields: dict[str, Any] = {
        "version": (Literal[1], Field(VERSION, description="of this file's format")),
        "task": (choice(TASKS, "kind"), TASKS[0].model_validate({})),
    }
    for stage in STAGES:
        needed = any(field.is_required() for field in stage.model_fields.values())
        default = ... if needed else stage()
        kind = stage if needed else stage | None
        fields[stage.name] = (kind, Field(default, description=summary(stage)))
    fields["targets"] = (
        tuple[choice(targets(), "name"), ...],  # type: ignore[misc]  # made at run time
        Field(..., min_length=1, description="what the student is compiled for and measured on"),
    )
    fields["gate"] = (
        tuple[Rule, ...] | None,
        Field(
            None, description="rules that the artifacts must prove; by default the built-in ones"
        ),
    )
    return create_model(
        "Config", __config__=ConfigDict(frozen=True, extra="forbid", title="kdpipe"), **fields
    )


def summary(thing: type) -> str:
    """The first line of a class's docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def _resolve(wanted: Sequence[Target], stages: Sequence[Stage]) -> tuple[Target, ...]:
    """Give each target its precision: int8 where a stage quantizes, unless it names another."""
    gained = next((p for stage in stages if (p := stage.precision())), None)
    resolved = [
        target.model_copy(update={"precision": target.precision or gained or "fp32"})
        for target in wanted
    ]
    ids = [target.id for target in resolved]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ConfigError(f"targets: {twice[0]} is listed twice", fix="remove one of the two")
    for target in resolved:
        if target.precision not in ("fp32", gained):
            raise ConfigError(
                f"targets: {target.id} asks for {target.precision}, which this chain does not make",
                fix="set quantize.mode, or precision: fp32 for this target",
            )
    return tuple(resolved)
