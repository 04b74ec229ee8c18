"""Which samples calibrate: some of train, or of a source of their own, and never those of eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages import calibration
from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.statistics import needed_samples
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import DataError

SIDE = 6


class Heard(Silent):
    """An observer that remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def noise(count: int, seed: int, channels: int = 3) -> np.ndarray:
    """Images that are all different, uint8 (count, SIDE, SIDE, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, channels), np.uint8)


def npz(path: Path, images: np.ndarray) -> dict[str, Any]:
    """A pool of unlabelled images, as a source."""
    np.savez(path, images=images, labels=np.zeros(len(images), np.int64))
    return {"kind": "npz", "file": path}


def split(path: Path, train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """A source with both splits, of two classes in turn."""
    labels = {"train_labels": np.arange(len(train)) % 2, "eval_labels": np.arange(len(held)) % 2}
    np.savez(path, train_images=train, eval_images=held, **labels)
    return {"kind": "npz", "file": path}


@pytest.fixture
def made(tmp_path: Path):
    """made(calibration=...): the dataset of 40 training and 20 eval images, and what was warned."""

    def make(train: np.ndarray | None = None, **settings: Any) -> tuple[Dataset, list[str]]:
        source = split(
            tmp_path / "data.npz", noise(40, 0) if train is None else train, noise(20, 1)
        )
        out, heard = tmp_path / "out", Heard()
        out.mkdir()
        stage = Data.model_validate({"source": source, "calibration": 16, **settings})
        stage.run(DataInputs(Classification()), Work(out, out, heard))
        return Dataset(out), [told for told in heard.warnings if "fewer than 29" not in told]

    return make


@pytest.mark.parametrize(("count", "told"), [(58, "58 calibration samples: more than"), (59, "")])
def test_too_few_samples_are_told(made, count: int, told: str) -> None:
    """Fewer than it takes for their extremes to hold 95 % of what the network will see."""
    data, _ = made(train=noise(80, 0), calibration=count)

    assert calibration.few(data).startswith(told)
    assert bool(calibration.few(data)) == bool(told)
    assert needed_samples(0.95, 0.95) == calibration.ENOUGH


def test_samples_of_train_that_are_in_eval_are_not_drawn(made) -> None:
    """They are named, the first of them; others are drawn in their place, as many as asked for."""
    train = noise(40, 0)
    train[10:30] = noise(20, 1)  # half of train is eval

    dataset, warnings = made(train, allow_leak=True)
    drawn = {int(id.rpartition("/")[2]) for id in dataset.calibration.ids}

    assert len(dataset.calibration) == 16
    assert drawn.isdisjoint(range(10, 30))
    assert "20 sample(s) of train are in eval too and are not used for calibration" in warnings[1]
    assert "npz/train/10, npz/train/11" in warnings[1]
    calibration.require_usable(dataset)


def test_a_clean_draw_says_nothing_and_is_the_same_each_time(made, tmp_path: Path) -> None:
    """The seed decides; no warning where there is nothing to warn of."""
    dataset, warnings = made()
    again = tmp_path / "again"
    again.mkdir()
    source = {"kind": "npz", "file": tmp_path / "data.npz"}
    Data.model_validate({"source": source, "calibration": 16}).run(
        DataInputs(Classification()), Work(again, again, Silent())
    )

    assert warnings == []
    assert Dataset(again).calibration.ids == dataset.calibration.ids
    assert calibration.facts(Dataset(again)) == calibration.facts(dataset)


def test_where_all_of_train_is_eval_nothing_is_left(made) -> None:
    """Chains without quantization run on; who calibrates is told."""
    dataset, warnings = made(np.concatenate([noise(20, 1)] * 2), allow_leak=True)

    assert len(dataset.calibration) == 0
    assert any("calibration uses all 0 samples of train" in told for told in warnings)
    with pytest.raises(DataError, match="there are no calibration samples"):
        calibration.require_usable(dataset)


def test_a_source_of_their_own(made, tmp_path: Path) -> None:
    """Other images, by the preprocessing of the data; their ids and origin are kept."""
    images = noise(30, 2)
    source = npz(tmp_path / "own.npz", images)

    dataset, warnings = made(calibration={"source": source, "samples": 12})
    rows = [int(id.rpartition("/")[2]) for id in dataset.calibration.ids]
    x = dataset.calibration.inputs(np.arange(12))

    assert warnings == []
    assert len(rows) == 12
    assert rows == sorted(set(rows))
    assert np.array_equal(x, dataset.preprocess(images[rows]))
    assert calibration.facts(dataset)["origin"].startswith("npz: own.npz")


def test_files_of_a_source_of_their_own_are_in_the_key(tmp_path: Path) -> None:
    """Other bytes in them must calibrate anew; a missing file is told before anything runs."""
    source = npz(tmp_path / "own.npz", noise(4, 2))
    data = Data.model_validate({"source": "digits", "calibration": {"source": source}})

    assert data.files() == {"calibration.source.file": tmp_path / "own.npz"}
    data.check()
    (tmp_path / "own.npz").unlink()
    with pytest.raises(DataError, match=r"own\.npz") as error:
        data.check()
    assert error.value.fix == "set data.calibration.source.file to its path"


def test_overlap_with_eval_is_refused(made, tmp_path: Path) -> None:
    """Samples that the user names must not be those that judge; both ids are told."""
    images = np.concatenate([noise(10, 2), noise(20, 1)[4:6]])
    source = npz(tmp_path / "own.npz", images)

    with pytest.raises(DataError, match=r"2 eval sample.*known from calibration: exact 2") as error:
        made(calibration={"source": source, "samples": 12})

    assert "npz/pool/10 = npz/eval/4, npz/pool/11 = npz/eval/5; 2 pair(s)" in error.value.found
    assert "take the samples out of data.calibration.source" in error.value.fix


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (noise(0, 2), "there are no calibration samples"),
        (np.repeat(noise(1, 2), 8, axis=0), "calibration samples are all alike"),
        (noise(8, 2) * np.array([1, 0, 1], np.uint8), "a channel is the same in every pixel"),
        (np.pad(noise(8, 2), [(0, 0), (0, 1), (0, 0), (0, 0)]), "another size than the model's"),
        (noise(8, 2, channels=1), "other channels than the model's"),
    ],
    ids=["empty", "all alike", "constant channel", "other shape", "other channels"],
)
def test_samples_that_are_no_use_are_refused(made, tmp_path: Path, images, words: str) -> None:
    """By what is wrong with them, before any training."""
    source = npz(tmp_path / "own.npz", images)

    with pytest.raises(DataError, match=words):
        made(calibration={"source": source})


def test_settings_can_bring_them_into_form(made, tmp_path: Path) -> None:
    """Where the data are resized and made RGB by name, calibration samples are too."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, image in enumerate(noise(5, 2, channels=1)):
        Image.fromarray(image[..., 0]).resize((9, 7)).save(folder / f"{number}.png")
    rows = "".join(f"{number}.png,0\n" for number in range(5))
    (folder / "list.csv").write_text("path,label\n" + rows)
    source = {"kind": "csv", "file": folder / "list.csv"}

    dataset, warnings = made(
        calibration={"source": source, "samples": 5}, image_size=SIDE, channels=3
    )

    assert warnings == [
        "RGB images without colour are not spread evenly: 0 % in train, 0 % in eval,"
        " 100 % in calibration"
    ]
    assert dataset.calibration.inputs(np.arange(5)).shape == (5, 3, SIDE, SIDE)


def test_a_channel_that_the_user_knows_is_constant(made) -> None:
    """With `data.std` given the user has said how to take it: calibration does not object."""
    train = noise(40, 0) * np.array([1, 0, 1], np.uint8)

    dataset, _ = made(train, std=[0.3, 0.3, 0.3])

    calibration.require_usable(dataset)


def test_train_samples_that_are_all_alike_are_no_use(made) -> None:
    """Drawn from train, they are found by who calibrates."""
    train = np.repeat(noise(1, 5), 40, axis=0)

    dataset, _ = made(train)

    with pytest.raises(DataError, match="all alike") as error:
        calibration.require_usable(dataset)
    assert "16 images with the same pixels, such as npz/train/" in error.value.found
