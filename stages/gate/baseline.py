"""What an earlier run was like, as far as a later one is compared with it: the gate's memory.

Plain values without a file format: `pipeline/` reads and writes `kdpipe.lock.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LogMean:
    """Latencies in ms as their logarithms are: one value for each process, the process's mean.

    `mean` and `variance` (unbiased) of these values, and how many `processes` there were.
    """

    mean: float
    variance: float
    processes: int


@dataclass(frozen=True)
class Remembered:
    """One artifact of the earlier run.

    `score`, `variance`: mean and variance of the headline metric over `samples`, or over `groups`
    groups where there are any. `scores`: (N,) those of each sample, None where they were not kept;
    they pair with a later run whose eval split has the same `eval_sha256`. `latency`: by role
    (`artifact`, `teacher`, `fp32`). `noise_floor`: the fraction by which the same artifact differed
    from itself in that run, None where that was not measured. `values`: single numbers such as
    `size_bytes`; of `memory_bytes` and `energy_mj` the median of processes, with how many there
    were (`memory_bytes_processes`) and their standard deviation (`memory_bytes_deviation`).
    `machine`: as in `Evidence`.
    """

    artifact: str
    metric: str
    score: float
    variance: float
    samples: int
    groups: int | None = None
    eval_sha256: str = ""
    scores: NDArray[np.float32] | None = None
    latency: Mapping[str, LogMean] = field(default_factory=dict)
    noise_floor: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def same_machine(self, machine: Mapping[str, Any]) -> bool:
        """Whether times of the two runs may be compared; otherwise only ratios may."""
        return bool(self.machine) and dict(self.machine) == dict(machine)


@dataclass(frozen=True)
class Baseline:
    """The artifacts of the earlier run by id, and where they were read from, for messages."""

    artifacts: Mapping[str, Remembered]
    source: str = ""
