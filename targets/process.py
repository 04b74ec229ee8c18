"""One fresh process for one measurement; worker.py is what runs in it.

The other side of a pipe: an order as JSON goes in, an answer as JSON comes out, and nothing is
left behind, however this process ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.targets.base import Target
from kdpipe.targets.errors import StageError

Progress = Callable[[int, int, str], None]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_QUOTED_LINES = 8
_QUOTED = 200
"""Characters of an answer that is none."""
_KILL = 9


@dataclass(frozen=True)
class Around:
    """What an application does before and after each call of a model.

    `pixels`: an .npy file of raw images, uint8 (N, H, W, C). `preprocess`: what
    `device.preprocess.Preprocess.from_dict` takes. `decision`: how an output becomes an answer, a
    key of `device.decision.DECISIONS` such as `argmax over axis 1`.
    """

    pixels: Path
    preprocess: Mapping[str, Any]
    decision: str


@dataclass(frozen=True)
class Job:
    """What to measure: an artifact of a target, on the samples of an .npy file (N, ...).

    `around`: what is timed beside the model, if anything. `cores`: on which alone the process may
    run, None for all that this process may use.
    """

    target: Target
    artifact: Path
    inputs: Path
    around: Around | None = None
    cores: tuple[int, ...] | None = None


def ask(job: Job, order: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Have a fresh process carry out `order`, one of `orders.ORDERS`; its answer.

    Raises StageError when the process fails, takes longer than `timeout` seconds, or ends without
    an answer.
    """
    question = json.dumps({**order, **_described(job), "parent": os.getpid()})
    code, answer, chatter = _talk(job, question, timeout)
    said = "\n".join(chatter.strip().splitlines()[-_QUOTED_LINES:]) or "no message"
    if code != 0:
        what = f"measuring {job.target.id} failed in its process ({_ending(code)})"
        raise StageError(what, found=f"{job.artifact}: {said}")
    try:
        result: dict[str, Any] = json.loads(answer)
    except ValueError as error:  # the runtime ended the process, or wrote where it must not
        what = f"measuring {job.target.id} ended without an answer"
        raise StageError(what, found=f"{job.artifact}: {answer[:_QUOTED] or said}") from error
    return result


def _talk(job: Job, question: str, timeout: float) -> tuple[int, str, str]:
    """Start the process, send the order, wait: its exit code, its answer, what it said beside."""
    threads = dict.fromkeys(_THREAD_VARIABLES, str(job.target.threads))
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "kdpipe.targets.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **threads},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        answer, chatter = worker.communicate(question, timeout)
    except subprocess.TimeoutExpired as error:
        _end(worker)
        raise StageError(
            f"measuring {job.target.id} took longer than {timeout:g} s",
            found=str(job.artifact),
            fix="ask for fewer calls in a process, or for a smaller batch",
        ) from error
    except BaseException:  # such as Ctrl-C, which the worker's own session does not hear of
        _end(worker)
        raise
    return worker.returncode, answer, chatter


def _ending(code: int) -> str:
    """Example: _ending(-9) -> killed by SIGKILL, as where memory runs out"""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}{', as where memory runs out' if -code == _KILL else ''}"


def _described(job: Job) -> dict[str, Any]:
    """The job as JSON, with paths that hold in any folder."""
    around = job.around and {
        "pixels": str(job.around.pixels.resolve()),
        "preprocess": dict(job.around.preprocess),
        "decision": job.around.decision,
    }
    return {
        "target": job.target.model_dump(mode="json"),
        "artifact": str(job.artifact.resolve()),
        "inputs": str(job.inputs.resolve()),
        "around": around,
        "cores": job.cores,
    }


def _end(worker: subprocess.Popen[str]) -> None:
    """Kill the worker and all it started, which may have outlived it, and reap it."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    for stream in (worker.stdin, worker.stdout, worker.stderr):
        if stream:
            with suppress(BrokenPipeError):  # of an order that was not read
                stream.close()
