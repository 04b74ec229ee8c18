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
    verdicts: Sequence[Mapping[str, Any]],
    failed: Mapping[str, KdpipeError],
    *,
    rules: int,
    skipped: int = 0,
) -> Conclusion:
    """A failed stage outweighs a failed rule, which outweighs missing evidence.

    A stage that failed over the user's own data or model exits 2, like any other wrong input.

    `rules` were asked for and `skipped` targets could not run. Nothing passes by being absent:
    where rules were asked for and none but standing ones could be judged, the evidence is missing.
    Advice (verdicts that are not `required`) is counted and changes nothing else.
    """
    required = [verdict for verdict in verdicts if verdict.get("required", True)]
    words = [verdict["verdict"] for verdict in required]
    advice = [v["verdict"] for v in verdicts if not v.get("required", True)]
    counts = _counts(words, advice, skipped)
    if failed:
        step, error = next(iter(failed.items()))
        return Conclusion("FAILED", error.exit_code, f"{step}: {error.what}")
    if "FAIL" in words:
        worst = required[words.index("FAIL")]
        return Conclusion("FAILED", GATE_FAILED, f"{_rule(worst)}; {counts}")
    if "UNDECIDED" in words:
        first = required[words.index("UNDECIDED")]
        return Conclusion("FAILED", UNDECIDED, f"not enough evidence: {_rule(first)}; {counts}")
    if rules and all(verdict.get("standing") for verdict in verdicts):
        reason = f"not enough evidence: none of {rules} rules could be judged"
        return Conclusion("FAILED", UNDECIDED, f"{reason}{_also(skipped)}")
    return Conclusion("PASSED", PASSED, counts)


def _rule(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['artifact']}: {verdict['reason']}"


def _counts(words: Sequence[str], advice: Sequence[str], skipped: int) -> str:
    nothing = "no rule was required" if advice else "no rule was asked for"
    parts = [
        f"{words.count('PASS')} of {len(words)} rules passed" if words else nothing,
        f"{words.count('FAIL')} failed" if "FAIL" in words else "",
        f"{words.count('UNDECIDED')} undecided" if "UNDECIDED" in words else "",
        _advice(advice),
    ]
    return ", ".join(part for part in parts if part) + _also(skipped)


def _advice(words: Sequence[str]) -> str:
    """Example: 2 of 3 advisory rules passed and 1 of them failed"""
    if not words:
        return ""
    parts = [f"{words.count('PASS')} of {len(words)} advisory rules passed"]
    parts += [f"{n} {said}" for word, said in _ELSE if (n := words.count(word))]
    return " and ".join(parts)


_ELSE = (("FAIL", "of them failed"), ("UNDECIDED", "of them undecided"))


def _also(skipped: int) -> str:
    return f", {skipped} target{'s' if skipped > 1 else ''} skipped" if skipped else ""
