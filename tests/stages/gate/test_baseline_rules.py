"""Rules against an earlier run: paired where that is honest, beyond its noise, as a family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.baseline import Baseline, LogMean
from kdpipe.stages.gate.judge import REGRESSION_LEVEL, Verdict, judge
from kdpipe.stages.gate.rules import BASELINE_RULES, STANDING_RULES, Rule

Make = Callable[..., Evidence]
Remember = Callable[..., Baseline]
Judge = Callable[..., Verdict]

DROP = {"metric": "accuracy", "max-degradation": 0.0, "against": "baseline"}
SLOWER = {"metric": "latency_mean_ms", "percent-max-degradation": 5.0, "against": "baseline"}
LARGER = {"metric": "size_bytes", "percent-max-degradation": 1.0, "against": "baseline"}


def test_a_run_like_the_baseline_passes(evidence: Make, baseline: Remember, verdict: Judge) -> None:
    """The same samples, the same times, the same file."""
    for rule in (DROP, SLOWER, LARGER):
        found = verdict(rule, evidence(), baseline(evidence()))
        assert (found.verdict, found.family, found.note) == ("PASS", "regression", ""), rule


def test_a_lost_sample_more_counts_only_beyond_chance(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """Paired with the same eval samples: 3 losses may be chance, 30 are not."""
    past = baseline(evidence(0, 0))
    few, many = (verdict(DROP, evidence(n, 0), past) for n in (3, 30))

    assert (few.verdict, many.verdict) == ("PASS", "FAIL")
    assert "2,000 samples, paired) breaks the limit of at most 0.0000" in many.reason
    assert many.confidence == 1 - REGRESSION_LEVEL


@pytest.mark.parametrize("changes", [{"scores": None}, {"eval_sha256": "f" * 64}])
def test_other_samples_are_not_paired(
    changes: dict[str, Any], evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """Without the scores of these very samples the doubt of both runs counts, and that is said."""
    found = verdict(DROP, evidence(30, 0), baseline(evidence(0, 0), **changes))
    same = verdict(DROP, evidence(30, 0), baseline(evidence(0, 0)))
    more = verdict(DROP, evidence(300, 0), baseline(evidence(0, 0), **changes))

    assert found.measured == pytest.approx(same.measured)
    assert (found.high or 0) - (found.low or 0) != (same.high or 0) - (same.low or 0)
    assert "unpaired: the baseline has no scores of these 2,000 samples" in found.reason
    assert more.verdict == "FAIL"


def test_a_baseline_of_groups_is_as_unsure_as_its_groups(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """20 clips are 20, however many frames they had."""
    past = {"scores": None, "variance": 0.01}
    frames = verdict(DROP, evidence(), baseline(evidence(), **past))
    clips = verdict(DROP, evidence(), baseline(evidence(), **past, groups=20))

    assert (clips.low or 0) < 3 * (frames.low or 0) < 0
    assert clips.n == 20


def test_another_metric_is_not_compared(evidence: Make, baseline: Remember, verdict: Judge) -> None:
    """A mean IoU of then says nothing about an accuracy of now."""
    found = verdict(DROP, evidence(), baseline(evidence(), metric="miou"))

    assert "was not measured: the baseline holds miou, this run accuracy" in found.reason


def test_a_slowdown_on_the_same_machine(
    evidence: Make, baseline: Remember, verdict: Judge, timing: Callable[..., Timing]
) -> None:
    """20 % slower than then fails, 2 % does not; 20 % faster asks for an update."""
    past = baseline(evidence())

    def now(scale: float) -> Verdict:
        latency = {"artifact": timing(scale, 5), "teacher": timing(6.0, 5)}
        return verdict(SLOWER, evidence(latency=latency), past)

    assert [now(scale).verdict for scale in (1.2, 1.02, 0.8)] == ["FAIL", "PASS", "PASS"]
    assert now(1.2).measured == pytest.approx(20, abs=3)
    assert "10 processes, on the same machine" in now(1.2).reason
    assert [bool(now(scale).note) for scale in (1.2, 1.02, 0.8)] == [False, False, True]


@pytest.mark.parametrize("when", ["then", "now"])
def test_the_noise_floor_of_either_run_counts(
    when: str, evidence: Make, baseline: Remember, verdict: Judge, timing: Callable[..., Timing]
) -> None:
    """A file that differs from itself by 40 % has not become slower by 20 %."""
    latency = {"artifact": timing(1.2, 5), "teacher": timing(6.0, 5)}
    if when == "now":
        latency["again"] = timing(1.6, 5)
    past = baseline(evidence(), noise_floor=0.4 if when == "then" else 0.001)
    found = verdict(SLOWER, evidence(latency=latency), past)

    assert found.verdict == "PASS"
    assert (found.floor or 0) > 30
    assert "the noise floor, as it is above 5.00 %" in found.reason


def test_on_another_machine_ratios_to_the_teacher_are_compared(
    evidence: Make, baseline: Remember, verdict: Judge, timing: Callable[..., Timing]
) -> None:
    """All is three times slower there: no regression. The artifact alone slower: one."""
    past = baseline(evidence())

    def now(artifact: float) -> Verdict:
        latency = {"artifact": timing(artifact, 5), "teacher": timing(18.0, 5)}
        return verdict(SLOWER, evidence(latency=latency, machine={"cpu": "another"}), past)

    assert (now(3.0).verdict, now(3.9).verdict) == ("PASS", "FAIL")
    assert "on another machine, so both in relation to the teacher" in now(3.0).reason


def test_ratios_to_the_teacher_carry_the_doubt_of_all_four(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """Welch's interval of a sum of four means, written out."""
    from scipy.stats import t

    old = {"artifact": LogMean(0.0, 0.0004, 10), "teacher": LogMean(2.0, 0.0009, 8)}
    found = evidence(machine={"cpu": "another"})
    judged = verdict(SLOWER, found, baseline(evidence(), latency=old))
    logs = {
        role: np.log(list(found.latency[role].processes)).mean(axis=1)
        for role in ("artifact", "teacher")
    }
    now = [(x.mean(), x.var(ddof=1), x.size) for x in logs.values()]
    (a, va, na), (c, vc, nc) = now
    change = (a - c) - (0.0 - 2.0)
    errors = np.array([0.0004 / 10, 0.0009 / 8, va / na, vc / nc])
    freedom = errors.sum() ** 2 / (errors**2 / (np.array([10, 8, na, nc]) - 1)).sum()
    reach = t.ppf(1 - REGRESSION_LEVEL, freedom) * math.sqrt(errors.sum())

    assert judged.measured == pytest.approx(100 * (math.exp(change) - 1))
    assert judged.low == pytest.approx(100 * (math.exp(change - reach) - 1))
    assert judged.high == pytest.approx(100 * (math.exp(change + reach) - 1))


