"""The format of `kdpipe.lock.yaml`, in which a baseline is kept under version control.

One file serves all configs of a folder: {config: {artifact: what is remembered of it}}. Keys are
sorted and decimals fixed, so that the same measurements give the same bytes and a diff shows what
changed and nothing else. `baseline.py` decides what is written and when it is read.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdpipe.pipeline.diagnose import problem_at, validate
from kdpipe.pipeline.document import Document
from kdpipe.stages.gate.baseline import LogMean, Remembered
from kdpipe.targets.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

NAME = "kdpipe.lock.yaml"
SCHEMA = "kdpipe.lock/1"
MOST_SCORES = 20_000
"""Scores of more samples are not kept: 3.3 KiB of text are the most that a diff should show."""
HEADER = (
    "# What later runs are compared with. Written by `kdpipe gate RUN --update-baseline`, "
    "not by hand.\n"
)
_NEAR = 1e-6
"""Scores, and the mean that stands beside them, may differ by what rounding leaves."""

Entries = Mapping[str, Remembered]
"""What is remembered of each artifact, by its id."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Latency(_Part):
    """`ms`: the geometric mean over processes; `log_variance`: between their mean log latencies."""

    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    log_variance: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    processes: Annotated[int, Field(ge=1)]


class _Entry(_Part):
    """One artifact; `scores` holds a bit for each sample, first sample first, in base64."""

    metric: str
    score: Share
    variance: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)] | None = None
    eval_sha256: str = ""
    scores: str | None = None
    latency: dict[str, _Latency] = {}
    noise_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    values: dict[str, Finite] = {}
    machine: dict[str, Any] = {}

    @model_validator(mode="after")
    def _true(self) -> Self:
        """What was edited by hand no longer agrees with itself."""
        if self.scores is None:
            return self
        mean = float(unpacked(self.scores, self.samples).mean(dtype=np.float64))
        if abs(mean - self.score) > _NEAR:
            raise ValueError(
                f"`score` is {self.score:.9f}, and the mean of `scores` {mean:.9f}\n"
                "note: one of the two was edited"
            )
        return self


class _Lock(_Part):
    schema_: Literal["kdpipe.lock/1"] = Field(alias="schema")
    configs: dict[str, dict[str, _Entry]]


def read(path: Path) -> dict[str, dict[str, Remembered]]:
    """{config: {artifact: what is remembered}}.

    Raises UsageError when there is no such file, ConfigError naming file, line and key when it is
    damaged, of another format, or contradicts itself.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no baseline {path}", fix="kdpipe gate RUN --update-baseline writes one"
        )
    try:
        lock = _validated(Document.read(path))
    except ConfigError as error:
        fix = (
            "give a file that `kdpipe gate RUN --update-baseline` wrote; a damaged one comes back"
            f" with: git checkout -- {path}"
        )
        raise ConfigError(error.what, error.problems, fix=fix) from error
    return {
        config: {name: _remembered(name, entry) for name, entry in entries.items()}
        for config, entries in lock.configs.items()
    }


def text(configs: Mapping[str, Entries]) -> str:
    """The whole file; the same entries give the same text."""
    plain = {
        "schema": SCHEMA,
        "configs": {
            config: {name: _plain(entry) for name, entry in entries.items()}
            for config, entries in configs.items()
        },
    }
    return HEADER + yaml.dump(
        plain, Dumper=_Dumper, sort_keys=True, default_flow_style=None, width=96, allow_unicode=True
    )


def packed(scores: NDArray[np.float32] | None) -> str | None:
    """Scores of 0 and 1 as bits in base64; None where there are others, or too many of them.

    Example: packed(np.array([1, 0, 1], np.float32)) -> "oA=="
    """
    if scores is None or scores.size > MOST_SCORES or not np.isin(scores, (0, 1)).all():
        return None
    return base64.b64encode(np.packbits(scores.astype(bool)).tobytes()).decode()


def unpacked(text: str, samples: int) -> NDArray[np.float32]:
    """What `packed` was given. Raises ValueError when it is not that of so many samples."""
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"`scores` is no base64 text: {error}") from error
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    if len(content) != math.ceil(samples / 8) or bits[samples:].any():
        raise ValueError(f"`scores` holds {8 * len(content)} bits, and not those of {samples}")
    return bits[:samples].astype(np.float32)


def _validated(document: Document) -> _Lock:
    found = document.data.get("schema", SCHEMA)
    if found != SCHEMA:
        what, note = f"{found!r} is another format", f"note: this kdpipe reads {SCHEMA}"
        raise document.refuse([problem_at(document, ("schema",), what, note)])
    return validate(_Lock, document)


def _remembered(name: str, entry: _Entry) -> Remembered:
    scores = entry.scores
    return Remembered(
        artifact=name,
        metric=entry.metric,
        score=entry.score,
        variance=entry.variance,
        samples=entry.samples,
        groups=entry.groups,
        eval_sha256=entry.eval_sha256,
        scores=None if scores is None else unpacked(scores, entry.samples),
        latency={
            role: LogMean(math.log(part.ms), part.log_variance, part.processes)
            for role, part in entry.latency.items()
        },
        noise_floor=entry.noise_floor,
        values=entry.values,
        machine=entry.machine,
    )


def _plain(entry: Remembered) -> dict[str, Any]:
    """What YAML writes; what is not known is left out."""
    bits = packed(entry.scores)
    floor = entry.noise_floor
    found = {
        "metric": entry.metric,
        "score": _Decimal(entry.score, 12),
        "variance": _Decimal(entry.variance, 12),
        "samples": entry.samples,
        "groups": entry.groups,
        "eval_sha256": _Quoted(entry.eval_sha256) if entry.eval_sha256 else None,
        "scores": None if bits is None else _Quoted(bits),
        "latency": {role: _latency(logs) for role, logs in entry.latency.items()},
        "noise_floor": None if floor is None else _Decimal(floor, 6),
        "values": {name: _number(value) for name, value in entry.values.items()},
        "machine": dict(entry.machine),
    }
    return {name: value for name, value in found.items() if value not in (None, {})}


def _latency(logs: LogMean) -> dict[str, Any]:
    ms = math.exp(logs.mean)
    return {
        # 15 digits, or a run would differ from itself; the 16th differs from machine to machine.
        "ms": _Decimal(ms, max(0, 14 - math.floor(math.log10(ms)))),
        "log_variance": _Decimal(logs.variance, 12),
        "processes": logs.processes,
    }


def _number(value: float) -> Any:
    return int(value) if float(value).is_integer() else _Decimal(value, 6)


class _Decimal:
    """A number with so many decimals, however many of them are 0."""

    def __init__(self, value: float, places: int) -> None:
        self.text = f"{value:.{places}f}"


class _Quoted(str):
    """Text in quotes: a digest such as 12e34 would be read as a number."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper without anchors, which a diff would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeats are written out."""
        return True


def _decimal(dumper: yaml.SafeDumper, number: _Decimal) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:float", number.text)


def _quoted(dumper: yaml.SafeDumper, text: _Quoted) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


_Dumper.add_representer(_Decimal, _decimal)
_Dumper.add_representer(_Quoted, _quoted)
