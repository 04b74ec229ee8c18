"""The fresh process of a measurement: what becomes of it, and of what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.targets.base import Target
from kdpipe.targets.errors import StageError
from kdpipe.targets.measure import time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino
from kdpipe.targets.process import Job

Plugin = Callable[[str, str], type[Target]]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

CHATTY = """
import os
from pathlib import Path
from typing import Literal
from kdpipe.targets.base import Session
from kdpipe.targets.onnxruntime import OnnxRuntime
class Chatty(OnnxRuntime):
    name: Literal["chatty"] = "chatty"
    def open(self, artifact: Path) -> Session:
        print("loading", artifact, flush=True)
        os.write(1, b"words from the C++ side")
        return super().open(artifact)
"""

FAILING = """
import os, signal
from typing import Literal
from kdpipe.targets.onnxruntime import OnnxRuntime
class Failing(OnnxRuntime):
    name: Literal["failing"] = "failing"
    def open(self, artifact):
        session = super().open(artifact)
        run = session.run
        def fails(feeds):
            ENDING
            return run(feeds)
        session.run = fails
        return session
"""

MEASURE_FOR_LONG = """
import sys
from pathlib import Path
from kdpipe.targets.measure import Job, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
job = Job(OnnxRuntime(), Path(sys.argv[1]), Path(sys.argv[2]))
time_processes({"job": job}, processes=1, iterations=10**9)
"""


def workers_of(parent: int) -> list[int]:
    """Processes that `parent` started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if int(above) == parent and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_failure_quotes_the_process(inputs: Path, tmp_path: Path) -> None:
    """What the process said last is in the error, with its exit code."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")

    with pytest.raises(StageError, match="exit code 1") as caught:
        time_processes({"a": Job(OnnxRuntime(), broken, inputs)}, processes=1)

    assert "ONNX Runtime refuses broken.onnx" in caught.value.found


def test_chatter_does_not_spoil_the_answer(fp32: Path, inputs: Path, plugin: Plugin) -> None:
    """A runtime that prints to stdout, from Python and below it, is measured all the same."""
    target = plugin("chatty", CHATTY).model_validate({})

    (run,) = time_processes({"a": Job(target, fp32, inputs)}, processes=1, iterations=5)["a"]

    assert len(run.latency_ms) >= 5


@linux_only
@pytest.mark.parametrize(
    ("ending", "said", "found"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV", "no message"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, as where memory runs out", "no message"),
        ("os._exit(0)", "ended without an answer", "no message"),
        ("os.write(3, b'{\"lat'); os._exit(0)", "ended without an answer", '{"lat'),
        ("raise RuntimeError('no kernel for this')", "exit code 1", "no kernel for this"),
    ],
    ids=["crash", "memory", "silent", "garbage", "error"],
)
def test_an_artifact_that_fails_when_it_runs(
    ending: str, said: str, found: str, fp32: Path, inputs: Path, plugin: Plugin
) -> None:
    """It loads, and then its process ends in some way: an error that names file and ending."""
    target = plugin("failing", FAILING.replace("ENDING", ending)).model_validate({})

    with pytest.raises(StageError, match=said) as caught:
        time_processes({"a": Job(target, fp32, inputs)}, processes=1)

    assert "measuring failing" in caught.value.what
    assert str(fp32) in caught.value.found
    assert found in caught.value.found


@linux_only
def test_timeout_ends_the_process(job: Job) -> None:
    """A process that takes too long is an error, and is gone."""
    with pytest.raises(StageError, match=r"longer than 0\.5 s"):
        time_processes({"a": job}, processes=1, iterations=10**9, timeout=0.5)

    assert workers_of(os.getpid()) == []


@linux_only
def test_what_outlives_its_process_is_ended(
    fp32: Path, inputs: Path, plugin: Plugin, tmp_path: Path
) -> None:
    """A child of the runtime that keeps the pipe open, when the process itself is gone already."""
    note = tmp_path / "child"
    ending = (
        "child = __import__('subprocess').Popen(['sleep', '60']);"
        f" open({str(note)!r}, 'w').write(str(child.pid)); os._exit(0)"
    )
    target = plugin("failing", FAILING.replace("ENDING", ending)).model_validate({})

    with pytest.raises(StageError, match=r"longer than 6 s"):
        time_processes({"a": Job(target, fp32, inputs)}, processes=1, timeout=6)

    deadline = time.monotonic() + 20
    while alive(int(note.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(note.read_text()))


@linux_only
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(job: Job, how: signal.Signals) -> None:
    """However the parent ends, the process that measures ends as well."""
    parent = subprocess.Popen(
        [sys.executable, "-c", MEASURE_FOR_LONG, job.artifact, job.inputs],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (workers := workers_of(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(how)
    parent.wait(10)
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert workers
    assert not any(map(alive, workers))


@pytest.mark.parametrize("target", [OnnxRuntime(), OpenVino()], ids=lambda target: target.name)
def test_process_does_not_import_torch(
    target: OnnxRuntime | OpenVino, fp32: Path, inputs: Path, tmp_path: Path
) -> None:
    """The process that measures loads one runtime, and neither torch, onnx nor scipy."""
    order = {
        "order": "memory",
        "cores": None,
        "parent": os.getpid(),
        "target": target.model_dump(mode="json"),
        "artifact": str(target.compile(fp32, tmp_path)),
        "inputs": str(inputs),
    }

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kdpipe.targets.worker"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
    )

    modules = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines())
    imported = {module.partition(".")[0] for module in modules}
    assert target.name in imported
    assert not {"torch", "onnx", "scipy"} & imported
