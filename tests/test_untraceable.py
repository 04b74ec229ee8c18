"""Networks that nobody can trace, from the config to the gate: a module with a branch, a black box.

Both ship in int8 by `quantize: {mode: ptq, engine: onnxruntime}`.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        )
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        x = self.body(x)
        if x.sum() < 0:
            x = -x
        return self.head(x.mean((2, 3)))
"""
BRANCH = 1 + NET.splitlines().index("        if x.sum() < 0:")
TRAINED = '{model: "net.py:Net", train: {epochs: 6, batch_size: 32}}'
CONFIG = """\
task: classification
data: {source: digits, image_size: 16, max_train: 400, max_eval: 150, calibration: 64}
teacher: TEACHER
student: null
distill: null
quantize: {mode: ptq, engine: onnxruntime}
export: {exporter: torchscript}
targets: [onnxruntime, openvino]
benchmark:
  {processes: 2, memory_processes: 1, iterations: 20, seconds: 0.0, warmup_seconds: 0.0}
gate:
  - {metric: accuracy, max-degradation: 0.3}
  - {metric: agreement, min: 0.5}
  - {metric: int8_fraction, min: 1}
  - {metric: speedup, min: 0.001, against: fp32}  # such a small network is no faster in int8
"""
HOPS = ["teacher", "quantized", "onnx fp32", "onnx int8", "onnxruntime-int8", "openvino-int8"]


@pytest.fixture(scope="module")
def branching(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project whose network was trained, quantized and gated; `run.err` is what it said."""
    folder = tmp_path_factory.mktemp("branching")
    (folder / "net.py").write_text(NET)
    (folder / "chain.yaml").write_text(CONFIG.replace("TEACHER", TRAINED))
    project = replace(tiny, folder=folder)
    run = project.kdpipe("run", "chain.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "run.err").write_text(run.stderr)
    return project


def results(project: Any) -> dict[str, Any]:
    """What the project's last run found."""
    path = project.folder / ".kdpipe/runs/chain/results.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def assert_gated(project: Any) -> None:
    """Every hop was measured, the int8 files against the fp32 file, and int8 is what runs."""
    found = results(project)
    hops = {hop["hop"]: hop["accuracy"] for hop in found["waterfall"]}

    assert list(hops) == HOPS
    assert hops["quantized"] == hops["onnx int8"]  # one file, which is measured
    assert hops["quantized"] == pytest.approx(hops["onnx fp32"], abs=0.05)
    for flavour in ("cpu", "trt"):
        parity = found["parity"][f"student.int8.{flavour}"]
        assert parity["reference"] == "student.fp32.onnx"
        assert 0 < parity["mean_difference"] < 0.02 * parity["output_range"]
        assert parity["agreement"] > 0.9
    assert found["parity"]["student.fp32"]["reference"] == "PyTorch"
    assert found["quantized"]["runtime"] == "ONNX Runtime"
    assert [row["int8_fraction"] for row in found["artifacts"]] == [1.0, 1.0]


def test_a_module_with_a_branch(branching: Any) -> None:
    """It is gated like any other, and the user reads which branch was frozen."""
    warning = r"  warn    \w+ +net\.py:Net is exported by running it .*: net\.py:"
    assert re.findall(f"{warning}{BRANCH}$", (branching.folder / "run.err").read_text(), re.M)
    assert_gated(branching)


def test_a_black_box(branching: Any, tmp_path: Path) -> None:
    """The ONNX file of that network, of which nothing else is known, is teacher and what ships."""
    (exported,) = branching.folder.glob(".kdpipe/**/student.fp32.onnx")
    shutil.copyfile(exported, tmp_path / "box.onnx")
    text = CONFIG.replace("TEACHER", "{model: box.onnx}")
    (tmp_path / "chain.yaml").write_text(text.replace("export: {exporter: torchscript}\n", ""))
    project = replace(branching, folder=tmp_path)
    run = project.kdpipe("run", "chain.yaml")

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith("PASSED")
    assert_gated(project)
