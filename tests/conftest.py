"""What end-to-end tests share: the command itself, and one tiny run on real digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# A runner that was started in the background ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers that run side by side have a core each; torch and the runtimes would take all of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = """\
task: classification
data: {source: digits, image_size: 16, max_train: 400, max_eval: 150}
teacher: {model: resnet8, train: {epochs: 3, batch_size: 64}}
student: {shrink: {width: 0.5}}
distill: {methods: [{kind: kd}], epochs: 3, batch_size: 64, control: {seeds: 1}}
quantize: {mode: ptq}
targets: [onnxruntime, openvino]
benchmark:
  {processes: 2, iterations: 40, seconds: 0.0, warmup_seconds: 0.0, memory_processes: 1,
   energy_processes: 0}
gate:
  - {metric: accuracy, max-degradation: 0.9}
  - {metric: size_bytes, max: 1000000}
  - {metric: speedup, min: 0.001, against: fp32}
  - {metric: int8_fraction, min: 0.1}
"""


@dataclass(frozen=True)
class Project:
    """A folder with a config and a store, and the kdpipe command run in it."""

    folder: Path

    def kdpipe(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `kdpipe` to its end."""
        return subprocess.run(
            command(arguments),
            cwd=self.folder,
            env=env(environment),
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `kdpipe` and let it run."""
        return subprocess.Popen(
            command(arguments),
            cwd=self.folder,
            env=env({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of `kdpipe` in this interpreter."""
    return [sys.executable, "-m", "kdpipe.pipeline", *arguments]


def env(extra: dict[str, str]) -> dict[str, str]:
    """This environment, with a fixed width and few threads."""
    return {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "2", **extra}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose tiny chain has run once, to PASSED."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    project = Project(folder)
    first = project.kdpipe("run", "tiny.yaml")
    assert first.returncode == 0, first.stdout + first.stderr
    (folder / "first.out").write_text(first.stdout)
    (folder / "first.err").write_text(first.stderr)
    return project
