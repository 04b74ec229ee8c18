"""What a rule is judged on (`Case`) and what was found (`Measure`), before anything is decided."""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate.baseline import Baseline, Remembered
from kdpipe.stages.gate.metrics import Unit
from kdpipe.stages.gate.rules import Rule
from kdpipe.targets.errors import listing

PROCESSES = 10
"""Asked for when a single process was measured and its spread is therefore unknown."""
WHOSE = {
    "teacher": "the teacher",
    "control": "the control",
    "fp32": "its fp32 twin",
    "baseline": "the baseline",
}
"""The references in words."""


class NotMeasuredError(Exception):
    """There is no usable measurement of what a rule asks for; says why, in a few words."""


@dataclass(frozen=True)
class Case:
    """A rule with one limit, the artifact that it is judged on, and the confidence of its bounds.

    `standing`: the rule is none of the user's own.
    """

    rule: Rule
    evidence: Evidence
    baseline: Baseline | None
    confidence: float
    standing: bool = False

    @property
    def name(self) -> str:
        """The limit's name, e.g. `max-degradation`."""
        return self.rule.limit[0]

    @property
    def limit(self) -> float:
        """The limit's value."""
        return self.rule.limit[1]

    @property
    def whose(self) -> str:
        """The reference in words."""
        return WHOSE[self.rule.against]

    @property
    def remembered(self) -> Remembered:
        """This artifact in the baseline. Raises NotMeasuredError where it is not there."""
        if self.baseline is None:
            fix = "`kdpipe gate RUN --update-baseline` writes one from a run that passed"
            raise NotMeasuredError(f"there is no baseline; {fix}")
        found = self.baseline.artifacts.get(self.evidence.artifact)
        if found is None:
            known = listing(list(self.baseline.artifacts)) or "none"
            raise NotMeasuredError(f"the baseline has no such artifact (it has: {known})")
        return found


@dataclass(frozen=True)
class Measure:
    """A measured value with its one-sided bounds, in `unit`; infinite where nothing bounds it.

    `n` of what was `counted` (samples, groups, processes, iterations); empty for exact numbers.
    `needed`: how many of them would probably decide; None when that is not known or never.
    `how`: what else stands behind the bounds, in a few words. `doubt`: what to do about a value
    that cannot be told from the limit, where a number of measurements is not the answer.

    `floor`: how far beyond the limit a value has to be proven before it fails, in `unit`: what the
    same file differs from itself by. `power`: probability that a model which is as good as it
    should be passes, see `power.py`.
    """

    what: str
    unit: Unit
    point: float
    low: float
    high: float
    n: int
    counted: str = ""
    needed: int | None = None
    how: str = ""
    doubt: str = ""
    floor: float = 0.0
    power: float | None = None


def exact(what: str, unit: Unit, value: float) -> Measure:
    """A number without doubt, such as a size."""
    return Measure(what, unit, value, value, value, 1)


def more_than(n: int, needed: int | None) -> int | None:
    """A plan never asks for less than there is: what is there has just not decided."""
    return None if needed is None else max(needed, n + 1)


def of_processes(found: statistics.Interval, gap: float, confidence: float) -> int | None:
    """How many processes would tell a value from a limit `gap` away, on the scale of `variance`."""
    if found.n < 2:
        return PROCESSES
    return more_than(found.n, statistics.samples_to_separate(gap, found.variance, confidence))
