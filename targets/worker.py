"""The fresh process in which one artifact is measured; process.py starts it and reads its answer.

`python -m kdpipe.targets.worker` takes one order as JSON on stdin and writes one line of JSON to
stdout. It imports the one runtime it measures and no other, and not torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from kdpipe.targets.errors import KdpipeError, UsageError
from kdpipe.targets.orders import ORDERS


def main() -> int:
    """Read an order, do it, answer; errors go to stderr, for process.py to quote."""
    reply = os.dup(1)
    os.dup2(2, 1)  # a runtime that chatters on stdout must not spoil the answer
    order = json.load(sys.stdin)
    _die_with_parent(order["parent"])
    try:
        if order["cores"]:
            _pin(order["cores"])
        answer = ORDERS[order["order"]](order)
    except KdpipeError as error:
        print(error, file=sys.stderr)
        return 1
    with os.fdopen(reply, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(answer) + "\n")
    return 0


def _pin(cores: Collection[int]) -> None:
    """Keep this process, and the threads that numpy may have started already, on `cores`."""
    try:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
    except OSError as error:
        raise UsageError(
            f"this process cannot run on the cores {cores}", found=str(error)
        ) from error


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, be it by SIGKILL."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked
        sys.exit("the process that asked for this measurement is gone")


if __name__ == "__main__":
    sys.exit(main())
