"""The rules of the gate as the YAML under `gate:` says them; `judge.py` judges by them.

A rule names a metric and at least one limit that makes sense for it. What a metric may be asked
stands in METRICS, once; everything wrong with a rule is said before anything runs.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdpipe.stages.gate.metrics import METRICS as METRICS
from kdpipe.stages.gate.metrics import PERCENTILES as PERCENTILES
from kdpipe.stages.gate.metrics import SCORE as SCORE
from kdpipe.stages.gate.metrics import SCORES as SCORES
from kdpipe.stages.gate.metrics import TIMES, Reference, unit_of
from kdpipe.stages.gate.metrics import Unit as Unit

Limit = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_CONFIDENCE = 0.95


class Rule(BaseModel):
    """One rule of the gate, for example `{metric: accuracy, max-degradation: 0.01}`.

    Several limits in one rule are judged one by one (`parts`); all of them have to hold. There is
    no rule that measures again until it passes: three tries at 5 % pass a bad artifact in up to
    one of seven runs, and on a slow machine the second try is as slow as the first. More processes
    or samples in one measurement are the honest way, and UNDECIDED says how many.
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
        description="largest loss against the reference, 0.01 = 1 point; of agreement: below what "
        "an unrelated network that is as good as the teacher would have",
    )
    percent_max_degradation: Limit | None = Field(
        None,
        alias="percent-max-degradation",
        description="largest loss, or growth of a time or size, in percent of the reference's",
    )
    min_improvement: Limit | None = Field(
        None,
        alias="min-improvement",
        description="smallest gain over the reference, 0.01 = 1 point",
    )
    min_speedup: Limit | None = Field(
        None, alias="min-speedup", description="how many times faster than the reference, at least"
    )
    against: Reference = Field(
        "teacher",
        description="the reference: the teacher, the control (the student's twin without "
        "distillation), the artifact's fp32 twin in the same runtime, or an earlier run, the "
        "baseline",
    )
    confidence: float = Field(
        _CONFIDENCE,
        gt=0.5,
        lt=1,
        strict=True,
        description="one-sided confidence of PASS and of FAIL; a loss against the baseline is "
        "judged together with all others of its kind, at 0.995 in all",
    )
    required: bool = Field(
        True, strict=True, description="false: judged and shown, but the run ends as without it"
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by their YAML names."""
        found = {
            "max": self.max,
            "min": self.min,
            "max-degradation": self.max_degradation,
            "percent-max-degradation": self.percent_max_degradation,
            "min-improvement": self.min_improvement,
            "min-speedup": self.min_speedup,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def limit(self) -> tuple[str, float]:
        """Name and value of the only limit of one of `parts`."""
        ((name, value),) = self.limits.items()
        return name, value

    @property
    def compares(self) -> bool:
        """Whether one of `parts` compares with its reference, and does not limit the value."""
        return bool(METRICS[self.metric].limits[self.limit[0]])

    @property
    def regression(self) -> bool:
        """Whether one of `parts` fails when a loss against the baseline is proven.

        All others pass when their limit is proven to hold.
        """
        return self._regresses(self.limit[0])

    def parts(self) -> tuple[Rule, ...]:
        """The same rule once for each of its limits, as each gets a verdict of its own."""
        allowed = METRICS[self.metric].limits
        shared = {k: v for k, v in self.as_dict().items() if k not in self.limits}
        alone = {k: v for k, v in shared.items() if k != "against"}

        def part(name: str, value: float) -> Rule:
            said = {**(shared if allowed[name] else alone), name: value}
            if self._regresses(name):
                del said["confidence"]
            return Rule.model_validate(said)

        return tuple(part(name, value) for name, value in self.limits.items())

    def covers(self, standing: Rule) -> bool:
        """Whether a standing rule gives way to this one, which says more of the same."""
        alike = _subject(self.metric) == _subject(standing.metric)
        return alike and self.against == standing.against

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
            self._check_reference(name)
            self._check_range(name, value)
        if self.against != "teacher" and not any(allowed[name] for name in self.limits):
            raise ValueError(self._idle_reference())
        if self.confidence != _CONFIDENCE and all(map(self._regresses, self.limits)):
            raise ValueError(
                f"'confidence: {self.confidence:g}' says nothing about a loss against the baseline:"
                " all of these are judged together, at 0.995 in all; leave it out"
            )
        return self

    def _regresses(self, limit: str) -> bool:
        """Whether a limit fails when a loss against the baseline is proven; see `regression`."""
        return self.against == "baseline" and limit.endswith("max-degradation")

    def _check_reference(self, name: str) -> None:
        """Refuse a reference that does not have what it would be compared with."""
        references = METRICS[self.metric].limits[name]
        if not references or self.against in references:
            return
        said = f"'against: {self.against}' makes no sense for '{name}' of '{self.metric}'"
        usual = f"; use {' or '.join(references)}"
        if self.against == "baseline" and self.metric in PERCENTILES:
            usual = ": a baseline keeps mean latencies; use metric: latency_mean_ms"
        raise ValueError(said + usual)

    def _idle_reference(self) -> str:
        """Why a reference that nothing is compared with is refused, and what would compare."""
        comparing = [name for name, those in METRICS[self.metric].limits.items() if those]
        limits = " and ".join(f"'{name}'" for name in self.limits)
        said = f"'against: {self.against}' says nothing about {limits} of '{self.metric}'"
        return f"{said}; {' or '.join(comparing) or 'no limit of it'} compares"

    def _check_range(self, name: str, value: float) -> None:
        """Refuse limits that every artifact keeps, or that no measurement could ever prove."""
        # A loss against the baseline fails when it is proven: there, none at all may be asked for.
        degradation = name.endswith("degradation")
        least_is_zero = degradation and self.against == "baseline"
        if value < 0 or (value == 0 and not least_is_zero):
            bound = "0 or above" if least_is_zero else "above 0"
            why = ": no number of samples can show that nothing at all is lost"
            raise ValueError(f"'{name}' must be {bound}, not {value:g}{why if degradation else ''}")
        unit = unit_of(self.metric, name)
        if unit == "%" and self.metric in SCORES and value >= 100:
            raise ValueError(f"'{name}' is a percentage below 100, not {value:g}")
        if unit == "fraction":
            self._check_fraction(name, value)

    def _check_fraction(self, name: str, value: float) -> None:
        hint = f"; write {value / 100:g} for {value:g} %" if 1 < value < 100 else ""
        if value > 1:
            raise ValueError(f"'{name}' of '{self.metric}' goes from 0 to 1{hint}")
        if value == 1 and not METRICS[self.metric].provable:
            raise ValueError(f"'{name}: 1' of '{self.metric}' can never be shown by samples")


def _subject(metric: str) -> str:
    """What a metric is about: names of the headline metric are one, and so are times."""
    return SCORE if metric in SCORES else "time" if metric in TIMES else metric


STANDING_RULES: tuple[Rule, ...] = (
    # Compression must pay: an int8 artifact that is not faster than its fp32 twin has lost
    # accuracy for nothing. It says nothing about fp32 artifacts.
    Rule.model_validate({"metric": "speedup", "min": 1.0, "against": "fp32"}),
    # Most of the work has to run in int8, or the file is int8 in name only: it pays with accuracy
    # for conversions. Half leaves room for a layer that a runtime has no kernel for; files that
    # fuse have more than 0.9, those that do not hardly any.
    Rule.model_validate({"metric": "int8_fraction", "min": 0.5}),
)
"""What holds for int8 artifacts beside the user's own rules, unless these speak of it themselves.

A rule on `int8_fraction`, or one on a time against fp32, replaces the standing one for the
artifacts that it is about. `gate: null` asks for no rule, not for these either.
"""

DEFAULT_RULES: tuple[Rule, ...] = (
    # One point of the headline metric is the loss people accept without being asked. A small
    # evaluation set cannot decide that, and then the gate says UNDECIDED, with the number.
    Rule.model_validate({"metric": SCORE, "max-degradation": 0.01}),
    # No fixed share of equal answers suits every task: a good student of a 75 % teacher may well
    # disagree on a fifth of the samples. What it must not do is agree less than a network that is
    # as good as the teacher and errs on samples of its own would, teacher_score^2 (less the same
    # point as above): it would be another network than the one that was approved, by the same
    # number. Students that imitate err where the teacher errs, so good ones are far above it.
    Rule.model_validate({"metric": "agreement", "max-degradation": 0.01}),
    *STANDING_RULES,
)
"""What holds when the config has no `gate:`. Latency and size depend on the product."""

BASELINE_RULES: tuple[Rule, ...] = (
    # No loss beyond what chance explains, on the same samples where the baseline kept its scores.
    Rule.model_validate({"metric": SCORE, "max-degradation": 0.0, "against": "baseline"}),
    # From one day to the next the same file on the same machine differs by a few percent, which
    # the noise floor inside one run does not show.
    Rule.model_validate(
        {"metric": "latency_mean_ms", "percent-max-degradation": 5.0, "against": "baseline"}
    ),
    # A file has no noise; a percent is what another version of a runtime may add to its header.
    Rule.model_validate(
        {"metric": "size_bytes", "percent-max-degradation": 1.0, "against": "baseline"}
    ),
)
"""What holds beside the user's own rules where there is a baseline."""
