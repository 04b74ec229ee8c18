"""What the user means by `RUN`, `RUN:openvino-int8` or a path in a run's folder.

`compare`, `inspect` and `bench` find measured artifacts here; a model file that belongs to no run
is none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.pipeline.plan import load_records
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Record, key_of
from kdpipe.stages.evidence import Evidence
from kdpipe.targets import Target, target_named
from kdpipe.targets.errors import UsageError, listing
from kdpipe.targets.fingerprint import LASTING as LASTING

if TYPE_CHECKING:
    import numpy as np
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Subject:
    """One measured artifact; `row` is its row in the `results` of its run."""

    rundir: RunDir
    results: Mapping[str, Any]
    row: Mapping[str, Any]

    @property
    def id(self) -> str:
        """How results and rules call it."""
        return str(self.row["id"])

    @property
    def name(self) -> str:
        """How it is typed, e.g. `.kdpipe/runs/digits:openvino-int8`."""
        return f"{self.rundir.folder}:{self.id}"

    @property
    def path(self) -> Path:
        """The copy in the run's folder."""
        return self.rundir.folder / str(self.row["path"])

    def existing_path(self) -> Path:
        """`path`. Raises UsageError when nothing is there."""
        if not self.path.exists():
            raise UsageError(
                f"{self.id}: its file is gone",
                found=str(self.path),
                fix="run kdpipe again; what is stored is reused",
            )
        return self.path

    @cached_property
    def evidence(self) -> Evidence:
        """The raw samples. Raises UsageError when they are absent or damaged."""
        (found,) = (e for e in self.rundir.evidence() if e.artifact == self.id)
        return found

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """What is no longer as the run left it: the file, or its samples."""
        return tuple(s for s in self.rundir.changed() if s.startswith(f"{self.id}: "))

    @cached_property
    def records(self) -> dict[str, Record]:
        """What each step on its way depended on, the one that measured it first.

        {} when the run's plan is not there.
        """
        known = load_records(self.rundir.records)
        own = {step: record for step, record in known.items() if step.endswith(f"[{self.id}]")}
        read = {name for record in own.values() for name in record["inputs"]}
        waiting = [step for step in own if step.partition("[")[0] not in read]
        found: dict[str, Record] = {}
        while waiting:
            step = waiting.pop(0)
            found[step] = known[step]
            steps = (
                name if name in known else f"{name}[{self.id}]" for name in known[step]["inputs"]
            )
            waiting += [name for name in steps if name in known and name not in (*found, *waiting)]
        return found

    @property
    def measured_by(self) -> Record:
        """The record of the step that measured it; {} when the run's plan is not there."""
        return next(iter(self.records.values()), {})

    def inputs(self) -> Mapping[str, str]:
        """Digests of what measuring it read, by stage: `data`, `teacher`, `compile` ..."""
        return dict(self.measured_by.get("inputs", {}))

    def keys(self) -> dict[str, str]:
        """The stored output of each step on its way, by step."""
        return {step: key_of(step, record) for step, record in self.records.items()}

    @property
    def machine(self) -> Mapping[str, Any]:
        """What times depend on where it was measured."""
        known = self.row.get("machine") or {}
        return self.evidence.machine or {name: known[name] for name in LASTING if name in known}

    def target(self) -> Target:
        """The target it was compiled for, with the settings of the run."""
        given = {"name": self.row["target"], "precision": self.row["precision"]}
        settings = self.measured_by.get("settings", {}).get("target", given)
        return target_named(str(self.row["target"])).model_validate(settings)


def require_sound(evidence: Evidence) -> None:
    """Raise UsageError unless all samples are numbers, and all times above 0."""
    arrays: dict[str, Any] = {
        "scores": evidence.score,
        "agreements": evidence.agreement,
        "weighings": evidence.memory.get("artifact", np.zeros(0)),
        "energies": evidence.energy_mj.get("artifact", np.zeros(0)),
    }
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    for role, timing in evidence.latency.items():
        sound = [p.size and (np.isfinite(p) & (p > 0)).all() for p in timing.processes]
        if not sound or not all(sound):
            bad.append(f"latencies of the {role}")
    if bad:
        raise UsageError(
            f"{evidence.artifact}: samples are missing or are no numbers",
            found=listing(bad),
            fix="mend what the log of the run says of them, and run kdpipe again",
        )


def subjects(typed: str) -> list[Subject]:
    """All artifacts of a run's folder, or the one that `typed` names.

    Raises UsageError, naming what is there, when it names none.
    """
    folder, _, artifact = typed.rpartition(":")
    if (Path(typed) / "results.json").exists():
        return list(_all(Path(typed)))
    if folder and (Path(folder) / "results.json").exists():
        found = list(_all(Path(folder)))
        one = [subject for subject in found if subject.id == artifact]
        if not one:
            known = listing([subject.id for subject in found]) or "none"
            raise UsageError(f"{folder} has no artifact '{artifact}'", found=f"it has {known}")
        return one
    if one_file := holder(Path(typed)):
        return [one_file]
    if Path(typed).suffix and not Path(typed).exists() and not folder:
        raise UsageError(f"there is no file {typed}")
    raise UsageError(
        f"{typed} is no run and no artifact of one",
        found="a folder without results.json" if Path(typed).is_dir() else "",
        fix="give the folder of a finished `kdpipe run`, or RUN:ARTIFACT, "
        "e.g. .kdpipe/runs/digits:openvino-int8",
    )


def holder(path: Path) -> Subject | None:
    """The artifact that `path` is, or is a file of; None where it lies in no run's folder."""
    whole = path.absolute()
    for folder in whole.parents:
        if (folder / "results.json").exists():
            inside = [s for s in _all(folder) if whole.is_relative_to(s.path.absolute())]
            return inside[0] if inside else None
    return None


def _all(folder: Path) -> Iterator[Subject]:
    rundir = RunDir(folder)
    results = rundir.read_results()
    yield from (Subject(rundir, results, row) for row in results["artifacts"])
