"""One run from config to verdict: check, plan, execute, collect, judge, write down."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.pipeline.chain import Step
from kdpipe.pipeline.conclusion import PASSED, Conclusion, conclude
from kdpipe.pipeline.config import Config
from kdpipe.pipeline.journal import Journal, Listener
from kdpipe.pipeline.judgement import judgement
from kdpipe.pipeline.plan import Planned, Planner, load_records
from kdpipe.pipeline.run import Executed, Runner
from kdpipe.pipeline.rundir import SCHEMA, RunDir
from kdpipe.pipeline.store import Store
from kdpipe.targets import Target
from kdpipe.targets.errors import TargetUnavailable, UsageError
from kdpipe.targets.fingerprint import fingerprint

if TYPE_CHECKING:
    from kdpipe.stages.gate.baseline import Baseline


@dataclass(frozen=True)
class Selection:
    """Which part of the chain to run: `--from`, `--to`, `--only`; stage names."""

    start: str | None = None
    stop: str | None = None
    only: str | None = None

    def steps(self, steps: Sequence[Step]) -> list[Step]:
        """The steps up to where the run ends. Raises UsageError for an unknown stage."""
        names = list(dict.fromkeys(step.stage.name for step in steps))
        for name in (self.start, self.stop, self.only):
            if name is not None and name not in names:
                raise UsageError(
                    f"there is no stage '{name}' in this chain", found=", ".join(names)
                )
        if self.start and self.stop and names.index(self.start) > names.index(self.stop):
            raise UsageError(
                f"--from {self.start} comes after --to {self.stop}", found=" -> ".join(names)
            )
        last = self.only or self.stop or names[-1]
        kept = names[: names.index(last) + 1]
        return [step for step in steps if step.stage.name in kept]

    def redo(self, steps: Sequence[Step]) -> frozenset[str]:
        """The stages to run even though their outputs are stored."""
        names = list(dict.fromkeys(step.stage.name for step in steps))
        if self.only:
            return frozenset({self.only})
        return frozenset(names[names.index(self.start) :]) if self.start else frozenset()


@dataclass(frozen=True)
class Launch:
    """A config with the places where it runs."""

    config: Config
    store: Store
    rundir: RunDir
    selection: Selection
    baseline: Path | None = None
    """What to compare with; by default the lock file beside the config, where there is one."""

    def plan(self) -> list[Planned]:
        """What a run would do."""
        steps = self.selection.steps(self.config.steps())
        return self._planner(steps).plan(steps)

    def run(self, listeners: tuple[Listener, ...]) -> tuple[Conclusion, dict[str, Any]]:
        """Run it; returns how it ended and what `results.json` holds.

        Raises UsageError and TargetUnavailable before anything runs, also when the run's folder
        is in use or belongs to another config, or the baseline is damaged; KeyboardInterrupt
        passes.
        """
        from kdpipe.pipeline.baseline import find

        steps = self.selection.steps(self.config.steps())
        self.config.check()
        self._require_targets(steps)
        baseline = find(self.config.path, self.baseline)
        with self.rundir.lock():
            self.rundir.require(self.config.path)
            journal = Journal(self.rundir.journal, listeners)
            try:
                return self._run(steps, journal, baseline)
            finally:
                journal.close()

    def _run(
        self, steps: Sequence[Step], journal: Journal, baseline: Baseline | None
    ) -> tuple[Conclusion, dict[str, Any]]:
        from kdpipe.pipeline.ci.command import publish

        started = time.monotonic()
        planner = self._planner(steps)
        self._require_stored(planner, steps)
        whole = len(steps) == len(self.config.steps())
        if whole:
            self.rundir.forget()
            self.rundir.write(self.rundir.folder / "config.yaml", _as_read(self.config))
        journal.tell("run", **self._about())
        done = Runner(self.store, planner, journal).run(steps)
        records = {**load_records(self.rundir.records), **done.records()}
        self.rundir.write(self.rundir.records, _json(records))
        conclusion, results = _stopped(steps, done), dict[str, Any]()
        if whole:
            conclusion, results = self._conclude(steps, done, baseline)
        seconds = round(time.monotonic() - started, 3)
        if results:
            results = {"schema": SCHEMA, **results}
            results["run"] |= {"seconds": seconds, "ran": done.ran}
            self.rundir.write_results(results)
            publish(self.rundir, results)
        journal.tell("ended", line=conclusion.line, exit_code=conclusion.exit_code, seconds=seconds)
        return conclusion, results

    def _conclude(
        self, steps: Sequence[Step], done: Executed, baseline: Baseline | None
    ) -> tuple[Conclusion, dict[str, Any]]:
        from kdpipe.stages.results import collect, files, measurements

        outputs = done.artifacts(steps)
        results = {"run": self._about() | {"machine": fingerprint()}, **collect(outputs)}
        measured, compiled = measurements(outputs), files(outputs)
        for row in results["artifacts"]:
            name, samples = row["id"], measured[row["id"]].evidence
            row |= self.rundir.keep(name, compiled[name], row["sha256"], samples)
        results["skipped"] = _skipped(steps)
        results["failed"] = [
            {"step": step, "error": str(error), "exit_code": error.exit_code}
            for step, error in done.failed.items()
        ]
        evidence = [one.evidence for one in measured.values()]
        conclusion, said = judgement(
            self.config.rules, evidence, results["skipped"], done.failed, baseline
        )
        return conclusion, results | said

    def _about(self) -> dict[str, Any]:
        return {
            "kdpipe": version("kdpipe"),
            "config": str(self.config.path.absolute()),
            "assignments": list(self.config.assignments),
        }

    def _planner(self, steps: Sequence[Step]) -> Planner:
        previous = load_records(self.rundir.records)
        return Planner(self.store, previous, self.selection.redo(steps))

    def _require_targets(self, steps: Sequence[Step]) -> None:
        """Fail before hours of training, not after; targets that no step needs may be missing."""
        for target in _targets(steps):
            missing = target.missing() if target.required else None
            if missing:
                raise TargetUnavailable(
                    f"target {target.id} is required and cannot run here: {missing.reason}",
                    found=f"targets that can: {', '.join(_usable(self.config.targets)) or 'none'}",
                    fix=f"{missing.fix}, or set required: false",
                )

    def _require_stored(self, planner: Planner, steps: Sequence[Step]) -> None:
        """`--only` runs one stage: all that it reads must be stored."""
        if not self.selection.only:
            return
        for planned in planner.plan(steps):
            if planned.status == "run" and planned.step.stage.name != self.selection.only:
                raise UsageError(
                    f"--only {self.selection.only}: {planned.step.id} is not stored",
                    found=planned.why,
                    fix=f"kdpipe run {self.config.path} --to {self.selection.only}",
                )


def _usable(targets: Sequence[Target]) -> list[str]:
    return [target.id for target in targets if not target.missing()]


def _skipped(steps: Sequence[Step]) -> list[dict[str, str]]:
    """Targets that could not run here, with the reason, once each."""
    return [
        {"id": target.id, "target": target.name, "reason": why.reason, "fix": why.fix}
        for target in _targets(steps)
        if (why := target.missing())
    ]


def _targets(steps: Sequence[Step]) -> list[Target]:
    """The targets that any of `steps` works for, once each."""
    return list({step.target.id: step.target for step in steps if step.target}.values())


def _stopped(steps: Sequence[Step], done: Executed) -> Conclusion:
    if done.failed:
        return conclude([], done.failed, rules=0)
    return Conclusion(
        "STOPPED", PASSED, f"after {steps[-1].stage.name}, as asked: nothing was judged"
    )


def _as_read(config: Config) -> str:
    """The config's text, below a comment with the `--set` that it was read with, if any."""
    if not config.assignments:
        return config.text
    words = shlex.join(word for given in config.assignments for word in ("--set", given))
    return "".join(f"# {line}\n" for line in f"with {words}".splitlines()) + config.text


def _json(records: Mapping[str, Any]) -> str:
    return json.dumps(records, indent=1, sort_keys=True)


def default_run_dir(config: Path, store: Path) -> Path:
    """`<store>/runs/<name of the config>`"""
    return store / "runs" / config.stem
