"""The config of a run: one pydantic model made of what stages, tasks and targets declare.

There is no second schema: a stage's fields are the YAML under its name. Leaving a stage's key out
means its defaults, `null` means skip it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from kdpipe.pipeline.chain import Step, steps
from kdpipe.pipeline.diagnose import problem_at, validate
from kdpipe.pipeline.document import Document
from kdpipe.pipeline.place import Problem, shown
from kdpipe.pipeline.wording import choose
from kdpipe.stages import DEFAULT_RULES, STAGES, TASKS, Rule, Stage, Task
from kdpipe.stages.choice import choice
from kdpipe.stages.gate.rules import SCORE, SCORES
from kdpipe.targets import Target, targets
from kdpipe.targets.base import Precision

VERSION = 1


@dataclass(frozen=True)
class Config:
    """A valid config, ready to be planned; `text` is the file's, before `assignments` (`--set`)."""

    path: Path
    text: str
    task: Task
    stages: tuple[Stage, ...]
    targets: tuple[Target, ...]
    rules: tuple[Rule, ...]
    assignments: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, assignments: Sequence[str] = ()) -> Config:
        """Read and check a YAML file, with `--set` assignments applied.

        Raises ConfigError with every problem and its place, or UsageError for a missing file.
        """
        document = Document.read(path).override(assignments)
        values = validate(schema(), document)
        given = dict(values)
        present = (given[stage.name] for stage in STAGES)
        chain = tuple(stage for stage in present if stage is not None and not stage.skipped)
        wanted, rules = _resolve(given["targets"], chain), given["gate"] or ()
        problems = [
            *_target_problems(document, wanted, chain),
            *_rule_problems(document, rules, wanted),
            *_metric_problems(document, rules, given["task"]),
        ]
        if problems:
            raise document.refuse(problems)
        return cls(path, document.text, given["task"], chain, wanted, rules, tuple(assignments))

    def steps(self) -> list[Step]:
        """The chain of this config, in running order."""
        return steps(self.stages, {"task": self.task}, self.targets)

    def check(self) -> None:
        """Let every stage look at the files it was given and at its neighbours; quick, before
        anything runs."""
        chain = {stage.name: stage for stage in self.stages}
        for stage in self.stages:
            stage.check()
            stage.check_task(self.task)
            stage.check_chain(chain)


@functools.cache
def schema() -> type[BaseModel]:
    """The pydantic model of the whole YAML file."""
    fields: dict[str, Any] = {
        "version": (Literal[1], Field(VERSION, description="of this file's format")),
        "task": (
            choice(TASKS, "kind"),
            Field(TASKS[0].model_validate({}), description="what the labels are, and the metric"),
        ),
    }
    for stage in STAGES:
        needed = any(field.is_required() for field in stage.model_fields.values())
        default = ... if needed else stage()
        kind = stage if needed else stage | None
        fields[stage.name] = (kind, Field(default, description=summary(stage)))
    fields["targets"] = (
        Annotated[tuple[choice(targets(), "name"), ...], AfterValidator(_some)],  # type: ignore[misc]  # made at run time
        Field(..., description="what the student is compiled for and measured on"),
    )
    fields["gate"] = (
        tuple[Rule, ...] | None,
        Field(
            DEFAULT_RULES,
            description="rules that the artifacts must prove; by default at most a point lost of "
            "score and agreement, int8 faster than fp32, and half of the work in int8; null: none",
        ),
    )
    return create_model(
        "Config", __config__=ConfigDict(frozen=True, extra="forbid", title="kdpipe"), **fields
    )


def _some(wanted: tuple[Target, ...]) -> tuple[Target, ...]:
    """`min_length` would also complain about a list whose only entry is wrong."""
    if not wanted:
        raise ValueError("name at least one target")
    return wanted


def summary(thing: type) -> str:
    """The first line of a class's docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def _resolve(wanted: Sequence[Target], stages: Sequence[Stage]) -> tuple[Target, ...]:
    """Give each target its precision: that of the chain, unless it names another."""
    chain = _gained(stages) or "fp32"
    return tuple(
        target.model_copy(update={"precision": target.precision or chain}) for target in wanted
    )


def _gained(stages: Sequence[Stage]) -> Precision | None:
    """The precision beside fp32 that the chain makes, if any."""
    return next((precision for stage in stages if (precision := stage.precision())), None)


def _target_problems(
    document: Document, targets: Sequence[Target], stages: Sequence[Stage]
) -> Iterator[Problem]:
    """Targets that are listed twice, and those of a precision that the chain does not make."""
    ids = [target.id for target in targets]
    for index, target in enumerate(targets):
        first = ids.index(target.id)
        if first < index:
            what = f"{target.id} is listed twice"
            note = f"note: it is targets[{first}] too"
            yield problem_at(
                document, ("targets", index), what, note, "help: remove one of the two"
            )
        elif target.source not in ("fp32", _gained(stages)):
            what = f"this chain does not make {target.precision}"
            note = "help: set quantize.mode to ptq or qat, or precision: fp32 for this target"
            yield problem_at(document, ("targets", index, "precision"), what, note)


def _rule_problems(
    document: Document, rules: Sequence[Rule], targets: Sequence[Target]
) -> Iterator[Problem]:
    """Rules about targets that the config does not have: they could never hold."""
    known = list(dict.fromkeys([*(t.id for t in targets), *(t.name for t in targets)]))
    for index, rule in enumerate(rules):
        if rule.target is not None and rule.target not in known:
            notes, _ = choose(rule.target, known, listed=True)
            what = f"{shown(rule.target)} is none of the targets"
            yield problem_at(document, ("gate", index, "target"), what, *notes)


def _metric_problems(document: Document, rules: Sequence[Rule], task: Task) -> Iterator[Problem]:
    """Rules about the metric of another task: nothing in this run would measure it."""
    for index, rule in enumerate(rules):
        if rule.metric in SCORES and rule.metric not in (SCORE, task.metric):
            what = f"{shown(rule.metric)} is not a metric of the task {task.kind}"
            note = f"help: write metric: {task.metric}, or metric: {SCORE} for any task"
            yield problem_at(document, ("gate", index, "metric"), what, note)
