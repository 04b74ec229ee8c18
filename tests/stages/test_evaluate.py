"""Judging on a split: in order, in batches, and with the probabilities that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdpipe.stages import evaluate as module
from kdpipe.stages.dataset import Split
from kdpipe.stages.evaluate import evaluate
from kdpipe.stages.images import StoredImages
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.device.preprocess import Preprocess

COUNT = 600
TASK = Classification()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """More grey pictures of 2 x 2 pixels than one batch holds."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (COUNT, 2, 2, 1), dtype=np.uint8))
    images = StoredImages(tmp_path / "images.npy")
    return Split("eval", images, rng.integers(0, 4, COUNT), Preprocess(2, 2, [0.5], [0.5]))


def forward(x: np.ndarray) -> np.ndarray:
    """Four logits: the pixels."""
    return x.reshape(len(x), 4)


def test_batches_give_what_the_whole_split_gives(split: Split) -> None:
    """Score, prediction and confidence of every sample, in order; no probabilities."""
    whole = TASK.outcome(forward(split.inputs(np.arange(COUNT))), split.labels)

    found = evaluate(forward, split, TASK)

    for name in ("score", "prediction", "confidence"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    assert found.probability is None


def test_probabilities_are_kept_where_asked_for(split: Split) -> None:
    """Of every class, in two bytes each."""
    whole = TASK.outcome(forward(split.inputs(np.arange(COUNT))), split.labels)

    found = evaluate(forward, split, TASK, probabilities=True)

    assert np.array_equal(found.probability, whole.probability)
    assert found.probability.nbytes == COUNT * 4 * 2


def test_too_many_probabilities_are_left_out(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples times classes, over the whole split and not one batch."""
    monkeypatch.setattr(module, "MOST_PROBABILITIES", COUNT * 4)
    assert evaluate(forward, split, TASK, probabilities=True).probability is not None

    monkeypatch.setattr(module, "MOST_PROBABILITIES", COUNT * 4 - 1)
    assert evaluate(forward, split, TASK, probabilities=True).probability is None
