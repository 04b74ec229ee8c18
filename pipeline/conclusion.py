"""From verdicts to one word, one exit code and one sentence: the last line of `run` and `gate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.targets.errors import KdpipeError

PASSED, STAGE_FAILED, USAGE, GATE_FAILED, UNAVAILABLE, UNDECIDED = 0, 1, 2, 3, 4, 5
INTERRUPTED = 130


@dataclass(frozen=True)
class Conclusion:
    """How a run ended. `word` is PASSED, FAILED or STOPPED (asked to end before the gate)."""

    word: str
    exit_code: int
    reason: str

    @property
    def line(self) -> str:
        """The last line on stdout, for people and for grep."""
        return f"{self.word} | {self.reason}"


def conclude(
    verdicts: Sequence[Mapping[str, Any]], failed: Mapping[str, KdpipeError], skipped: int = 0
) -> Conclusion:
    """A failed stage outweighs a failed rule, which outweighs missing evidence.

    Nothing passes by being absent: no verdict at all is a failure of the gate.
    """
    words = [verdict["verdict"] for verdict in verdicts]
    counts = _counts(words, skipped)
    if failed:
        step, error = next(iter(failed.items()))
        return Conclusion("FAILED", STAGE_FAILED, f"{step}: {error.what}")
    if "FAIL" in words:
        worst = verdicts[words.index("FAIL")]
        return Conclusion("FAILED", GATE_FAILED, f"{_rule(worst)}; {counts}")
    if "UNDECIDED" in words:
        first = verdicts[words.index("UNDECIDED")]
        return Conclusion("FAILED", UNDECIDED, f"not enough evidence: {_rule(first)}; {counts}")
    return Conclusion("PASSED", PASSED, counts)


def _rule(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['artifact']}: {verdict['reason']}"


def _counts(words: Sequence[str], skipped: int) -> str:
    parts = [
        f"{words.count('PASS')} of {len(words)} rules passed" if words else "no rule was asked for",
        f"{words.count('FAIL')} failed" if "FAIL" in words else "",
        f"{words.count('UNDECIDED')} undecided" if "UNDECIDED" in words else "",
        f"{skipped} target{'s' if skipped > 1 else ''} skipped" if skipped else "",
    ]
    return ", ".join(part for part in parts if part)
