"""The plan: for each step whether it is stored, will run or is blocked, and why; runs nothing."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdpipe.pipeline.chain import Step
from kdpipe.pipeline.content import Contents
from kdpipe.pipeline.store import Entry, Record, Store, key_of
from kdpipe.stages.base import Files
from kdpipe.targets.fingerprint import machine

Status = Literal["stored", "run", "blocked"]


@dataclass(frozen=True)
class Planned:
    """What will happen to a step. `key` is unknown while something that it reads must run first."""

    step: Step
    status: Status
    why: str
    key: str | None = None
    record: Record | None = None
    entry: Entry | None = None


class Planner:
    """Plans steps against a store; `previous` are the records of this run's last time."""

    def __init__(
        self, store: Store, previous: Mapping[str, Record], redo: frozenset[str] = frozenset()
    ) -> None:
        self._store = store
        self._contents = Contents(store.root / "contents.json")
        self._previous = previous
        self._redo = redo

    def redoes(self, step: Step) -> bool:
        """Whether the user asked for this step to be done again."""
        return step.stage.name in self._redo

    def plan(self, steps: Sequence[Step]) -> list[Planned]:
        """Plan all `steps`, which come in running order."""
        planned: dict[str, Planned] = {}
        for step in steps:
            planned[step.id] = self._plan(step, planned)
        self._contents.save()
        return list(planned.values())

    def record(self, step: Step, inputs: Mapping[str, Entry]) -> Record:
        """All that the output of `step` depends on, given the entries that it reads."""
        packages = step.stage.distributions() + (step.target.packages if step.target else ())
        read = step.stage.files()
        by_content = [name for name in read if name not in step.stage.places()]
        return {
            "stage": step.stage.name,
            "version": step.stage.version,
            "fields": _without(step.stage.model_dump(mode="json"), by_content),
            "files": self._digests(read),
            "inputs": {name: inputs[source].digest for name, source in step.reads.items()},
            "settings": {
                name: _settings(value.model_dump(mode="json"))
                for name, value in step.settings.items()
            },
            "packages": {name: _version(name) for name in sorted(set(packages))},
            **({"machine": machine()} if step.stage.measures() else {}),
        }

    def files(self, step: Step) -> dict[str, str]:
        """The digests of the user's files that `step` reads, by field."""
        return self._digests(step.stage.files())

    def _digests(self, read: Mapping[str, Path | Files]) -> dict[str, str]:
        return {name: self._contents.digest(files) for name, files in read.items()}

    def _plan(self, step: Step, planned: Mapping[str, Planned]) -> Planned:
        if step.target and (missing := step.target.missing()):
            return Planned(step, "blocked", missing.reason)
        before = [planned[source] for source in step.reads.values()]
        blocked = [p.step.id for p in before if p.status == "blocked"]
        if blocked:
            return Planned(step, "blocked", f"needs {blocked[0]}")
        waiting = [p.step.id for p in before if p.status == "run"]
        if waiting:
            return Planned(step, "run", f"after {', '.join(waiting)}")
        record = self.record(step, {p.step.id: p.entry for p in before if p.entry})
        key = key_of(step.id, record)
        entry = self._store.find(key)
        if entry and not self.redoes(step):
            return Planned(step, "stored", "nothing it depends on changed", key, record, entry)
        why = "asked for" if entry else self._why(step, record)
        return Planned(step, "run", why, key, record)

    def _why(self, step: Step, record: Record) -> str:
        previous = self._previous.get(step.id)
        if previous is None:
            return "not run before"
        changes = list(differences(step.stage.name, previous, json.loads(json.dumps(record))))
        return "; ".join(changes) or "its output is not in this store"


def differences(stage: str, old: Record, new: Record) -> Iterator[str]:
    """What changed between two records, in the user's words.

    Example: "`distill.epochs` 20 -> 30"
    """
    for path, (before, after) in _changes(old["fields"], new["fields"], stage):
        yield f"`{path}` {before} -> {after}"
    for path, (before, after) in _changes(old["settings"], new["settings"], ""):
        yield f"`{path}` {before} -> {after}"
    for field, _ in _changes(old["files"], new["files"], stage):
        yield f"the content of `{field}` changed"
    for name, _ in _changes(old["inputs"], new["inputs"], ""):
        yield f"the output of {name} changed"
    for name, (before, after) in _changes(old["packages"], new["packages"], ""):
        yield " ".join([name, before.strip('"'), "->", after.strip('"')])
    if old["version"] != new["version"]:
        yield f"kdpipe changed how `{stage}` works"
    if old.get("machine") != new.get("machine"):
        yield "another machine"


def _changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Leaves that differ between two JSON values: (dotted path, (old text, new text))."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            inner = f"{path}.{key}" if path else key
            yield from _changes(old.get(key), new.get(key), inner)
    elif old != new:
        yield path, (json.dumps(old), json.dumps(new))


def _without(fields: dict[str, Any], dotted: Sequence[str]) -> dict[str, Any]:
    """`fields` without the paths of files, whose content counts instead."""
    for path in dotted:
        *parents, last = path.split(".")
        inner: Any = fields
        for name in parents:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        inner[last] = None
    return fields


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """A target's settings without `required`, which decides exit codes and not results."""
    return {name: value for name, value in values.items() if name != "required"}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def load_records(path: Path) -> dict[str, Record]:
    """The records of a run's last time; {} when there was none, or they are not as written."""
    try:
        records = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(records, dict) and all(map(_is_record, records.values()))
    return records if sound else {}


def _is_record(record: Any) -> bool:
    """Whether `differences` can read it."""
    parts = ("fields", "settings", "files", "inputs", "packages")
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(part), dict) for part in parts)
        and "version" in record
    )
