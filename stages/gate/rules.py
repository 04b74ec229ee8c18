"""The rules of the gate as the YAML under `gate:` says them; `judge.py` judges by them.

A rule names a metric and at least one limit that makes sense for it. What a metric may be asked
stands in METRICS, once; everything wrong with a rule is said before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdpipe.stages.tasks import TASKS

Unit = Literal["fraction", "%", "ms", "bytes", "parameters", "x"]
Limit = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class Metric:
    """What may be asked of a metric: its unit, and the limits that make sense for it.

    `provable`: False where a share of samples is estimated, so that a limit of exactly 1 can
    never be shown to hold, however many samples there are.
    """

    unit: Unit
    limits: tuple[str, ...]
    provable: bool = True


SCORE = "score"
"""Stands for the headline metric of whatever task the config has."""
SCORES: tuple[str, ...] = (SCORE, *(task.metric for task in TASKS))
PERCENTILES: Mapping[str, float] = {
    "latency_p50_ms": 0.50,
    "latency_p90_ms": 0.90,
    "latency_p95_ms": 0.95,
    "latency_p99_ms": 0.99,
}
METRICS: Mapping[str, Metric] = {
    **dict.fromkeys(
        SCORES, Metric("fraction", ("min", "max-degradation", "percent-max-degradation"), False)
    ),
    "agreement": Metric("fraction", ("min",), False),
    "speedup": Metric("x", ("min",)),
    "latency_mean_ms": Metric("ms", ("max",)),
    **dict.fromkeys(PERCENTILES, Metric("ms", ("max",))),
    "size_bytes": Metric("bytes", ("max",)),
    "memory_bytes": Metric("bytes", ("max",)),
    "parameters": Metric("parameters", ("max",)),
    "compression": Metric("x", ("min",)),
    "int8_fraction": Metric("fraction", ("min",)),
}


class Rule(BaseModel):
    """One rule of the gate, for example `{metric: accuracy, max-degradation: 0.01}`.

    Several limits in one rule are judged one by one (`parts`); all of them have to hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    metric: str = Field(description="what is judged; `score` is the task's headline metric")
    target: str | None = Field(
        None, description="artifact (openvino-int8) or target (openvino); by default all of them"
    )
    max: Limit | None = Field(None, description="largest value allowed, in the metric's unit")
    min: Limit | None = Field(None, description="smallest value allowed, in the metric's unit")
    max_degradation: Limit | None = Field(
        None,
        alias="max-degradation",
        description="largest loss against the teacher, 0.01 = 1 point",
    )
    percent_max_degradation: Limit | None = Field(
        None,
        alias="percent-max-degradation",
        description="largest loss in percent of the teacher's score",
    )
    against: Literal["teacher", "fp32"] = Field(
        "teacher", description="speedup only: over the teacher, or over the artifact's fp32 twin"
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, strict=True, description="one-sided confidence of PASS and of FAIL"
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by their YAML names."""
        found = {
            "max": self.max,
            "min": self.min,
            "max-degradation": self.max_degradation,
            "percent-max-degradation": self.percent_max_degradation,
        }
        return {name: value for name, value in found.items() if value is not None}

    def parts(self) -> tuple[Rule, ...]:
        """The same rule once for each of its limits, as each gets a verdict of its own."""
        shared = {k: v for k, v in self.as_dict().items() if k not in self.limits}
        return tuple(Rule.model_validate({**shared, k: v}) for k, v in self.limits.items())

    def as_dict(self) -> dict[str, object]:
        """As the YAML says it, without what is not set."""
        return self.model_dump(by_alias=True, exclude_none=True)

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric in METRICS:
            return metric
        close = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"'{metric}' is not a metric; {hint}(known: {', '.join(METRICS)})")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        allowed = METRICS[self.metric].limits
        if not self.limits:
            raise ValueError(f"'{self.metric}' needs a limit: {' or '.join(allowed)}")
        for name, value in self.limits.items():
            if name not in allowed:
                raise ValueError(
                    f"'{name}' says nothing about '{self.metric}'; use {' or '.join(allowed)}"
                )
            self._check_range(name, value)
        if self.against == "fp32" and self.metric != "speedup":
            raise ValueError(f"'against: fp32' is for speedup only, not for '{self.metric}'")
        return self

    def _check_range(self, name: str, value: float) -> None:
        """Refuse limits that every artifact keeps, or that no measurement could ever prove."""
        metric = METRICS[self.metric]
        if value <= 0:
            raise ValueError(f"'{name}' must be above 0, not {value:g}{_why(name)}")
        if name == "percent-max-degradation":
            if value >= 100:
                raise ValueError(f"'{name}' is a percentage below 100, not {value:g}")
        elif metric.unit == "fraction":
            hint = f"; write {value / 100:g} for {value:g} %" if 1 < value < 100 else ""
            if value > 1:
                raise ValueError(f"'{name}' of '{self.metric}' goes from 0 to 1{hint}")
            if value == 1 and not metric.provable:
                raise ValueError(f"'{name}: 1' of '{self.metric}' can never be shown by samples")


def _why(name: str) -> str:
    if not name.endswith("degradation"):
        return ""
    return ": no number of samples can show that nothing at all is lost"


DEFAULT_RULES: tuple[Rule, ...] = (
    # One point of the headline metric is the loss people accept without being asked. A small
    # evaluation set cannot decide that, and then the gate says UNDECIDED, with the number.
    Rule.model_validate({"metric": SCORE, "max-degradation": 0.01}),
    # Compression must pay: an int8 artifact that is not faster than its fp32 twin has lost
    # accuracy for nothing. It says nothing about fp32 artifacts.
    Rule.model_validate({"metric": "speedup", "min": 1.0, "against": "fp32"}),
    # Most of the work has to run in int8, or the file is int8 in name only: it pays with accuracy
    # for conversions. Half leaves room for a layer that a runtime has no kernel for; files that
    # fuse have more than 0.9, those that do not hardly any.
    Rule.model_validate({"metric": "int8_fraction", "min": 0.5}),
)
"""What holds when the config has no `gate:`.

Agreement with the teacher is not among them: a good student of a 75 % teacher may well disagree on
a fifth of the samples, so no number suits every task. Latency and size depend on the product.
"""
