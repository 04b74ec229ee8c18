"""Segmentation through the command line: masks in, gated artifacts out, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.pipeline.config import Config
from kdpipe.targets.errors import ConfigError, UsageError

SIDE, CLASSES = 16, ["ground", "disc", "bar"]
TEXT = """
task: segmentation
data:
  source: {kind: npz, file: shapes.npz, classes: [ground, disc, bar]}
  calibration: 16
  augment: {shift: 1, flip: true}
teacher:
  model: unet
  arguments: {width: 0.25, depth: 1}
  train: {epochs: 6, batch_size: 8, class_weights: balanced, amp: fp32}
student: {shrink: {width: 0.5}}
distill:
  methods: [{kind: cwd}, {kind: pixel_kd}]
  epochs: 6
  batch_size: 8
  ema: 0.9
  control: null
  mixing: {cutmix: 1.0}
  early_stopping: {patience: 5, holdout: 0.2}
  amp: fp32
quantize: {mode: ptq}
export: {samples: 8}
targets: [onnxruntime, openvino, {name: onnxruntime, precision: fp32}]
benchmark:
  {processes: 2, iterations: 3, seconds: 0, warmup_seconds: 0, memory_processes: 2, samples: 4}
gate:
  - {metric: miou, max-degradation: 0.2}
  - {metric: agreement, min: 0.5}
  - {metric: speedup, min: 0.001, against: fp32}  # such a small network is no faster in int8
"""


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures (n, side, side, 3) of a disc and a bar, their masks with a border of 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    for mask in masks:
        row, column, bar = rng.integers(4, SIDE - 4, 3)
        mask[(y - row) ** 2 + (x - column) ** 2 < 12] = 1
        mask[bar : bar + 3] = 2
    colours = np.array([[60, 60, 60], [200, 60, 60], [60, 60, 200]])
    images = colours[masks] + rng.normal(0, 20, (*masks.shape, 3))
    masks[:, :1] = 255
    return np.clip(images, 0, 255).astype(np.uint8), masks


def project(folder: Path, text: str = TEXT) -> Path:
    """A folder with the data and this config."""
    (train, of_train), (held, of_held) = shapes(64, 0), shapes(32, 1)
    arrays = {"train_images": train, "train_labels": of_train}
    arrays |= {"eval_images": held, "eval_labels": of_held}
    np.savez(folder / "shapes.npz", **arrays)
    (folder / "seg.yaml").write_text(text)
    return folder / "seg.yaml"


def kdpipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, on one thread, as several tests may run at once."""
    return subprocess.run(
        [sys.executable, "-m", "kdpipe.pipeline", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder, in which tests share one store."""
    root = tmp_path_factory.mktemp("segmentation")
    project(root)
    return root


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What a whole run of it says."""
    done = kdpipe(folder, "run", "seg.yaml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def test_masks_become_gated_artifacts(found: dict[str, Any]) -> None:
    """Distilled by two dense methods, quantized or not, compiled, judged on miou: PASSED."""
    assert (found["task"], found["metric"], found["verdict"]) == ("segmentation", "miou", "PASSED")
    int8 = [row for row in found["artifacts"] if row["precision"] == "int8"]
    assert [row["id"] for row in int8] == ["onnxruntime-int8", "openvino-int8"]
    assert {v["metric"] for v in found["gate"]["rules"]} == {
        *("miou", "agreement", "speedup", "int8_fraction"),
    }
    assert found["teacher"]["miou"] > 0.8
    assert found["student"]["parameters"] < 0.3 * found["teacher"]["parameters"]
    assert all(row["int8_fraction"] > 0.9 for row in int8)
    assert found["artifacts"][-1]["miou"] == pytest.approx(found["student"]["miou"], abs=1e-3)
    assert all(hop["miou"] > 0.7 for hop in found["waterfall"])
    assert "accuracy" not in json.dumps(found).replace("pixel_accuracy", "")


def test_usual_metrics_stand_beside_it(found: dict[str, Any]) -> None:
    """Dataset mIoU, pixel accuracy and the IoU of each class, of the teacher and each artifact."""
    for row in (found["teacher"], found["student"], *found["artifacts"]):
        details = row["details"]
        assert list(details) == [
            "dataset_miou", "pixel_accuracy", *(f"iou/{name}" for name in CLASSES),
        ]  # fmt: skip
        each = [details[f"iou/{name}"] for name in CLASSES]
        assert details["dataset_miou"] == pytest.approx(np.mean(each))


def test_the_summary_speaks_of_miou(folder: Path, found: dict[str, Any]) -> None:
    """Judged again from the raw samples, which gives the same verdicts."""
    done = kdpipe(folder, "gate", ".kdpipe/runs/seg")

    assert done.returncode == 0, done.stdout + done.stderr
    teacher = found["teacher"]
    assert f"ref teacher miou={teacher['miou']:.4f}" in done.stdout
    assert (
        f"also     teacher: dataset_miou {teacher['details']['dataset_miou']:.4f}±" in done.stdout
    )
    assert "miou drop against the teacher" in done.stdout
    assert "accuracy" not in done.stdout.replace("pixel_accuracy", "")
    assert done.stdout.splitlines()[-1] == "PASSED | 10 of 10 rules passed"


def test_a_rule_of_another_task_is_refused(tmp_path: Path) -> None:
    """At its place in the file, with what to type."""
    path = project(tmp_path, TEXT.replace("metric: miou", "metric: accuracy"))
    with pytest.raises(ConfigError) as error:
        Config.read(path)

    assert "'accuracy' is not a metric of the task segmentation" in str(error.value)
    assert "help: write metric: miou, or metric: score for any task" in str(error.value)
    assert Config.read(project(tmp_path, TEXT.replace("metric: miou", "metric: score"))).rules


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("task: segmentation", "task: classification", "'unet' gives logits for every pixel"),
        ("model: unet\n  arguments: {width: 0.25, depth: 1}", "model: resnet8",
         "'resnet8' gives logits for an image"),
        ("{shrink: {width: 0.5}}", "{model: mobilenet}", "'mobilenet' gives logits for an image"),
        ("{kind: cwd}", "{kind: dkd}", "'dkd' is for logits"),
        ("{kind: pixel_kd}", "{kind: pixel_kd, ignore_index: 0}", "other pixels than the task"),
    ],
)  # fmt: skip
def test_contradictions_are_found_before_anything_runs(
    tmp_path: Path, old: str, new: str, what: str
) -> None:
    """A network, a method or a setting that is not for this task."""
    text = TEXT.replace(old, new)
    if "classification" in new:
        text = text.replace("metric: miou", "metric: accuracy")
    config = Config.read(project(tmp_path, text))

    with pytest.raises(UsageError, match=what) as error:
        config.check()

    assert error.value.fix
