"""Judging a finished run again from its stored samples: what `kdpipe gate` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdpipe.pipeline.conclusion import GATE_FAILED, Conclusion
from kdpipe.pipeline.judgement import judgement, verdict_fields
from kdpipe.pipeline.policy import Policy
from kdpipe.pipeline.rundir import RunDir
from kdpipe.stages import Rule
from kdpipe.targets.errors import KdpipeError, StageError, TargetUnavailable, UsageError

KINDS = {kind.exit_code: kind for kind in (StageError, UsageError, TargetUnavailable)}
"""What stands for a recorded error: one of the same exit code."""


def rejudge(
    folder: Path, policy: Policy | None = None, baseline: Path | None = None
) -> tuple[Conclusion, dict[str, Any]]:
    """Apply rules to a run's evidence and write the verdict into `results.json`.

    The rules are those of `policy`, else those that the run was made with; both are kept. They
    compare with the baseline in the file `baseline`, else with the one beside the run's config, if
    any. An artifact that is no longer the file that was measured fails the gate, whatever the
    samples say, and so do samples that are no longer those that were taken. Raises UsageError when
    there is no finished run in `folder`, when a run is using it, and for a rule that is none.
    """
    rundir = RunDir(folder)
    rundir.read_results()  # a folder without a run is left as it is: without even a lock
    with rundir.lock():
        return _rejudge(rundir, policy, baseline)


def _rejudge(
    rundir: RunDir, policy: Policy | None, baseline: Path | None
) -> tuple[Conclusion, dict[str, Any]]:
    from kdpipe.pipeline.baseline import find
    from kdpipe.pipeline.ci.command import publish

    results = rundir.read_results()
    own = results["gate"].get("run_policy", results["gate"]["policy"])
    evidence = rundir.evidence()
    if policy:
        policy.check(_names(results), next((one.metric for one in evidence), None))
    rules = policy.rules if policy else tuple(_rules(rundir, own))
    failed = {row["step"]: _error(row) for row in results["failed"]}
    known = find(Path(results["run"]["config"]), baseline)
    conclusion, said = judgement(rules, evidence, results["skipped"], failed, known)
    if policy:
        said["gate"] |= {"source": str(policy.path.absolute()), "run_policy": own}
    if changed := rundir.changed():
        conclusion = Conclusion("FAILED", GATE_FAILED, changed[0])
        said |= verdict_fields(conclusion)
    results |= said
    rundir.write_results(results)
    publish(rundir, results)
    return conclusion, results


def _names(results: Mapping[str, Any]) -> list[str]:
    """What a rule's `target` may say of this run: ids and targets, skipped ones too."""
    rows = [*results["artifacts"], *results["skipped"]]
    return list(dict.fromkeys([*(row["id"] for row in rows), *(row["target"] for row in rows)]))


def _rules(rundir: RunDir, policy: list[Any]) -> Iterator[Rule]:
    """The rules that the run was judged by, or by which the user wants it judged now."""
    for index, rule in enumerate(policy):
        try:
            yield Rule.model_validate(rule)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                f"gate.policy[{index}] in {rundir.results} is no rule",
                found=f"{rule}: {first['msg']}",
                fix="correct it, or run kdpipe again; what is stored is reused",
            ) from None


def _error(row: Mapping[str, Any]) -> KdpipeError:
    """A stage's error as it was written down: its first line and its exit code."""
    kind = KINDS.get(row["exit_code"], StageError)
    return kind(row["error"].splitlines()[0])
