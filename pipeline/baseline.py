"""The baseline of a run: where it is kept, what is remembered of a run, and what an update changes.

`lock.py` knows the file; `stages/gate/` compares with what is read from it. A run that did not pass
is never remembered. Rules against the baseline have no say in that: an update replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.pipeline import durable, lock
from kdpipe.pipeline.baseline_lines import EXACT, lines
from kdpipe.pipeline.conclusion import PASSED, Conclusion, conclude
from kdpipe.pipeline.notes import leak
from kdpipe.pipeline.policy import Policy
from kdpipe.pipeline.rejudge import rejudge
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.subject import LASTING, require_sound
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate.baseline import Baseline, LogMean, Remembered
from kdpipe.stages.gate.times import noise_floor
from kdpipe.stages.statistics.summaries import log_mean, score_summary
from kdpipe.targets.errors import UsageError, listing

_ROLES = ("artifact", "teacher", "fp32")


def beside(config: Path) -> Path:
    """Where the baseline of a config is kept: `kdpipe.lock.yaml` in the same folder."""
    return config.parent / lock.NAME


def find(config: Path, given: Path | None = None) -> Baseline | None:
    """What runs of `config` are compared with: the file `given`, else the one beside the config.

    None without a file, and where the one beside the config knows only other configs. Raises
    UsageError when the file `given` is not there or does not know `config`, ConfigError for a
    damaged one.
    """
    path = given or beside(config)
    if given is None and not path.exists():
        return None
    known = lock.read(path)
    if config.name in known:
        return Baseline(known[config.name], f"{path} ({config.name})")
    if given is None:
        return None
    raise UsageError(
        f"{path} has no baseline of {config.name}",
        found=f"it has {listing(list(known)) or 'none'}",
        fix=f"kdpipe gate RUN --update-baseline --baseline {path}",
    )


def notes(results: Mapping[str, Any], given: Path | None = None) -> Iterator[str]:
    """What a finished run was compared with, what the baseline does not know, and how to renew it.

    Nothing where it was compared with none, or asked for no rule.
    Example: baseline kdpipe.lock.yaml (digits.yaml)
    """
    known = find(Path(results["run"]["config"]), given)
    gate = results["gate"]
    if not known or not gate.get("baseline") or not gate["policy"]:
        return
    aside = {word: gate[word] for word in ("new", "removed")}
    changed = "; ".join(f"{word}: {listing(names)}" for word, names in aside.items() if names)
    yield f"baseline {known.source}" + (f"; {changed}" if changed else "")
    against = [rule for rule in gate["rules"] if rule["rule"].get("against") == "baseline"]
    lost = any(rule["verdict"] == "FAIL" for rule in against)
    if lost and not leak(results) and not _otherwise(results):
        elsewhere = f" --baseline {given}" if given else ""
        yield f"baseline where the loss is meant: kdpipe gate RUN --update-baseline{elsewhere}"


def remembered(evidence: Evidence, machine: Mapping[str, Any]) -> Remembered:
    """What is kept of one artifact; `machine` is its fingerprint, for evidence that has none.

    Raises UsageError when its samples are not all numbers.
    """
    require_sound(evidence)
    score = score_summary(evidence.score, evidence.groups)
    return Remembered(
        artifact=evidence.artifact,
        metric=evidence.metric,
        score=float(evidence.score.mean(dtype=np.float64)),
        variance=score.variance,
        samples=evidence.score.size,
        groups=None if evidence.groups is None else score.n,
        eval_sha256=evidence.eval_sha256,
        scores=None if lock.packed(evidence.score) is None else evidence.score,
        latency={
            role: LogMean(*log_mean(timing.processes))
            for role, timing in evidence.latency.items()
            if role in _ROLES
        },
        noise_floor=noise_floor(evidence),
        values=dict(_kept(evidence)),
        machine=dict(evidence.machine) or {k: machine[k] for k in LASTING if k in machine},
    )


def _kept(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """The single numbers to remember; of those that processes measured also n and deviation."""
    known = {name: evidence.values.get(name, math.nan) for name in EXACT}
    yield from ((name, value) for name, value in known.items() if math.isfinite(value))
    measured = {
        "memory_bytes": evidence.memory.get("artifact"),
        "gpu_memory_bytes": evidence.memory.get("gpu"),
        "energy_mj": evidence.energy_mj.get("artifact"),
    }
    for name, found in measured.items():
        if found is None or not found.size:
            continue
        yield name, float(np.median(found))
        yield f"{name}_processes", float(found.size)
        if found.size > 1:
            yield f"{name}_deviation", float(found.std(ddof=1))


@dataclass(frozen=True)
class Update:
    """A baseline about to be written: `path`, its new `text`, and the `lines` that say why."""

    path: Path
    text: str
    lines: tuple[str, ...]

    def write(self) -> None:
        """Replace the file, whole; a file that would not change is left as it is."""
        if self.path.exists() and self.path.read_text("utf-8") == self.text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(self.path, self.text)


def update(rundir: RunDir, given: Path | None = None) -> Update:
    """What the run in `rundir` changes in its baseline: that in `given`, or beside its config.

    The entries of other configs stay as they are, and so do those of targets that could not run
    here. Raises UsageError when the run's config is no longer in its folder and no file is given,
    ConfigError when the file is damaged.
    """
    results = rundir.read_results()
    config = Path(results["run"]["config"])
    path = given or beside(config)
    if given is None and not config.parent.is_dir():
        raise UsageError(
            f"the folder of the run's config is gone: {config.parent}",
            fix=f"name the file: --baseline {lock.NAME}",
        )
    known: dict[str, lock.Entries] = dict(lock.read(path)) if path.exists() else {}
    machines = {row["id"]: row.get("machine") or {} for row in results["artifacts"]}
    new = {e.artifact: remembered(e, machines[e.artifact]) for e in rundir.evidence()}
    old = known.get(config.name, {})
    skipped = {row["id"] for row in results["skipped"]} - new.keys()
    new |= {name: entry for name, entry in old.items() if name in skipped}
    text = lock.text({**known, config.name: new})
    return Update(path, text, tuple(lines(path, config.name, old, new)))


def renew(
    folder: Path, policy: Policy | None, given: Path | None, tell: Callable[[str], object]
) -> tuple[Conclusion, dict[str, Any]]:
    """Judge the run in `folder`, and make it the baseline if it passed; how it ended by that.

    Tells what has changed, or why nothing has. Raises UsageError for a run with a leak, and what
    `rejudge` and `update` do.
    """
    rundir = RunDir(folder)
    before = rundir.read_results()
    if why := leak(before):
        raise UsageError(
            f"{folder} cannot be the baseline: {why}",
            fix="`data.drop_twins: true` leaves such samples out of train; see docs/hygiene.md",
        )
    config = Path(before["run"]["config"]).name
    known = given if given and given.is_file() and config in lock.read(given) else None
    conclusion, results = rejudge(folder, policy, known)
    if why := refusal(rundir, conclusion, results):
        tell(f"the baseline stays as it is: {why}")
        return conclusion, results
    change = update(rundir, given)
    change.write()
    ended = rejudge(folder, policy, given)
    for line in change.lines:  # last: a reader that leaves, as behind `| head`, undoes nothing
        tell(line)
    return ended


def refusal(rundir: RunDir, conclusion: Conclusion, results: Mapping[str, Any]) -> str:
    """Why a run may not become the baseline, or nothing when it may.

    All has to hold but the rules against the baseline, which is about to be replaced.
    """
    if conclusion.exit_code == PASSED:
        return ""
    if changed := rundir.changed():
        return changed[0]
    return _otherwise(results)


def _otherwise(results: Mapping[str, Any]) -> str:
    """Why a run would fail without a baseline, or nothing when it would pass."""
    rules = results["gate"]["rules"]
    judged = [rule for rule in rules if rule["rule"].get("against") != "baseline"]
    if results["failed"]:
        return str(results["reason"])
    if not judged:
        return "all its rules are against the baseline; another one has to show that it is good"
    alone = conclude(judged, {}, rules=len(judged), skipped=len(results["skipped"]))
    return "" if alone.exit_code == PASSED else alone.reason
