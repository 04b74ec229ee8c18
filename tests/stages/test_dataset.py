"""The dataset as later stages read it: splits, shapes, batches, stored and lazily decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.augment import Augment
from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import DataError


def made(out: Path, **settings: object) -> Dataset:
    out.mkdir()
    data = Data.model_validate(settings)
    data.run(DataInputs(Classification()), Work(out, out, Silent()))
    return Dataset(out)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of 12 images each, lossless, 6x5 RGB."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{i:02}.png")
    return tmp_path / "tree"


def folder(tree: Path) -> dict[str, object]:
    return {"kind": "folder", "folder": tree}


def test_digits(tmp_path: Path):
    """Everything later stages ask of a dataset, from the source that is always there."""
    dataset = made(tmp_path / "out", source="digits", image_size=32, augment={"shift": 2})

    assert dataset.task == Classification()
    assert dataset.classes == tuple("0123456789")
    assert dataset.outputs == 10
    assert dataset.shape == (1, 32, 32)
    assert dataset.augment == Augment(shift=2)
    assert dataset.source == "digits: 1797 of scikit-learn"
    assert (len(dataset.train), len(dataset.eval), len(dataset.calibration)) == (1348, 449, 256)
    assert dataset.train is dataset.train
    assert not set(dataset.train.ids) & set(dataset.eval.ids)
    assert set(dataset.calibration.ids) < set(dataset.train.ids)
    assert dataset.train.groups is None


def test_train_is_normalised(tmp_path: Path):
    """Over the train split each channel has mean 0 and deviation 1."""
    dataset = made(tmp_path / "out", source="digits")

    inputs = np.concatenate([x for x, _ in dataset.train.batches(100)])

    assert inputs.dtype == np.float32
    assert abs(inputs.mean()) < 1e-5
    assert abs(inputs.std() - 1) < 1e-5


def test_batches_cover_a_split_in_order(tmp_path: Path):
    """The last batch is short; labels, ids and images belong together."""
    dataset = made(tmp_path / "out", source="digits", max_eval=25)

    batches = list(dataset.eval.batches(10))

    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    assert np.array_equal(np.concatenate([y for _, y in batches]), dataset.eval.labels)
    assert np.array_equal(batches[1][0], dataset.eval.inputs(np.arange(10, 20)))


def test_example_starts_over_where_eval_is_short(tmp_path: Path):
    """As many inputs as asked for, the first of eval."""
    dataset = made(tmp_path / "out", source="digits", max_eval=10)

    example = dataset.example(12)

    assert example.shape == (12, 1, 8, 8)
    assert np.array_equal(example[:10], dataset.eval.inputs(np.arange(10)))
    assert np.array_equal(example[10:], example[:2])


@pytest.mark.parametrize("cache", [False, True])
def test_files_are_the_images_that_their_ids_name(tree: Path, tmp_path: Path, cache: bool):
    """Stored or decoded when asked for, in any order, an image is that of its file."""
    dataset = made(tmp_path / "out", source=folder(tree), cache=cache)
    rows = np.array([5, 0, 5])

    images = dataset.train.images[rows]

    expected = [np.asarray(Image.open(tree / dataset.train.ids[row])) for row in rows]
    assert np.array_equal(images, np.stack(expected))
    assert len(dataset.train.images) == len(dataset.train) == 18
    assert [dataset.classes[label] for label in dataset.train.labels] == [
        id.split("/")[0] for id in dataset.train.ids
    ]


def test_calibration_reads_the_rows_it_names(tree: Path, tmp_path: Path):
    """A picked split has its own rows, labels and ids, all of the same samples."""
    dataset = made(tmp_path / "out", source=folder(tree), calibration=4)

    picked = dataset.calibration

    place = [dataset.train.ids.index(id) for id in picked.ids]
    assert np.bincount(picked.labels).tolist() == [2, 2]
    assert np.array_equal(picked.labels, dataset.train.labels[place])
    assert np.array_equal(picked.images[np.arange(4)], dataset.train.images[np.array(place)])


def test_changed_and_missing_files_are_named(tree: Path, tmp_path: Path):
    """A file that is not what the data stage read is an error naming it, with a way out."""
    dataset = made(tmp_path / "out", source=folder(tree), cache=False)
    gone, other, touched = (tree / dataset.train.ids[row] for row in (0, 1, 2))
    gone.unlink()
    Image.new("RGB", (5, 6)).save(other)
    touched.touch()

    with pytest.raises(DataError, match="2 image file") as error:
        dataset.train.inputs(np.arange(4))

    assert f"{gone} does not exist" in error.value.found
    assert f"{other} has other content" in error.value.found
    assert "data.cache: true" in error.value.fix


def test_cached_files_are_needed_only_once(tree: Path, tmp_path: Path):
    """With `cache` the dataset reads the same after the user's files are gone."""
    lazy = made(tmp_path / "lazy", source=folder(tree), cache=False)
    kept = made(tmp_path / "kept", source=folder(tree), cache=True)
    expected = lazy.train.inputs(np.arange(18))

    tree.rename(tmp_path / "moved")

    assert np.array_equal(kept.train.inputs(np.arange(18)), expected)


def test_groups_are_read_back(tmp_path: Path):
    """Groups reach the splits, whole."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    groups = np.arange(40) // 4
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(40) % 2, groups=groups)

    dataset = made(tmp_path / "out", source={"kind": "npz", "file": tmp_path / "d.npz"})

    train, held = dataset.train, dataset.eval
    assert train.groups is not None
    assert held.groups is not None
    assert train.groups.tolist() == [groups[int(id.split("/")[-1])] for id in train.ids]
    assert not set(train.groups) & set(held.groups)
