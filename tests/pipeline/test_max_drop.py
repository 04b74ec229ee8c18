"""`quantize.max_drop` through the command line: a layer that int8 ruins ships in float."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

RUINED = "stage1.0.body.1.conv"
TEXT = """
data: {source: digits, image_size: 16, max_train: 400, max_eval: 150}
teacher: {model: resnet8, weights: planted.safetensors}
student: null
distill: null
quantize: {mode: ptq, max_drop: 0.02}
targets: [onnxruntime]
benchmark: {processes: 2, iterations: 5, seconds: 0, warmup_seconds: 0, memory_processes: 1,
  energy_processes: 0}
gate:
  - {metric: accuracy, max-degradation: 0.3}
  - {metric: speedup, min: 0.001, against: fp32}  # such a small network is no faster in int8
"""


@pytest.fixture(scope="module")
def ran(tiny: Any) -> tuple[str, dict[str, Any]]:
    """What the command says, and results.json, of a network with weights that int8 ruins.

    They meet nothing but zeros, and are so large that all others of their channel round to 0.
    """
    stored = (tiny.folder / ".kdpipe").rglob("weights.safetensors")
    state = load_file(max(stored, key=lambda path: path.stat().st_size))
    state["stage1.0.body.0.norm.weight"][0] = 0.0
    state["stage1.0.body.0.norm.bias"][0] = -1.0
    state[f"{RUINED}.weight"][:, 0] = 1000.0
    save_file(state, tiny.folder / "planted.safetensors")
    (tiny.folder / "planted.yaml").write_text(TEXT)
    run = tiny.kdpipe("run", "planted.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    found: Path = tiny.folder / ".kdpipe/runs/planted/results.json"
    return run.stdout, json.loads(found.read_text())


def test_the_ruined_layer_ships_in_float(ran: tuple[str, dict[str, Any]]) -> None:
    """In the artifact that was measured, as ONNX Runtime runs it; all others are int8."""
    (artifact,) = ran[1]["artifacts"]
    search = ran[1]["quantized"]["search"]

    assert artifact["float_kernels"] == search["returned"] == [RUINED]
    assert search["fp32"] - search["int8"] > 0.02 >= search["fp32"] - search["reached"]
    assert search["max_drop_met"]


def test_the_summary_names_the_layer(ran: tuple[str, dict[str, Any]]) -> None:
    """With what it did to the file and what float costs."""
    told, search = ran[0], ran[1]["quantized"]["search"]
    lines = [line for line in told.splitlines() if line.startswith("float ")]

    assert "max_drop 0.02: 1 of 10 layers back in float" in lines[0]
    assert f"{RUINED}  SNR " in lines[1]
    assert f"the file {search['int8']:.4f}±" in lines[1]
    assert f" -> {search['reached']:.4f}±" in lines[1]
    assert "±?" not in lines[1]
    assert "as fast as all in int8" in lines[2]
