"""What the YAML of a rule may say, and how it is told what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.stages.gate.rules import DEFAULT_RULES, METRICS, Rule
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
        ({"metric": "accuracy", "min": 0.9, "against": "fp32"}, "is for speedup only"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 0.5}, "greater than 0.5"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 1}, "less than 1"),
        ({"metric": "accuracy", "min": 0.9, "confidence": 95}, "less than 1"),
        ({"metric": "accuracy", "min": "0.9"}, "valid number"),
        ({"metric": "speedup", "min": True}, "valid number"),
        ({"metric": "speedup", "min": float("nan")}, "finite number"),
        ({"metric": "size_bytes", "max": float("inf")}, "finite number"),
        ({"metric": "accuracy", "max_degradation": 0.01}, "Extra inputs"),
        ({"metric": "speedup", "min": 2, "against": "student"}, "'teacher' or 'fp32'"),
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
    shared = {"metric": "accuracy", "target": "openvino", "against": "teacher", "confidence": 0.95}
    assert [part.as_dict() for part in rule.parts()] == [
        {**shared, "min": 0.9},
        {**shared, "max-degradation": 0.02},
    ]


@pytest.mark.parametrize("task", TASKS)
def test_the_headline_metric_of_each_task_can_be_ruled(task: Any) -> None:
    """A new task brings its metric along; nothing has to be listed here."""
    assert METRICS[task.metric] == METRICS["score"]


def test_the_default_rules_need_no_task_and_no_product() -> None:
    """At most one point lost, whatever the metric; compression must pay, and really be int8."""
    assert [(rule.metric, rule.against, rule.limits) for rule in DEFAULT_RULES] == [
        ("score", "teacher", {"max-degradation": 0.01}),
        ("speedup", "fp32", {"min": 1.0}),
        ("int8_fraction", "teacher", {"min": 0.5}),
    ]


def test_a_rule_cannot_be_changed() -> None:
    """What was judged is what was written."""
    with pytest.raises(ValidationError, match="frozen"):
        DEFAULT_RULES[0].metric = "accuracy"
