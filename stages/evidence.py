"""The raw samples behind every verdict: what was measured of one artifact, next to the teacher.

Nothing here is a summary: `gate/` draws its conclusions from these samples and can do so again,
with another policy, long after the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Timing:
    """Latencies of one model in one runtime, in milliseconds: one array per fresh process.

    The process is the sample: iterations inside one process are not independent.
    """

    processes: tuple[NDArray[np.float64], ...]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """All iterations of all processes, for showing a percentile, never for testing one."""
        return np.concatenate(self.processes) if self.processes else np.empty(0)


@dataclass(frozen=True)
class Decisions:
    """What was decided on each sample, for what a mean score does not show. All are (N,).

    `labels`, `prediction` and `teacher_prediction` are class numbers, -1 where an output was not
    finite. `confidence` and `teacher_confidence`: the probability of what was predicted.
    """

    labels: NDArray[np.int64]
    prediction: NDArray[np.int64]
    teacher_prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    teacher_confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one compiled artifact; what could not be measured is absent.

    Per eval sample, paired: `score` and `teacher_score` (N,), 0.0 to 1.0. `agreement`: (N,)
    whether artifact and teacher decide the same, 0.0 to 1.0. `groups`: (N,) which samples belong
    together (a patient, a clip), None where each is on its own. `references`: (N,) scores of the
    `control` (the student's twin without distillation, quantized where the artifact is) and of
    `fp32` (the artifact's twin in the same runtime). `decisions` of a classification, with the
    names of its `classes`. `robustness`: {corruption: (score, teacher_score)} of the samples that
    were corrupted. `eval_sha256`: of ids and labels of the eval split, which says whether the
    samples of two runs are the same.

    Per fresh process: `latency`, Timing of the `artifact`, its `fp32` twin, the `teacher`, and
    `again`, the artifact a second time, interleaved in the same runtime. `memory`: bytes that the
    model of a role takes; under `peak` the artifact's process in all, under `gpu` what it holds
    there. `start`: {role: {"load_ms", "first_ms"}}. `energy_mj`: millijoules of one call, by role.

    `values`: single numbers such as `size_bytes`, `parameters`, `macs`, `int8_fraction`, and the
    same of the teacher under `teacher_size_bytes` ... `machine`: what times depend on, see
    `fingerprint.machine`, with the runtime's version. `diagnosis`: of an int8 artifact, which
    layers the runtime left in float and what to do about it. `blame`: which hop lost the score.
    Both are for the reason of a rule that fails. `leaked`: which eval samples are known from
    training, where the user let that pass; then no score is to be trusted.
    """

    artifact: str
    target: str
    precision: str
    metric: str
    score: NDArray[np.float32]
    teacher_score: NDArray[np.float32]
    agreement: NDArray[np.float32]
    groups: NDArray[np.int64] | None = None
    references: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    decisions: Decisions | None = None
    classes: tuple[str, ...] = ()
    robustness: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)
    eval_sha256: str = ""
    latency: Mapping[str, Timing] = field(default_factory=dict)
    memory: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    start: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    energy_mj: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: str = ""
    blame: str = ""
    leaked: str = ""

    def save(self, folder: Path) -> None:
        """Write `evidence.npz` (samples) and `evidence.json` (names and single numbers)."""
        arrays = {name: getattr(self, name) for name in _ALWAYS}
        if self.groups is not None:
            arrays["groups"] = self.groups
        if self.decisions is not None:
            arrays |= {f"decisions/{name}": value for name, value in vars(self.decisions).items()}
        for name, place in _BY_ROLE.items():
            arrays |= {f"{place}/{role}": value for role, value in getattr(self, name).items()}
        for name, (own, teacher) in self.robustness.items():
            arrays |= {f"robustness/{name}/own": own, f"robustness/{name}/teacher": teacher}
        for role, kinds in self.start.items():
            arrays |= {f"start/{role}/{kind}": value for kind, value in kinds.items()}
        for role, timing in self.latency.items():
            arrays |= {f"latency_ms/{role}/{n}": p for n, p in enumerate(timing.processes)}
        np.savez_compressed(folder / _SAMPLES, **arrays)
        names = {name: getattr(self, name) for name in _NAMED}
        names |= {"values": dict(self.values), "machine": dict(self.machine)}
        names["processes"] = {role: len(timing.processes) for role, timing in self.latency.items()}
        (folder / _NAMES).write_text(json.dumps(names, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; what older evidence does not have yet is None or empty."""
        names = json.loads((folder / _NAMES).read_text("utf-8"))
        processes = names.pop("processes")
        names["classes"] = tuple(names.get("classes", ()))
        with np.load(folder / _SAMPLES, allow_pickle=False) as file:
            stored = dict(file)
        decisions = _below(stored, "decisions")
        samples: dict[str, Any] = {name: stored[name] for name in _ALWAYS}
        samples |= {name: _below(stored, place) for name, place in _BY_ROLE.items()}
        return cls(
            **names,
            **samples,
            groups=stored.get("groups"),
            decisions=Decisions(**decisions) if decisions else None,
            robustness={
                name: (pair["own"], pair["teacher"])
                for name, pair in _nested(_below(stored, "robustness")).items()
            },
            start=_nested(_below(stored, "start")),
            latency={
                role: Timing(tuple(stored[f"latency_ms/{role}/{n}"] for n in range(count)))
                for role, count in processes.items()
            },
        )


_SAMPLES = "evidence.npz"
_NAMES = "evidence.json"
_ALWAYS = ("score", "teacher_score", "agreement")
_BY_ROLE = {"references": "references", "memory": "memory_bytes", "energy_mj": "energy_mj"}
_NAMED = (
    *("artifact", "target", "precision", "metric"),
    *("classes", "eval_sha256", "diagnosis", "blame", "leaked"),
)


def _below(stored: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The arrays whose names start with `folder/`, without it."""
    start = f"{folder}/"
    return {name.removeprefix(start): a for name, a in stored.items() if name.startswith(start)}


def _nested(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"a/b": x} as {"a": {"b": x}}; the last slash counts."""
    found: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        outer, _, inner = name.rpartition("/")
        found.setdefault(outer, {})[inner] = array
    return found
