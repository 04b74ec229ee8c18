"""What commands rely on in a `results.json`, so that a damaged one is refused, by its place.

`docs/results.md` says what the fields mean; what is not named here is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Section = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Run(_Part):
    kdpipe: str
    config: str
    assignments: list[str]


class _Artifact(_Part):
    id: str
    target: str
    precision: str
    path: str
    sha256: str
    size_bytes: int
    samples: int
    drop: Section
    latency_ms: Section | None
    speedup: Section | None
    speedup_fp32: Section | None


class _Verdict(_Part):
    rule: Section
    artifact: str
    verdict: Literal["PASS", "FAIL", "UNDECIDED"]
    measured: float | None
    low: float | None
    high: float | None
    limit: float
    unit: str
    n: int
    reason: str


class _Gate(_Part):
    policy: list[Any]
    rules: list[_Verdict]
    skipped: list[Section]


class _Skipped(_Part):
    id: str
    target: str
    reason: str
    fix: str


class _Failed(_Part):
    step: str
    error: str
    exit_code: int


class _Results(_Part):
    run: _Run
    metric: str | None
    teacher: Section | None
    student: Section | None
    control: Section | None
    waterfall: list[Section]
    artifacts: list[_Artifact]
    skipped: list[_Skipped]
    failed: list[_Failed]
    gate: _Gate
    verdict: str
    exit_code: int
    reason: str


def fault(results: Mapping[str, Any]) -> str:
    """The first thing that is missing or wrong, with its place; empty where all is there.

    Example: gate.rules[0].reason: Field required
    """
    try:
        _Results.model_validate(results)
    except ValidationError as error:
        first = error.errors()[0]
        steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        return f"{''.join(steps).removeprefix('.')}: {first['msg']}"
    return ""
