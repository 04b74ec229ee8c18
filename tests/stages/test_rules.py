"""What the YAML of a rule may say, and how it is told what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.stages.gate.rules import DEFAULT_RULES, METRICS, STANDING_RULES, Rule
from kdpipe.stages.tasks import TASKS


@pytest.mark.parametrize(
    "yaml",
    [
        {"metric": "accuracy", "max-degradation": 0.03, "confidence": 0.99},
        {"metric": "accuracy", "percent-max-degradation": 2},
        {"metric": "accuracy", "min": 0.9, "target": "openvino-int8"},
        {"metric": "agreement", "min": 0.97},
        {"metric": "speedup", "min": 5, "against": "fp32"},
        {"metric": "latency_p95_ms", "max": 2.0, "target": "onnxruntime"},
        {"metric": "size_bytes", "max": 500_000},
        {"metric": "int8_fraction", "min": 1.0},
        {"metric": "miou", "min-improvement": 0.01, "against": "control"},
        {"metric": "score", "max-degradation": 0.0, "against": "baseline", "required": False},
        {"metric": "latency_p95_ms", "min-speedup": 2, "against": "fp32"},
        {"metric": "latency_mean_ms", "percent-max-degradation": 150.0, "against": "fp32"},
        {"metric": "agreement", "max-degradation": 0.01},
        {"metric": "worst_class_drop", "max": 0.1},
        {"metric": "energy_mj", "percent-max-degradation": 20.0, "against": "baseline"},
    ],
)
def test_a_sensible_rule_is_read_as_it_is_written(yaml: dict[str, Any]) -> None:
    """What is read, written out again, holds everything the YAML said."""
    assert yaml.items() <= Rule.model_validate(yaml).as_dict().items()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ({"metric": "acuracy", "min": 0.9}, "did you mean 'accuracy'"),
        ({"metric": "zzz", "min": 0.9}, "'zzz' is not a metric; .known: score, accuracy"),
        ({"metric": "accuracy"}, "'accuracy' needs a limit: min or max-degradation"),
        ({"metric": "accuracy", "max": 0.9}, "'max' says nothing about 'accuracy'; use min"),
        ({"metric": "speedup", "max": 5}, "'max' says nothing about 'speedup'; use min"),
        ({"metric": "latency_p95_ms", "max-degradation": 0.1}, "says nothing about 'latency_p95"),
        ({"metric": "accuracy", "min": 97}, "goes from 0 to 1; write 0.97 for 97 %"),
        ({"metric": "accuracy", "min": 1}, "can never be shown by samples"),
        ({"metric": "agreement", "min": 1.0}, "can never be shown by samples"),
        ({"metric": "accuracy", "max-degradation": 0}, "no number of samples can show"),
        ({"metric": "accuracy", "max-degradation": -0.01}, "must be above 0"),
        ({"metric": "accuracy", "percent-max-degradation": 100}, "percentage below 100"),
        ({"metric": "latency_mean_ms", "max": 0}, "must be above 0, not 0"),
        ({"metric": "accuracy", "min": 0.9, "against": "fp32"}, "says nothing about 'min' of"),
        ({"metric": "int8_fraction", "min": 0.9, "against": "fp32"}, "no limit of it compares"),
        ({"metric": "speedup", "min": 2, "against": "control"}, "use teacher or fp32 or baseline"),
        (
            {"metric": "latency_p95_ms", "min-speedup": 2, "against": "baseline"},
            "a baseline keeps mean latencies; use metric: latency_mean_ms",
        ),
        ({"metric": "compression", "min": 2, "against": "fp32"}, "use teacher"),
        ({"metric": "worst_class_drop", "max": 0.1, "against": "baseline"}, "use teacher"),
        (
            {"metric": "score", "max-degradation": 0.0, "against": "baseline", "confidence": 0.99},
            "'confidence: 0.99' says nothing about a loss against the baseline",
        ),
        ({"metric": "ece", "min": 0.1}, "'min' says nothing about 'ece'; use max"),
        ({"metric": "accuracy", "min-improvement": 0}, "must be above 0, not 0"),
        ({"metric": "accuracy", "min-improvement": 2}, "write 0.02 for 2 %"),
        ({"metric": "latency_mean_ms", "min-speedup": 0}, "must be above 0"),
        ({"metric": "latency_mean_ms", "percent-max-degradation": 0}, "must be above 0"),
        (
            {"metric": "accuracy", "max-degradation": -0.1, "against": "baseline"},
            "must be 0 or above",
        ),
        ({"metric": "throughput", "min": 9}, "'throughput' is not a metric"),
        ({"metric": "accuracy", "min": 0.9, "required": 1}, "valid boolean"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 0.5}, "greater than 0.5"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 1}, "less than 1"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 95}, "less than 1"),
        ({"metric": "accuracy", "min": "0.9"}, "valid number"),
        ({"metric": "speedup", "min": True}, "valid number"),
        ({"metric": "speedup", "min": float("nan")}, "finite number"),
        ({"metric": "size_bytes", "max": float("inf")}, "finite number"),
        ({"metric": "accuracy", "max_degradation": 0.01}, "Extra inputs"),
        ({"metric": "speedup", "min": 2, "against": "student"}, "'teacher', 'control', 'fp32'"),
        ({"min": 2}, "Field required"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(yaml: dict[str, Any], message: str) -> None:
    """Each mistake is named with what to write; nothing is mended in silence."""
    with pytest.raises(ValidationError, match=message):
        Rule.model_validate(yaml)


def test_a_rule_is_taken_apart_by_its_limits() -> None:
    """Two limits give two rules, alike in all else, that can be read back."""
    rule = Rule.model_validate(
        {"metric": "accuracy", "min": 0.9, "max-degradation": 0.02, "target": "openvino"}
    )
    shared = {
        "metric": "accuracy",
        "target": "openvino",
        "against": "teacher",
        "confidence": 0.95,
        "required": True,
    }
    assert [part.as_dict() for part in rule.parts()] == [
        {**shared, "min": 0.9},
        {**shared, "max-degradation": 0.02},
    ]


def test_only_the_limits_that_compare_keep_the_reference() -> None:
    """A least accuracy is the same against anything; the drop against the twin is not."""
    rule = Rule.model_validate(
        {"metric": "accuracy", "min": 0.9, "max-degradation": 0.02, "against": "fp32"}
    )

    assert [part.against for part in rule.parts()] == ["teacher", "fp32"]
    assert [part.compares for part in rule.parts()] == [False, True]


@pytest.mark.parametrize(
    ("yaml", "regression"),
    [
        ({"metric": "score", "max-degradation": 0.01, "against": "baseline"}, True),
        ({"metric": "size_bytes", "percent-max-degradation": 1.0, "against": "baseline"}, True),
        ({"metric": "score", "min-improvement": 0.01, "against": "baseline"}, False),
        ({"metric": "speedup", "min": 1.1, "against": "baseline"}, False),
        ({"metric": "score", "max-degradation": 0.01}, False),
    ],
)
def test_losses_against_the_baseline_are_regressions(
    yaml: dict[str, Any], regression: bool
) -> None:
    """What shall have become better since then has to be proven, as anything else."""
    assert Rule.model_validate(yaml).regression == regression


@pytest.mark.parametrize(
    ("own", "covered"),
    [
        ({"metric": "speedup", "min": 2, "against": "fp32"}, [True, False]),
        ({"metric": "latency_p95_ms", "min-speedup": 2, "against": "fp32"}, [True, False]),
        ({"metric": "speedup", "min": 2}, [False, False]),
        ({"metric": "int8_fraction", "min": 0.9}, [False, True]),
        ({"metric": "accuracy", "min": 0.9}, [False, False]),
    ],
)
def test_a_standing_rule_gives_way_to_one_that_says_more(
    own: dict[str, Any], covered: list[bool]
) -> None:
    """Whoever speaks of times against fp32, or of the share of int8, decides about that."""
    rule = Rule.model_validate(own)
    assert [rule.covers(standing) for standing in STANDING_RULES] == covered


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_limits_that_can_be_written(metric: str) -> None:
    """Each limit of the table is a rule, against each reference that the table names."""
    for limit, references in METRICS[metric].limits.items():
        for against in references or ("teacher",):
            Rule.model_validate({"metric": metric, limit: 0.5, "against": against})


@pytest.mark.parametrize("task", TASKS)
def test_the_headline_metric_of_each_task_can_be_ruled(task: Any) -> None:
    """A new task brings its metric along; nothing has to be listed here."""
    assert METRICS[task.metric] == METRICS["score"]


def test_the_default_rules_need_no_task_and_no_product() -> None:
    """At most one point lost, of score and of agreement; compression must pay, and be int8."""
    assert [(rule.metric, rule.against, rule.limits) for rule in DEFAULT_RULES] == [
        ("score", "teacher", {"max-degradation": 0.01}),
        ("agreement", "teacher", {"max-degradation": 0.01}),
        ("speedup", "fp32", {"min": 1.0}),
        ("int8_fraction", "teacher", {"min": 0.5}),
    ]


def test_a_rule_cannot_be_changed() -> None:
    """What was judged is what was written."""
    with pytest.raises(ValidationError, match="frozen"):
        DEFAULT_RULES[0].metric = "accuracy"


def test_a_confidence_is_for_the_limits_that_are_proven() -> None:
    """Of a rule with a proof and a regression, the proof alone has it."""
    rule = Rule.model_validate(
        {"metric": "score", "min": 0.9, "max-degradation": 0.01, "against": "baseline"}
        | {"confidence": 0.99}
    )

    assert [(part.limit[0], part.confidence) for part in rule.parts()] == [
        ("min", 0.99),
        ("max-degradation", 0.95),
    ]
    assert Rule.model_validate(rule.as_dict()) == rule
