"""Judging a finished run again from its stored samples: what `kdpipe gate` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.pipeline.conclusion import GATE_FAILED, Conclusion, conclude
from kdpipe.pipeline.launch import verdict_fields
from kdpipe.pipeline.rundir import RunDir
from kdpipe.stages import Rule
from kdpipe.targets.errors import StageError


def rejudge(folder: Path) -> tuple[Conclusion, dict[str, Any]]:
    """Apply the run's rules to its evidence and write the verdict into `results.json`.

    An artifact that is no longer the file that was measured fails the gate, whatever the samples
    say. Raises UsageError when there is no finished run in `folder`.
    """
    from kdpipe.stages.gate import judge

    rundir = RunDir(folder)
    results = rundir.read_results()
    rules = [Rule.model_validate(rule) for rule in results["gate"]["policy"]]
    verdicts = [verdict.to_dict() for verdict in judge(rules, rundir.evidence())]
    failed = {f["step"]: StageError(f["error"].splitlines()[0]) for f in results["failed"]}
    conclusion = conclude(verdicts, failed, len(results["skipped"]))
    if changed := rundir.changed():
        reason = f"{changed[0]}: the file is not the one that was measured"
        conclusion = Conclusion("FAILED", GATE_FAILED, reason)
    results["gate"]["rules"] = verdicts
    results |= verdict_fields(conclusion)
    rundir.write_results({k: v for k, v in results.items() if k != "schema"})
    return conclusion, results
