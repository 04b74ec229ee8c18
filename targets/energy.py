"""How much energy one call of a model takes, in fresh processes; `measure.py` times them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.targets.process import Job, Progress, ask

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class CallEnergy:
    """Energy of one call, a value for each fresh process; `unavailable` says why there is none.

    `net_mj`: (n,) millijoules above idling. `gross_mj`: (n,) with it. `idle_w`: (n,) watts while
    nothing ran. `calls`: how many, in all. `sensor` and `what`: where the numbers come from.
    """

    net_mj: NDArray[np.float64]
    gross_mj: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    calls: int = 0
    sensor: str = ""
    what: str = ""
    unavailable: str = ""


def call_energy(
    job: Job,
    *,
    processes: int = 3,
    seconds: float = 2.0,
    idle_seconds: float = 1.0,
    timeout: float = 600.0,
    on_progress: Progress = lambda done, total, note: None,
) -> CallEnergy:
    """Have fresh processes idle, then run the artifact, each while a sensor is read.

    The first process that has no sensor ends it: no other would have one. Raises StageError when a
    process fails or takes longer than `timeout` seconds.
    """
    order = {"order": "energy", "seconds": seconds, "idle_seconds": idle_seconds}
    answers = []
    for done in range(processes):
        answer = ask(job, order, timeout)
        if why := answer.get("unavailable"):
            return CallEnergy(np.empty(0), np.empty(0), np.empty(0), unavailable=str(why))
        answers.append(answer)
        on_progress(done + 1, processes, f"{answer['energy_mj']:.3g} mJ")
    net, gross, idle = (
        np.array([answer[name] for answer in answers], dtype=np.float64)
        for name in ("energy_mj", "gross_mj", "idle_w")
    )
    calls = sum(answer["calls"] for answer in answers)
    return CallEnergy(net, gross, idle, calls, answers[0]["sensor"], answers[0]["what"])
