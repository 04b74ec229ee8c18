"""Judging a finished run again from its stored samples: what `kdpipe gate` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.pipeline.conclusion import GATE_FAILED, USAGE, Conclusion
from kdpipe.pipeline.judgement import judgement, verdict_fields
from kdpipe.pipeline.rundir import RunDir
from kdpipe.stages import Rule
from kdpipe.targets.errors import KdpipeError, StageError, UsageError


def rejudge(folder: Path) -> tuple[Conclusion, dict[str, Any]]:
    """Apply the run's rules to its evidence and write the verdict into `results.json`.

    An artifact that is no longer the file that was measured fails the gate, whatever the samples
    say. Raises UsageError when there is no finished run in `folder`.
    """
    rundir = RunDir(folder)
    results = rundir.read_results()
    rules = [Rule.model_validate(rule) for rule in results["gate"]["policy"]]
    failed = {row["step"]: _error(row) for row in results["failed"]}
    conclusion, said = judgement(rules, rundir.evidence(), results["skipped"], failed)
    if changed := rundir.changed():
        reason = f"{changed[0]}: the file is not the one that was measured"
        conclusion = Conclusion("FAILED", GATE_FAILED, reason)
        said |= verdict_fields(conclusion)
    results |= said
    rundir.write_results({k: v for k, v in results.items() if k != "schema"})
    return conclusion, results


def _error(row: Mapping[str, Any]) -> KdpipeError:
    """A stage's error as it was written down: its first line and its exit code."""
    kind = UsageError if row["exit_code"] == USAGE else StageError
    return kind(row["error"].splitlines()[0])
