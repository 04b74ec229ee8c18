"""Verdicts on evidence: what passes, what fails, what cannot be decided, and what is said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.judge import MEASURES, Verdict, judge
from kdpipe.stages.gate.rules import DEFAULT_RULES, METRICS, Rule

VALUES = {
    "size_bytes": 100_000.0,
    "teacher_size_bytes": 1_000_000.0,
    "parameters": 90_000.0,
    "int8_fraction": 0.9,
}
MEMORY = {"artifact": np.array([5.01e6, 4.99e6, 5.0e6])}


def pairs(losses: int, gains: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """0/1 scores of teacher and artifact with so many samples that only one gets right."""
    teacher, student = np.ones(n, np.float32), np.ones(n, np.float32)
    student[:losses] = 0
    teacher[losses : losses + gains] = 0
    return teacher, student


def timing(scale: float, processes: int = 10, each: int = 100, seed: int = 0) -> Timing:
    """Latencies around `scale` ms: 1 % between processes, 2 % inside one."""
    rng = np.random.default_rng([seed, int(1000 * scale)])
    levels = scale * np.exp(0.01 * rng.standard_normal(processes))
    return Timing(tuple(level * np.exp(0.02 * rng.standard_normal(each)) for level in levels))


def evidence(**changes: Any) -> Evidence:
    """An int8 artifact: no drop on 2,000 samples, 6 times faster, 10 times smaller."""
    teacher, student = pairs(10, 10, 2000)
    measured: dict[str, Any] = {
        "artifact": "openvino-int8",
        "target": "openvino",
        "precision": "int8",
        "metric": "accuracy",
        "score": student,
        "teacher_score": teacher,
        "agreement": np.repeat(np.float32([1, 0]), [1980, 20]),
        "latency": {"artifact": timing(1.0), "fp32": timing(2.0), "teacher": timing(6.0)},
        "values": VALUES,
        "memory": MEMORY,
    }
    return Evidence(**{**measured, **changes})


def scored(losses: int, gains: int, n: int) -> Evidence:
    """Evidence whose artifact loses and wins so many of n samples."""
    teacher, student = pairs(losses, gains, n)
    return evidence(score=student, teacher_score=teacher)


def verdict(rule: dict[str, Any], found: Evidence) -> Verdict:
    """The only verdict of one rule on one artifact."""
    (only,) = judge([Rule.model_validate(rule)], [found])
    return only


def bounds(found: Verdict) -> str:
    """Its bounds as a sentence shows them: four decimals, rounded outwards."""
    assert found.low is not None
    assert found.high is not None
    low, high = math.floor(found.low * 1e4) / 1e4, math.ceil(found.high * 1e4) / 1e4
    return f"95 % bounds {low:.4f} to {high:.4f}"


DROP = {"metric": "accuracy", "max-degradation": 0.01}


# --- one test per path --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "gains", "n", "word"),
    [(10, 10, 2000, "PASS"), (70, 10, 2000, "FAIL"), (10, 10, 450, "UNDECIDED")],
)
def test_a_drop_is_judged_by_its_bounds(losses: int, gains: int, n: int, word: str) -> None:
    """Under the margin for certain, over it for certain, or neither."""
    found = verdict(DROP, scored(losses, gains, n))
    assert found.verdict == word
    assert found.measured == pytest.approx((losses - gains) / n)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.measured < found.high


def test_what_450_samples_cannot_decide_is_said_with_the_number_that_can() -> None:
    """No loss seen at 4.4 % disagreement: 2,828 samples would decide one point."""
    found = verdict(DROP, scored(10, 10, 450))
    assert found.needed == 2828
    assert found.reason == (
        f"accuracy drop against the teacher 0.0000 ({bounds(found)}, 450 samples) "
        "cannot be told from the limit of at most 0.0100: about 2,828 samples would decide"
    )


def test_a_drop_over_the_margin_is_not_promised_to_pass() -> None:
    """Undecided, but more samples would rather prove the failure; the sentence says so."""
    found = verdict(DROP, scored(9, 1, 450))
    assert found.verdict == "UNDECIDED"
    assert found.needed is not None
    assert "as measured it does not keep it" in found.reason


def test_a_drop_right_on_the_margin_is_never_decided() -> None:
    """No number is invented where the plan would divide by zero."""
    found = verdict({"metric": "accuracy", "max-degradation": 0.0625}, scored(2, 0, 32))
    assert (found.verdict, found.needed) == ("UNDECIDED", None)
    assert "no number of measurements decides" in found.reason


def test_zero_disagreements_on_fifty_samples_prove_nothing() -> None:
    """An interval of no width would pass; the exact bound asks for 299 samples."""
    found = verdict(DROP, scored(0, 0, 50))
    assert (found.verdict, found.needed, found.n) == ("UNDECIDED", 299, 50)
    assert verdict(DROP, scored(0, 0, 299)).verdict == "PASS"


def test_a_relative_drop_is_in_percent_of_the_teacher() -> None:
    """40 of 2,000 net losses against a teacher of 50 % are 4 % of it, 2 points."""
    teacher, student = pairs(60, 20, 2000)
    teacher[1000:], student[1000:] = 0, 0
    base = 100 / float(teacher.mean())
    found = evidence(score=student, teacher_score=teacher)
    relative = verdict({"metric": "accuracy", "percent-max-degradation": 2}, found)
    absolute = verdict({"metric": "accuracy", "max-degradation": 2 / base}, found)
    assert relative.measured == pytest.approx(0.02 * base)
    assert (relative.unit, relative.verdict) == ("%", "FAIL")
    assert absolute.verdict == "FAIL"
    assert relative.low == pytest.approx((absolute.low or 0) * base)
    assert verdict({"metric": "accuracy", "percent-max-degradation": 9}, found).verdict == "PASS"


@pytest.mark.parametrize(("least", "word"), [(0.98, "PASS"), (0.999, "FAIL"), (0.995, "UNDECIDED")])
def test_a_least_accuracy_is_judged_by_its_bounds(least: float, word: str) -> None:
    """1,990 right of 2,000 are over 0.98, under 0.999, and 0.995 is what was measured."""
    assert verdict({"metric": "accuracy", "min": least}, evidence()).verdict == word


@pytest.mark.parametrize(("least", "word"), [(0.98, "PASS"), (0.999, "FAIL"), (0.989, "UNDECIDED")])
def test_agreement_is_judged_by_its_bounds(least: float, word: str) -> None:
    """1,980 same answers of 2,000."""
    found = verdict({"metric": "agreement", "min": least}, evidence())
    assert (found.verdict, found.measured) == (word, pytest.approx(0.99))


@pytest.mark.parametrize(
    ("against", "least", "word"),
    [
        ("teacher", 5.0, "PASS"),
        ("teacher", 7.0, "FAIL"),
        ("fp32", 1.5, "PASS"),
        ("fp32", 2.5, "FAIL"),
    ],
)
def test_a_speedup_is_judged_against_teacher_or_twin(against: str, least: float, word: str) -> None:
    """Six times the teacher, twice the fp32 twin."""
    found = verdict({"metric": "speedup", "min": least, "against": against}, evidence())
    assert (found.verdict, found.n, found.counted) == (word, 10, "processes")


def test_a_speedup_inside_the_noise_is_undecided() -> None:
    """As fast as its twin: neither proven faster nor slower, and a number of processes is named."""
    same = {"artifact": timing(1.0, seed=5), "fp32": timing(1.0, seed=6)}
    found = verdict({"metric": "speedup", "min": 1.0, "against": "fp32"}, evidence(latency=same))
    assert found.verdict == "UNDECIDED"
    assert found.needed is not None
    assert found.needed > 10
    assert f"{found.needed:,} processes would" in found.reason


@pytest.mark.parametrize("metric", ["latency_mean_ms", "latency_p50_ms", "latency_p99_ms"])
@pytest.mark.parametrize(("most", "word"), [(1.5, "PASS"), (0.5, "FAIL")])
def test_a_latency_is_judged_by_its_bounds(metric: str, most: float, word: str) -> None:
    """About 1 ms is under 1.5 ms and over 0.5 ms, in the mean and at every percentile."""
    found = verdict({"metric": metric, "max": most}, evidence())
    assert (found.verdict, found.unit) == (word, "ms")


@pytest.mark.parametrize("most", [0.5, 1.5])
def test_a_percentile_of_too_few_iterations_is_undecided(most: float) -> None:
    """58 iterations say nothing about p95, however far they lie from the limit."""
    few = evidence(latency={"artifact": timing(1.0, processes=2, each=29)})
    found = verdict({"metric": "latency_p95_ms", "max": most}, few)
    assert (found.verdict, found.n, found.needed) == ("UNDECIDED", 58, 59)
    assert (found.low, found.high) == (None, None)
    assert "at least 59 iterations are needed" in found.reason


@pytest.mark.parametrize("metric", ["latency_mean_ms", "latency_p95_ms"])
def test_one_process_is_never_enough(metric: str) -> None:
    """A thousand iterations of one process leave the spread between processes unknown."""
    one = evidence(latency={"artifact": timing(1.0, processes=1, each=1000)})
    found = verdict({"metric": metric, "max": 1.5}, one)
    assert (found.verdict, found.needed, found.counted) == ("UNDECIDED", 10, "processes")
    assert "at least 10 processes are needed" in found.reason


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"metric": "size_bytes", "max": 100_000}, "PASS"),
        ({"metric": "size_bytes", "max": 99_999}, "FAIL"),
        ({"metric": "parameters", "max": 80_000}, "FAIL"),
        ({"metric": "int8_fraction", "min": 0.9}, "PASS"),
        ({"metric": "int8_fraction", "min": 0.95}, "FAIL"),
        ({"metric": "compression", "min": 10}, "PASS"),
        ({"metric": "compression", "min": 10.5}, "FAIL"),
    ],
)
def test_single_numbers_are_compared_as_they_are(rule: dict[str, Any], word: str) -> None:
    """What is on the limit keeps it; there is no doubt to be had."""
    assert verdict(rule, evidence()).verdict == word


@pytest.mark.parametrize(
    ("most", "word"), [(6e6, "PASS"), (5.02e6, "PASS"), (5.01e6, "UNDECIDED"), (4.9e6, "FAIL")]
)
def test_memory_is_judged_by_its_bounds(most: float, word: str) -> None:
    """Three processes of about 5 MB: a t interval over them, 4.98 to 5.02."""
    found = verdict({"metric": "memory_bytes", "max": most}, evidence())
    assert (found.verdict, found.measured, found.n) == (word, 5e6, 3)
    assert found.reason.startswith(
        "memory 5,000,000 bytes (95 % bounds 4,983,141 bytes to 5,016,859 bytes, 3 processes) "
    )


@pytest.mark.parametrize("processes", [[0.0, 0.0, 0.0], [-4096.0, 8192.0, -12288.0]])
def test_a_model_that_takes_nothing_keeps_any_limit(processes: list[float]) -> None:
    """Next to an empty model a tiny one may weigh nothing, or less."""
    tiny = evidence(memory={"artifact": np.array(processes)})
    assert verdict({"metric": "memory_bytes", "max": 1e6}, tiny).verdict == "PASS"


def test_memory_of_a_single_process_is_undecided() -> None:
    """However far from the limit, one process says nothing about the next."""
    once = evidence(memory={"artifact": np.array([5e6])})
    found = verdict({"metric": "memory_bytes", "max": 1e9}, once)
    assert (found.verdict, found.low, found.high, found.needed) == ("UNDECIDED", None, None, 10)
    assert "1 process, too few for bounds" in found.reason


# --- groups -------------------------------------------------------------------------------------


def clips(number: int, bad: int) -> Evidence:
    """2,000 frames in so many clips of which some are lost throughout, decided otherwise, too."""
    groups = np.arange(2000) // (2000 // number)
    score = (groups >= bad).astype(np.float32)
    teacher = np.ones(2000, np.float32)
    return evidence(score=score, teacher_score=teacher, agreement=score, groups=groups)


GROUPED: list[dict[str, Any]] = [
    {"metric": "accuracy", "max-degradation": 0.07},
    {"metric": "accuracy", "percent-max-degradation": 7},
    {"metric": "accuracy", "min": 0.93},
    {"metric": "agreement", "min": 0.93},
]


@pytest.mark.parametrize("rule", GROUPED)
def test_frames_of_clips_are_judged_clip_by_clip(rule: dict[str, Any]) -> None:
    """5 % lost: 2,000 frames on their own prove that under 7 % are, 40 clips do not; 2,000 do."""
    frames = verdict(rule, replace(clips(40, 2), groups=None))
    found = verdict(rule, clips(40, 2))
    many = verdict(rule, clips(2000, 100))

    assert (frames.verdict, frames.n, frames.counted) == ("PASS", 2000, "samples")
    assert (found.verdict, found.n, found.counted) == ("UNDECIDED", 40, "groups")
    assert found.needed is not None
    assert 40 < found.needed < 2000
    assert f"about {found.needed:,} groups would decide" in found.reason
    assert (many.verdict, many.n) == ("PASS", 2000)


@pytest.mark.parametrize("rule", GROUPED)
def test_a_single_clip_decides_nothing(rule: dict[str, Any]) -> None:
    """2,000 frames of one clip have no spread between clips; two clips are asked for at least."""
    found = verdict(rule, clips(1, 0))
    assert (found.verdict, found.n, found.needed) == ("UNDECIDED", 1, 2)
    assert "1 group, too few for bounds" in found.reason
    assert "at least 2 groups are needed" in found.reason


def test_clips_that_all_agree_are_counted_as_clips() -> None:
    """No loss in 50 clips of 40 frames proves no more than no loss in 50 samples does."""
    found = verdict(DROP, clips(50, 0))
    assert (found.verdict, found.needed, found.n) == ("UNDECIDED", 299, 50)
    assert verdict(DROP, clips(500, 0)).verdict == "PASS"


# --- which artifacts a rule is about ------------------------------------------------------------


FP32 = evidence(artifact="openvino-fp32", precision="fp32")
OTHER = evidence(artifact="onnxruntime-int8", target="onnxruntime")
ALL = [evidence(), FP32, OTHER]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, ["openvino-int8", "openvino-fp32", "onnxruntime-int8"]),
        ("openvino", ["openvino-int8", "openvino-fp32"]),
        ("openvino-int8", ["openvino-int8"]),
    ],
)
def test_a_rule_is_about_an_artifact_a_target_or_all(
    target: str | None, expected: list[str]
) -> None:
    """A name is that of an artifact or of a target; no name means all of them."""
    rule = Rule.model_validate({**DROP, "target": target})
    assert [found.artifact for found in judge([rule], ALL)] == expected


def test_a_rule_about_nothing_fails_and_lists_what_there_is() -> None:
    """A typo in a target, or an artifact that was never made, does not pass unseen."""
    (found,) = judge([Rule.model_validate({**DROP, "target": "tensorrt"})], ALL)
    assert (found.verdict, found.artifact) == ("FAIL", "tensorrt")
    assert "openvino-int8, openvino-fp32, onnxruntime-int8" in found.reason


def test_without_artifacts_every_rule_fails() -> None:
    """Nothing measured is nothing passed."""
    found = judge(DEFAULT_RULES, [])
    assert [one.verdict for one in found] == ["FAIL"] * len(DEFAULT_RULES)
    assert "there is no artifact" in found[0].reason


def test_compression_must_pay_where_something_was_compressed() -> None:
    """A speedup over fp32 judges int8 artifacts only, and fails for an fp32 one named by hand."""
    rule = {"metric": "speedup", "min": 1.0, "against": "fp32"}
    found = judge([Rule.model_validate(rule)], ALL)
    assert [one.artifact for one in found] == ["openvino-int8", "onnxruntime-int8"]
    assert judge([Rule.model_validate(rule)], [FP32]) == []
    (named,) = judge([Rule.model_validate({**rule, "target": "openvino-fp32"})], ALL)
    assert named.verdict == "FAIL"
    assert "fp32 itself" in named.reason


def test_a_share_of_int8_is_asked_of_int8_artifacts_only() -> None:
    """An fp32 or bf16 artifact has none, and is not meant to; named by hand it fails."""
    rule = {"metric": "int8_fraction", "min": 0.5}
    half = evidence(artifact="openvino-bf16", precision="bf16", values={"int8_fraction": 0.0})
    found = judge([Rule.model_validate(rule)], [*ALL, half])
    assert [one.artifact for one in found] == ["openvino-int8", "onnxruntime-int8"]
    (named,) = judge([Rule.model_validate({**rule, "target": "openvino-bf16"})], [half])
    assert named.verdict == "FAIL"
    assert "openvino-bf16 is bf16, so none of it is meant to run in int8" in named.reason


def test_rules_about_int8_say_why_they_fail() -> None:
    """The share and the speedup over fp32 end with the diagnosis; other failures, and what
    passes, do not."""
    slow = {"artifact": timing(3.0), "fp32": timing(2.0), "teacher": timing(2.9)}
    found = evidence(latency=slow, diagnosis="in float: stem; use relu")
    rules = [
        {"metric": "int8_fraction", "min": 0.95},
        {"metric": "speedup", "min": 1.0, "against": "fp32"},
        {"metric": "speedup", "min": 1.0},
        {"metric": "int8_fraction", "min": 0.5},
    ]
    said = {number: verdict(rule, found) for number, rule in enumerate(rules)}
    assert [one.verdict for one in said.values()] == ["FAIL", "FAIL", "FAIL", "PASS"]
    ends = [one.reason.endswith("; in float: stem; use relu") for one in said.values()]
    assert ends == [True, True, False, False]


def test_each_limit_of_a_rule_gets_its_verdict() -> None:
    """One limit holds, the other does not, and each verdict carries its own rule."""
    rule = Rule.model_validate({"metric": "accuracy", "min": 0.999, "max-degradation": 0.01})
    found = judge([rule], [evidence()])
    assert [(one.verdict, one.limit) for one in found] == [("FAIL", 0.999), ("PASS", 0.01)]
    assert [Rule.model_validate(one.rule).limits for one in found] == [
        {"min": 0.999},
        {"max-degradation": 0.01},
    ]


def test_every_metric_can_be_judged() -> None:
    """Nothing that a rule may name is unknown to the gate."""
    assert set(MEASURES) == set(METRICS)


# --- error rates --------------------------------------------------------------------------------


def test_a_two_point_drop_never_passes_a_margin_of_one() -> None:
    """At 5 % disagreement on 2,000 samples, at least 99 of 100 runs do not pass."""
    counts = np.random.default_rng(1).multinomial(2000, [0.035, 0.015, 0.95], size=100)
    words = [verdict(DROP, scored(int(b), int(c), 2000)).verdict for b, c, _ in counts]
    assert words.count("PASS") <= 1


def test_an_artifact_like_its_teacher_rarely_fails() -> None:
    """No true drop, 2 % disagreement, 500 samples: at most 1 of 200 runs fails."""
    counts = np.random.default_rng(2).multinomial(500, [0.01, 0.01, 0.98], size=200)
    words = [verdict(DROP, scored(int(b), int(c), 500)).verdict for b, c, _ in counts]
    assert words.count("FAIL") <= 1


def test_a_slowdown_of_a_fifth_is_caught() -> None:
    """10 processes: an int8 artifact 20 % slower than its twin fails in at least 99 of 100 runs."""
    words = []
    for seed in range(100):
        slow = {"artifact": timing(1.2, seed=seed, each=10), "fp32": timing(1, seed=seed, each=10)}
        rule = {"metric": "speedup", "min": 1.0, "against": "fp32"}
        words.append(verdict(rule, evidence(latency=slow)).verdict)
    assert words.count("FAIL") >= 99


# --- the words ----------------------------------------------------------------------------------


def test_a_failure_is_told_in_one_sentence() -> None:
    """Number, bounds, samples and limit, in words a reader needs no manual for."""
    found = verdict(DROP, scored(70, 10, 2000))
    assert found.reason == (
        f"accuracy drop against the teacher 0.0300 ({bounds(found)}, 2,000 samples) "
        "breaks the limit of at most 0.0100"
    )


def test_the_limit_is_shown_as_it_was_written() -> None:
    """A limit finer than the usual decimals is not rounded away."""
    found = verdict({"metric": "accuracy", "max-degradation": 0.00025}, evidence())
    assert "at most 0.00025" in found.reason
