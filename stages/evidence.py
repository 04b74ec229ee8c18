"""The raw samples behind every verdict: what was measured of one artifact, next to the teacher.

Nothing here is a summary: `gate.py` draws its conclusions from these samples and can do so again,
with another policy, long after the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
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
class Evidence:
    """Everything measured of one compiled artifact.

    `score` and `teacher_score`: (N,) per-sample scores on the same eval samples, paired.
    `agreement`: (N,) whether artifact and teacher decide the same, 0.0 to 1.0.
    `groups`: (N,) which samples belong together (a patient, a clip), None where each is on its own.
    `latency`: Timing of the `artifact`, its `fp32` twin and the `teacher`, interleaved in the
    same runtime; a twin that could not be measured is absent. `values`: single numbers such as
    `size_bytes`, `memory_bytes`, `parameters`, `int8_fraction`, and the same of the teacher under
    `teacher_size_bytes` ...; what could not be measured is absent. `memory`: bytes that the model
    of a role (`artifact`, `teacher`) takes, one for each fresh process; `memory_bytes` is their
    median. `diagnosis`: of an int8 artifact, which layers the runtime left in float and what to do
    about it, for the reason of a rule that fails.
    """

    artifact: str
    target: str
    precision: str
    metric: str
    score: NDArray[np.float32]
    teacher_score: NDArray[np.float32]
    agreement: NDArray[np.float32]
    groups: NDArray[np.int64] | None = None
    latency: Mapping[str, Timing] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    diagnosis: str = ""

    def save(self, folder: Path) -> None:
        """Write `evidence.npz` (samples) and `evidence.json` (names and single numbers)."""
        arrays: dict[str, NDArray[np.generic]] = {
            "score": self.score,
            "teacher_score": self.teacher_score,
            "agreement": self.agreement,
            **({} if self.groups is None else {"groups": self.groups}),
            **{f"{_MEMORY}{role}": processes for role, processes in self.memory.items()},
            **{
                f"latency_ms/{role}/{number}": process
                for role, timing in self.latency.items()
                for number, process in enumerate(timing.processes)
            },
        }
        np.savez_compressed(folder / _SAMPLES, **arrays)  # type: ignore[arg-type]  # numpy stub
        names = {
            "artifact": self.artifact,
            "target": self.target,
            "precision": self.precision,
            "metric": self.metric,
            "values": dict(self.values),
            "diagnosis": self.diagnosis,
            "processes": {role: len(timing.processes) for role, timing in self.latency.items()},
        }
        (folder / _NAMES).write_text(json.dumps(names, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; what older evidence does not have yet is None or empty."""
        names = json.loads((folder / _NAMES).read_text("utf-8"))
        with np.load(folder / _SAMPLES, allow_pickle=False) as stored:
            latency = {
                role: Timing(tuple(stored[f"latency_ms/{role}/{n}"] for n in range(count)))
                for role, count in names.pop("processes").items()
            }
            samples = {name: stored[name] for name in ("score", "teacher_score", "agreement")}
            groups = stored.get("groups")
            memory = {
                name.removeprefix(_MEMORY): stored[name]
                for name in stored
                if name.startswith(_MEMORY)
            }
        return cls(**names, **samples, groups=groups, latency=latency, memory=memory)


_SAMPLES = "evidence.npz"
_NAMES = "evidence.json"
_MEMORY = "memory_bytes/"
