"""The conclusion: one word, one exit code and one sentence, the gravest cause first."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kdpipe.pipeline.conclusion import conclude
from kdpipe.targets.errors import DataError, KdpipeError, StageError, TargetUnavailable

PASS = {"verdict": "PASS", "artifact": "a", "reason": "keeps it"}
FAIL = {"verdict": "FAIL", "artifact": "b", "reason": "breaks it"}
UNDECIDED = {"verdict": "UNDECIDED", "artifact": "c", "reason": "too few"}
ADVICE = {"verdict": "FAIL", "artifact": "d", "reason": "is advised against", "required": False}
DOUBT = {**ADVICE, "verdict": "UNDECIDED"}
KEPT = {**ADVICE, "verdict": "PASS"}
STANDING = {**PASS, "standing": True}
BROKEN = {"compile[b]": StageError("no luck", found="a cat")}


@pytest.mark.parametrize(
    ("verdicts", "failed", "code", "line"),
    [
        ([PASS, PASS], {}, 0, "PASSED | 2 of 2 rules passed"),
        ([PASS, FAIL, FAIL], {}, 3, "FAILED | b: breaks it; 1 of 3 rules passed, 2 failed"),
        (
            [PASS, UNDECIDED],
            {},
            5,
            "FAILED | not enough evidence: c: too few; 1 of 2 rules passed, 1 undecided",
        ),
        (
            [UNDECIDED, FAIL],
            {},
            3,
            "FAILED | b: breaks it; 0 of 2 rules passed, 1 failed, 1 undecided",
        ),
        ([PASS, FAIL, UNDECIDED], BROKEN, 1, "FAILED | compile[b]: no luck"),
        ([PASS], BROKEN, 1, "FAILED | compile[b]: no luck"),
        ([], {"data": DataError("no labels")}, 2, "FAILED | data: no labels"),
        ([], {"x": TargetUnavailable("gone")}, 4, "FAILED | x: gone"),
    ],
)
def test_precedence(
    verdicts: list[Mapping[str, str]], failed: Mapping[str, KdpipeError], code: int, line: str
) -> None:
    """A failed stage outweighs a failed rule, which outweighs missing evidence."""
    conclusion = conclude(verdicts, failed, rules=len(verdicts))

    assert (conclusion.exit_code, conclusion.line) == (code, line)


@pytest.mark.parametrize(
    ("verdicts", "code", "line"),
    [
        (
            [PASS, ADVICE, KEPT],
            0,
            "PASSED | 1 of 1 rules passed, 1 of 2 advisory rules passed and 1 of them failed",
        ),
        (
            [PASS, FAIL, DOUBT],
            3,
            "FAILED | b: breaks it; 1 of 2 rules passed, 1 failed, "
            "0 of 1 advisory rules passed and 1 of them undecided",
        ),
        (
            [ADVICE],
            0,
            "PASSED | no rule was required, 0 of 1 advisory rules passed and 1 of them failed",
        ),
    ],
)
def test_advice_changes_nothing_but_the_counts(
    verdicts: list[Mapping[str, str]], code: int, line: str
) -> None:
    """What is not required is counted on its own, and never fails a run."""
    conclusion = conclude(verdicts, {}, rules=len(verdicts))

    assert (conclusion.exit_code, conclusion.line) == (code, line)


def test_standing_rules_do_not_stand_in_for_the_user_s_own() -> None:
    """Where none of the rules that were asked for could be judged, the evidence is missing."""
    conclusion = conclude([STANDING], {}, rules=1, skipped=1)
    broken = conclude([{**FAIL, "standing": True}], {}, rules=1, skipped=1)

    assert (conclusion.exit_code, broken.exit_code) == (5, 3)


def test_no_rule_was_asked_for() -> None:
    """`gate: null` passes, and says that nothing was asked."""
    conclusion = conclude([], {}, rules=0)

    assert (conclusion.exit_code, conclusion.line) == (0, "PASSED | no rule was asked for")


def test_rules_of_which_none_was_judged() -> None:
    """Nothing passes by being absent: rules without any verdict are missing evidence."""
    conclusion = conclude([], {}, rules=2, skipped=1)

    assert conclusion.exit_code == 5
    assert conclusion.line == (
        "FAILED | not enough evidence: none of 2 rules could be judged, 1 target skipped"
    )


@pytest.mark.parametrize(
    ("skipped", "said"), [(0, ""), (1, ", 1 target skipped"), (2, ", 2 targets skipped")]
)
def test_skipped_targets_are_counted(skipped: int, said: str) -> None:
    """A run that passes says how many targets it did not see."""
    conclusion = conclude([PASS], {}, rules=1, skipped=skipped)

    assert conclusion.line == f"PASSED | 1 of 1 rules passed{said}"
