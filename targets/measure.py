"""Times artifacts in fresh processes, interleaved; worker.py is what runs in each of them.

The process is the sample. Latencies inside one process hang together (its memory layout, its
clocks), so ten processes say more than ten thousand iterations; and artifacts that are compared
take turns in random order, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kdpipe.targets.disturbances import disturbances
from kdpipe.targets.memory import Memory as Memory
from kdpipe.targets.memory import peak_memory as peak_memory
from kdpipe.targets.process import Around as Around
from kdpipe.targets.process import Job as Job
from kdpipe.targets.process import Progress, ask

if TYPE_CHECKING:
    from numpy.typing import NDArray

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Process:
    """What one fresh process measured.

    `latency_ms`: (n,) milliseconds of each call in order. `load_ms`: importing the runtime and
    loading the artifact. `first_ms`: the first call. `steady`: whether the warm-up settled.
    `position`: its place in the order in which all processes ran, from 0. `cores`: on which it
    could run. `conditions`: what happened on the machine while it timed, see `conditions.between`.
    `preprocess_ms`, `decision_ms`: (m,) of each call of what is around the model, None where that
    was not asked for.
    """

    latency_ms: NDArray[np.float64]
    load_ms: float
    first_ms: float
    steady: bool
    position: int
    cores: tuple[int, ...] = ()
    conditions: Mapping[str, float] = field(default_factory=dict)
    preprocess_ms: NDArray[np.float64] | None = None
    decision_ms: NDArray[np.float64] | None = None

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What was out of the ordinary meanwhile, a sentence each; it counts all the same."""
        return disturbances(self.conditions)


def time_processes(
    jobs: Mapping[str, Job],
    *,
    processes: int = 10,
    iterations: int = 100,
    seconds: float = 0.5,
    warmup_seconds: float = 0.2,
    seed: int = 0,
    timeout: float = 600.0,
    on_progress: Progress = lambda done, total, note: None,
) -> dict[str, tuple[Process, ...]]:
    """Time every job in `processes` fresh processes, one at a time; {name: one Process each}.

    In each of `processes` rounds all jobs run once, in an order shuffled by `seed`. Each process
    warms up, then runs until both `iterations` calls are made and `seconds` have passed (see
    device/timing.py), one sample at a time or the batch that is compiled in. Inside the clock is
    `Session.run`: the check of the input, what the runtime copies of it, the model, and the copy
    of its output; not the preprocessing. Raises StageError when a process fails or takes longer
    than `timeout` seconds.
    """
    effort = {"iterations": iterations, "seconds": seconds, "warmup_seconds": warmup_seconds}
    found: dict[str, list[Process]] = {name: [] for name in jobs}
    order = interleaved(list(jobs), processes, seed)
    for position, name in enumerate(order):
        answer = ask(jobs[name], {"order": "time", **effort}, timeout)
        run = _process(answer, position)
        found[name].append(run)
        on_progress(position + 1, len(order), f"{name} {np.median(run.latency_ms):.3g} ms")
    return {name: tuple(runs) for name, runs in found.items()}


def interleaved(names: Sequence[Name], rounds: int, seed: int) -> list[Name]:
    """Every name once per round, each round in a random order of its own.

    Example: interleaved(["a", "b"], 3, 0) -> ["b", "a", "a", "b", "b", "a"]
    """
    shuffler = random.Random(seed)
    return [name for _ in range(rounds) for name in shuffler.sample(names, len(names))]


def _process(answer: Mapping[str, Any], position: int) -> Process:
    """An answer of `orders.time_artifact`, with its lists as arrays."""
    around = {name: answer.get(name) for name in ("preprocess_ms", "decision_ms")}
    return Process(
        latency_ms=np.array(answer["latency_ms"], dtype=np.float64),
        load_ms=answer["load_ms"],
        first_ms=answer["first_ms"],
        steady=answer["steady"],
        position=position,
        cores=tuple(answer["cores"]),
        conditions=answer["conditions"],
        **{name: None if ms is None else np.array(ms) for name, ms in around.items()},
    )