def test_memory_of_another_machine_is_not_compared(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """Other kernels take other memory; on the same machine twice as much is a regression."""
    rule = {"metric": "memory_bytes", "percent-max-degradation": 10.0, "against": "baseline"}
    found = evidence()
    double = replace(found, memory={"artifact": 2 * found.memory["artifact"]})
    other = verdict(rule, replace(found, machine={"cpu": "another"}), baseline(found))

    assert verdict(rule, found, baseline(found)).verdict == "PASS"
    assert verdict(rule, double, baseline(found)).verdict == "FAIL"
    assert "memory_bytes is that of another machine; update the baseline here" in other.reason


def test_memory_that_is_skewed_is_no_regression(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """A median of then beside a mean of now would fail in one of 50 runs that are alike."""
    rule = {"metric": "memory_bytes", "percent-max-degradation": 0.0, "against": "baseline"}
    rng, alike = np.random.default_rng(3), evidence(n=4, decisions=None)
    failed = 0
    for _ in range(400):
        then, now = (
            replace(alike, memory={"artifact": 5e6 * (1 + 0.05 * rng.exponential(size=20))})
            for _ in range(2)
        )
        failed += verdict(rule, now, baseline(then)).verdict == "FAIL"

    assert failed <= 2


def test_a_size_is_compared_as_it_is(evidence: Make, baseline: Remember, verdict: Judge) -> None:
    """2 % more bytes than then are over the limit of 1 %; there is no doubt to be had."""
    values = {**evidence().values, "size_bytes": 102_000.0}
    found = verdict(LARGER, evidence(values=values), baseline(evidence()))
    less = verdict(LARGER, evidence(values={**values, "size_bytes": 9e4}), baseline(evidence()))

    assert (found.verdict, found.measured) == ("FAIL", pytest.approx(2.0))
    assert "size above that of the baseline 2.00 % (exact) breaks" in found.reason
    assert (less.verdict, bool(less.note)) == ("PASS", True)


def test_a_size_on_the_limit_keeps_it(evidence: Make, baseline: Remember, verdict: Judge) -> None:
    """101,000 bytes are 1 % above 100,000, and 1.01 - 1 is a little more."""
    for size, word in ((101_000.0, "PASS"), (101_001.0, "FAIL")):
        found = evidence(values={**evidence().values, "size_bytes": size})
        assert verdict(LARGER, found, baseline(evidence())).verdict == word


def test_what_shall_be_better_than_then_is_proven(
    evidence: Make, baseline: Remember, verdict: Judge
) -> None:
    """A gain over the baseline is a proof: the same artifact has none."""
    rule = {"metric": "accuracy", "min-improvement": 0.01, "against": "baseline"}
    past = baseline(evidence(100, 0))

    assert verdict(rule, evidence(0, 0), past).verdict == "PASS"
    assert verdict(rule, evidence(100, 0), past).verdict == "FAIL"
    assert verdict(rule, evidence(100, 0), past).family == "proof"


# --- what is not there --------------------------------------------------------------------------


def test_without_a_baseline_a_rule_says_what_to_type(evidence: Make, verdict: Judge) -> None:
    """Nothing to compare with is nothing proven."""
    found = verdict(DROP, evidence())

    assert found.verdict == "FAIL"
    assert "there is no baseline; `kdpipe gate RUN --update-baseline` writes one" in found.reason


def test_a_new_artifact_has_no_past(evidence: Make, baseline: Remember, verdict: Judge) -> None:
    """Beside one that the baseline knows it gets no verdict; alone, or named, it fails."""
    new = evidence(artifact="onnxruntime-int8", target="onnxruntime")
    past = baseline(evidence())
    both = judge([Rule.model_validate(DROP)], [evidence(), new], past)
    alone = verdict(DROP, new, past)
    named = verdict({**DROP, "target": "onnxruntime"}, new, past)

    assert [found.artifact for found in both] == ["openvino-int8"]
    assert (alone.verdict, named.verdict) == ("FAIL", "FAIL")
    assert "onnxruntime-int8 is new: the baseline has openvino-int8" in alone.reason


# --- as a family --------------------------------------------------------------------------------


def test_many_rules_share_the_level(evidence: Make, baseline: Remember) -> None:
    """Each of two rules with doubt gets half of it; advice has a level of its own."""
    rules = [Rule.model_validate(rule) for rule in (DROP, SLOWER, LARGER)]
    advice = Rule.model_validate({**DROP, "required": False})
    found = judge([*rules, advice], [evidence()], baseline(evidence()))

    expected = [1 - REGRESSION_LEVEL / 2, 1 - REGRESSION_LEVEL / 2, None, 1 - REGRESSION_LEVEL]
    assert [one.confidence for one in found] == expected
    assert [one.power for one in found] == [one or 1.0 for one in expected]


def test_a_proven_loss_leaves_its_share_to_the_others(
    evidence: Make, baseline: Remember, timing: Callable[..., Timing]
) -> None:
    """Holm: once the slowdown is proven, the drop is tested at the whole level."""
    latency = {"artifact": timing(1.5, 5), "teacher": timing(6.0, 5)}
    rules = [Rule.model_validate(rule) for rule in (DROP, SLOWER)]
    found = judge(rules, [evidence(latency=latency)], baseline(evidence()))

    assert [(one.verdict, one.confidence) for one in found] == [
        ("PASS", 1 - REGRESSION_LEVEL),
        ("FAIL", 1 - REGRESSION_LEVEL / 2),
    ]


@pytest.mark.parametrize("losses", [6, 7, 8, 9, 10, 12])
def test_the_family_fails_as_holm_s_p_values_do(
    losses: int, evidence: Make, baseline: Remember, timing: Callable[..., Timing]
) -> None:
    """The procedure on bounds is the procedure on p values, near the edge, too."""
    from kdpipe.stages.statistics import holm, latency_ratio, p_above, paired_drop

    past, now = evidence(0, 0), evidence(losses, 0)
    latency = {"artifact": timing(1.065 + losses / 2000, 5), "teacher": timing(6.0, 5)}
    now = replace(now, latency=latency)
    rules = [Rule.model_validate(rule) for rule in (DROP, SLOWER)]
    found = judge(rules, [now], baseline(past))
    sides = now.latency["artifact"].processes, past.latency["artifact"].processes
    p_values = [
        p_above(lambda c: paired_drop(past.score, now.score, c), 0.0),
        p_above(lambda c: latency_ratio(sides[0], sides[1], c), 1.05),
    ]

    failed = holm(p_values, REGRESSION_LEVEL)
    assert [one.verdict == "FAIL" for one in found] == failed


def test_standing_rules_of_a_baseline(evidence: Make, baseline: Remember) -> None:
    """They hold beside the user's own for all that the baseline knows, and are marked."""
    own = [Rule.model_validate({"metric": "accuracy", "min": 0.9})]
    fp32 = evidence(artifact="openvino-fp32", precision="fp32")
    past = baseline(evidence())
    found = judge(own, [evidence(), fp32], past, (*STANDING_RULES, *BASELINE_RULES))

    said = [(one.artifact, one.metric, one.standing) for one in found]
    assert said == [
        ("openvino-int8", "accuracy", False),
        ("openvino-fp32", "accuracy", False),
        ("openvino-int8", "speedup", True),
        ("openvino-int8", "int8_fraction", True),
        ("openvino-int8", "accuracy", True),
        ("openvino-int8", "latency_mean_ms", True),
        ("openvino-int8", "size_bytes", True),
    ]


def test_own_rules_replace_standing_ones_for_their_artifacts(
    evidence: Make, baseline: Remember
) -> None:
    """A rule for one target leaves the standing one to the others."""
    own = Rule.model_validate({"metric": "int8_fraction", "min": 0.1, "target": "openvino"})
    other = evidence(artifact="onnxruntime-int8", target="onnxruntime")
    half = evidence(artifact="openvino-bf16", precision="bf16")
    found = judge([own], [evidence(), other, half], None, STANDING_RULES[1:])

    assert [(one.artifact, one.limit, one.standing) for one in found] == [
        ("openvino-int8", 0.1, False),
        ("onnxruntime-int8", 0.5, True),
    ]
