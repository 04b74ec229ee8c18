"""The chain of one config: which steps there are, what each reads, and in which order they run.

It knows stages only through their `Inputs`: a field is named after the stage that it comes from.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from kdpipe.stages.base import Stage
from kdpipe.targets.base import Target
from kdpipe.targets.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """One stage of the chain, for one target where the stage runs per target.

    `reads` maps input names to step ids; an input whose stage is skipped is absent. `settings`
    maps input names to values of the config (`task`, `target`).
    """

    id: str
    stage: Stage
    reads: Mapping[str, str]
    settings: Mapping[str, BaseModel]

    @property
    def target(self) -> Target | None:
        """The target that this step works for, if any."""
        target = self.settings.get("target")
        return target if isinstance(target, Target) else None

    def inputs(self, folders: Mapping[str, Path]) -> Any:
        """The stage's `Inputs`, from the output folders of the steps that it reads."""
        values: dict[str, Any] = dict(self.settings)
        for name, (kind, _) in input_types(type(self.stage)).items():
            if name not in values:
                source = self.reads.get(name)
                values[name] = kind(folders[source]) if source else None
        return self.stage.Inputs(**values)


def input_types(stage: type[Stage]) -> dict[str, tuple[type, bool]]:
    """{input name: (its class, whether it may be None)} of a stage."""
    hints = get_type_hints(stage.Inputs)
    return {field.name: _unwrap(hints[field.name]) for field in dataclasses.fields(stage.Inputs)}


def _unwrap(hint: Any) -> tuple[type, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = [kind for kind in get_args(hint) if kind is not type(None)]
        return inner, True
    return hint, False


def steps(
    stages: Sequence[Stage], settings: Mapping[str, BaseModel], targets: Sequence[Target]
) -> list[Step]:
    """All steps in an order in which they can run: `stages` are in chain order already.

    Raises ConfigError when a stage is skipped that another cannot do without, or one is present
    that no other uses.
    """
    present: dict[str, Stage] = {}
    result: list[Step] = []
    for stage in stages:
        fans_out = "target" in input_types(type(stage))
        for target in targets if fans_out else (None,):
            result.append(_step(stage, target, present, settings))
        present[stage.name] = stage
    _refuse_unread(stages, result)
    return result


def _refuse_unread(stages: Sequence[Stage], steps: Sequence[Step]) -> None:
    """A stage that nothing reads would be paid for in vain, and the user expects it to count."""
    read = {source.partition("[")[0] for step in steps for source in step.reads.values()}
    for stage in stages[:-1]:
        if stage.name not in read:
            raise ConfigError(
                f"no stage of this chain uses '{stage.name}'",
                fix=f"set `{stage.name}: null` too, or do not skip the stage that uses it",
            )


def _step(
    stage: Stage,
    target: Target | None,
    present: Mapping[str, Stage],
    settings: Mapping[str, BaseModel],
) -> Step:
    given: dict[str, BaseModel] = {"target": target} if target else {}
    reads: dict[str, str] = {}
    for name, (_, optional) in input_types(type(stage)).items():
        if name in settings:
            given[name] = settings[name]
        elif name in present:
            reads[name] = step_id(present[name], target)
        elif not optional and name not in given:
            raise ConfigError(
                f"stage '{stage.name}' needs stage '{name}', which is null",
                fix=f"remove `{name}: null`, or set `{stage.name}: null` too",
            )
    return Step(step_id(stage, target), stage, reads, given)


def step_id(stage: Stage, target: Target | None) -> str:
    """`distill`, or `compile[openvino-int8]` for a stage that runs per target."""
    fans_out = "target" in input_types(type(stage))
    return f"{stage.name}[{target.id}]" if fans_out and target else stage.name
