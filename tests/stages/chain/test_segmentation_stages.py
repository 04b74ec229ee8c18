"""Stages on label maps: class weights, early stopping, and networks that cannot do the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.stage import Distill, DistillInputs
from kdpipe.stages.evaluate import evaluate, together
from kdpipe.stages.models import weights
from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.network import Network, details
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.student import Architecture, Student, StudentInputs
from kdpipe.stages.supervision import supervised
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.errors import StageError, UsageError

SIDE, NAMES = 8, ["nothing", "left", "right"]
UNET = {"model": "unet", "arguments": {"width": 0.125, "depth": 1}}
NET = """
from torch import nn

def flat(classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes))

def coarse(classes, in_channels):
    return nn.Conv2d(in_channels, classes, 2, stride=2)
"""


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """24 + 12 grey pictures, dark on the left and bright on the right; the first row is 0."""
    rng = np.random.default_rng(0)
    found = {}
    for name, count in (("train", 24), ("eval", 12)):
        labels = np.full((count, SIDE, SIDE), 1, np.uint8)
        for number, edge in enumerate(rng.integers(5, SIDE, count)):
            labels[number, :, edge:] = 2
        labels[:, 0] = 0
        found[f"{name}_images"] = np.where(labels == 2, 220, 40).astype(np.uint8)
        found[f"{name}_labels"] = labels
    return found


@pytest.fixture(scope="module")
def data(step: Any, arrays: dict[str, np.ndarray], tmp_path_factory: Any) -> Dataset:
    """Its dataset, in which 0 is no label."""
    file = tmp_path_factory.mktemp("maps") / "maps.npz"
    np.savez(file, **arrays)
    source = {"kind": "npz", "file": file, "classes": NAMES}
    task = Segmentation(ignore_index=0)
    settings = {"calibration": 8, "allow_leak": True}  # its shapes repeat
    found: Dataset = step(Data, DataInputs(task), source=source, **settings)
    return found


@pytest.fixture(scope="module")
def teacher(step: Any, data: Dataset) -> Network:
    """A teacher trained with early stopping on held-out maps."""
    recipe = {"epochs": 6, "batch_size": 4, "learning_rate": 0.05, "amp": "fp32"}
    stopping = {"early_stopping": {"patience": 3, "holdout": 0.25}}
    found: Network = step(Teacher, TeacherInputs(data), **UNET, train={**recipe, **stopping})
    return found


def test_balanced_weights_count_pixels(data: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """N / (C n_c) over the pixels that count; a class without any weighs nothing."""
    term = supervised(Recipe(class_weights="balanced"), data)

    left, right = (int((arrays["train_labels"] == c).sum()) for c in (1, 2))
    assert term.class_weights == pytest.approx(
        [0, (left + right) / (3 * left), (left + right) / (3 * right)]
    )


def test_a_teacher_learns_from_maps(teacher: Network, data: Dataset) -> None:
    """On pictures that show the label it is right nearly everywhere, also in the details."""
    assert teacher.outcome.prediction.shape == (12, SIDE, SIDE)
    assert teacher.outcome.mean > 0.9
    found = details(teacher.outcome, data)
    assert found["dataset_miou"] > 0.9
    assert set(found) == {"dataset_miou", "pixel_accuracy", "iou/left", "iou/right"}


@pytest.fixture(scope="module")
def student(step: Any, data: Dataset, teacher: Network) -> Architecture:
    """As shallow as the teacher, and narrower at the bottom."""
    arguments = {"width": 0.05, "depth": 1}
    found: Architecture = step(
        Student, StudentInputs(data, teacher), model="unet", arguments=arguments
    )
    return found


@pytest.mark.parametrize(
    "kind", [k.model_fields["kind"].default for k in METHODS if "dense" in k.needs]
)
def test_every_dense_method_works_from_a_config(
    step: Any, data: Dataset, teacher: Network, student: Architecture, kind: str
) -> None:
    """Alone beside the labels, from its bare word, with augmented batches, to a judged student."""
    inputs = DistillInputs(data, teacher, student)
    recipe = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "amp": "fp32"}

    distilled = step(Distill, inputs, methods=[kind], control=None, **recipe)

    assert np.isfinite(distilled.facts["losses"]).all()
    assert distilled.outcome.prediction.shape == (12, SIDE, SIDE)


def test_a_teacher_of_one_class_everywhere_is_refused(
    step: Any, data: Dataset, tmp_path: Path
) -> None:
    """It has learned nothing, and a student that agrees with it would pass."""
    network = Blueprint("unet", UNET["arguments"], data.shape, 3).build()
    with torch.no_grad():
        network.head.bias[1] = 1e6
    weights.save(network, tmp_path / "guesser.safetensors")

    with pytest.raises(StageError, match="one answer for every eval sample") as error:
        step(Teacher, TeacherInputs(data), **UNET, weights=tmp_path / "guesser.safetensors")

    assert error.match("1 for all 12 samples")


def test_a_network_that_classifies_images_is_refused(
    step: Any, data: Dataset, teacher: Network, tmp_path: Path
) -> None:
    """Teacher or student, before it is trained, where it is the user's own and was not known."""
    (tmp_path / "net.py").write_text(NET)
    flat = f"{tmp_path / 'net.py'}:flat"

    with pytest.raises(UsageError, match="logits for every pixel"):
        step(Teacher, TeacherInputs(data), model=flat)
    with pytest.raises(UsageError, match="logits for every pixel"):
        step(Student, StudentInputs(data, teacher), model=flat)


def test_a_network_of_a_lower_resolution_is_judged_on_every_pixel(
    step: Any, data: Dataset, tmp_path: Path
) -> None:
    """Its logits are enlarged to the labels' size."""
    (tmp_path / "net.py").write_text(NET)
    recipe = {"epochs": 10, "batch_size": 4, "learning_rate": 0.5, "amp": "fp32"}
    coarse = step(Teacher, TeacherInputs(data), model=f"{tmp_path / 'net.py'}:coarse", train=recipe)

    assert coarse.outcome.prediction.shape == (12, SIDE, SIDE)
    assert coarse.outcome.mean > 0.6


@pytest.mark.parametrize(
    ("size", "dense", "flat"),
    [((8, 8), 256, 256), ((224, 224), 20, 256), ((1024, 2048), 1, 256)],
)
def test_large_maps_are_judged_a_few_at_a_time(size: tuple[int, int], dense: int, flat: int):
    """About a million pixels; classifiers take as many images as ever."""
    assert together(Segmentation(), *size) == dense
    assert together(Classification(), *size) == flat


def test_the_split_is_judged_in_such_pieces(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces change no score."""
    sizes: list[int] = []

    def forward(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return np.concatenate([x * 0 - 9, -x, x], axis=1)

    whole = evaluate(forward, data.eval, data.task)
    monkeypatch.setattr("kdpipe.stages.evaluate._PIXELS", 5 * SIDE**2)
    pieces = evaluate(forward, data.eval, data.task)

    assert sizes == [12, 5, 5, 2]
    assert np.array_equal(whole.score, pieces.score)
    assert np.array_equal(whole.prediction, pieces.prediction)
