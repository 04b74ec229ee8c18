"""How much energy one call of a model takes, in fresh processes; `measure.py` times them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets.measure import Name, interleaved
from kdpipe.targets.process import Job, Progress, ask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CallEnergy:
    """Energy of one call, a value for each fresh process; `unavailable` says why there is none.

    `net_mj`: (n,) millijoules above idling. `gross_mj`: (n,) with it. `idle_w`: (n,) watts while
    nothing ran. `calls`: how many, in all. `sensor` and `what`: where the numbers come from.
    """

    net_mj: Floats
    gross_mj: Floats
    idle_w: Floats
    calls: int = 0
    sensor: str = ""
    what: str = ""
    unavailable: str = ""


def call_energy(
    jobs: Mapping[Name, Job],
    *,
    processes: int = 3,
    seconds: float = 2.0,
    idle_seconds: float = 1.0,
    seed: int = 0,
    timeout: float = 600.0,
    on_progress: Progress = lambda done, total, note: None,
) -> dict[Name, CallEnergy]:
    """Have fresh processes idle, then run an artifact, each while a sensor is read, in turns.

    A job whose sensor once gave no number is not asked again: what it has is less than was asked
    for. Raises StageError when a process fails or takes longer than `timeout` seconds.
    """
    order = {"order": "energy", "seconds": seconds, "idle_seconds": idle_seconds}
    answers: dict[Name, list[dict[str, Any]]] = {name: [] for name in jobs}
    reasons: dict[Name, str] = {}
    turns = interleaved(list(jobs), processes, seed)
    for done, name in enumerate(turns, start=1):
        if name in reasons:
            continue
        answer = ask(jobs[name], order, timeout)
        if why := answer.get("unavailable"):
            reasons[name] = str(why)
            continue
        answers[name].append(answer)
        on_progress(done, len(turns), f"{name} {answer['energy_mj']:.3g} mJ")
    return {
        name: _none(reasons[name]) if name in reasons else _energy(given)
        for name, given in answers.items()
    }


def _none(why: str) -> CallEnergy:
    return CallEnergy(np.empty(0), np.empty(0), np.empty(0), unavailable=why)


def _energy(answers: Sequence[Mapping[str, Any]]) -> CallEnergy:
    net, gross, idle = (
        np.array([answer[name] for answer in answers], dtype=np.float64)
        for name in ("energy_mj", "gross_mj", "idle_w")
    )
    calls = sum(answer["calls"] for answer in answers)
    return CallEnergy(net, gross, idle, calls, answers[0]["sensor"], answers[0]["what"])
