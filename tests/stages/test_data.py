"""The data stage: its settings, its checks, its warnings, and that it is a pure function."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.sources.digits import Digits
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import DataError


def run(out: Path, **settings: Any) -> Dataset:
    out.mkdir(parents=True)
    data = Data.model_validate(settings)
    data.check()
    data.run(DataInputs(Classification()), Work(out, out, Silent()))
    return Dataset(out)


def picture(path: Path, size: tuple[int, int] = (6, 5), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())  # no two pictures of a test are alike
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).resize(size).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ and eval/ of two classes, two grey 6x5 images each."""
    for split in ("train", "eval"):
        for name in ("cat", "dog"):
            for i in (1, 2):
                picture(tmp_path / "tree" / split / name / f"{i}.png")
    return tmp_path / "tree"


def test_settings_import_no_heavy_library():
    """Reading a config must not import torch, scikit-learn or scipy."""
    code = (
        "import sys; from kdpipe.stages.data import Data; Data.model_validate({'source': 'digits'})"
        "; sys.exit(str({'torch', 'sklearn', 'scipy', 'onnx'} & set(sys.modules) or ''))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.strip() == ""


def test_a_word_is_shorthand_for_a_kind():
    """`source: digits` is `source: {kind: digits}`."""
    data = Data.model_validate({"source": "digits"})

    assert data.source == Digits()
    assert data == Data.model_validate({"source": {"kind": "digits"}})
    assert data.files() == {}


def test_paths_are_relative_to_the_config():
    """A source's file is resolved against the config's folder; its field is named with its dots."""
    settings = {"source": {"kind": "npz", "file": "data.npz"}}

    data = Data.model_validate(settings, context={"base": Path("/somewhere")})

    assert data.files() == {"source.file": Path("/somewhere/data.npz")}


def test_paths_are_absolute_whatever_the_base():
    """`kdpipe run k.yaml` has the base `.`; workers and later runs may start elsewhere."""
    settings = {"source": {"kind": "csv", "file": "sub/../data.csv"}}

    data = Data.model_validate(settings, context={"base": Path()})

    assert data.source.file == Path.cwd() / "sub" / ".." / "data.csv"
    assert data.source.root == Path.cwd() / "sub" / ".."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "digit"}, "'digits', 'idx', 'folder', 'npz', 'csv', 'masks'"),
        ({"source": {"kind": "digits", "folder": "x"}}, "Extra inputs"),
        ({"source": "digits", "imagesize": 3}, "Extra inputs"),
        ({"source": "digits", "image_size": 0}, "greater than 0"),
        ({"source": "digits", "channels": 2}, "1 or 3"),
        ({"source": "digits", "mean": [127.5]}, "less than or equal to 1"),
        ({"source": "digits", "mean": []}, "at least 1 item"),
        ({"source": "digits", "std": [0]}, "greater than 0"),
        ({"source": "digits", "eval_fraction": 1}, "less than 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str):
    """A typo or a value out of range is an error that says what would do."""
    with pytest.raises(ValidationError, match=message):
        Data.model_validate(settings)


def test_check_finds_missing_files_before_the_run(tmp_path: Path):
    """`check` asks the source."""
    data = Data.model_validate({"source": {"kind": "folder", "folder": tmp_path / "none"}})

    with pytest.raises(DataError, match="is not there"):
        data.check()


def test_same_settings_same_bytes(tree: Path, tmp_path: Path):
    """Two runs write files of the same content, whatever the threads did."""
    source = {"kind": "folder", "folder": tree}

    for out in (tmp_path / "a", tmp_path / "b"):
        run(out, source=source, cache=True)

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "meta.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_image_size_and_channels(tree: Path, tmp_path: Path):
    """By default as the images are; else [height, width], a side, and the channels asked for."""
    source = {"kind": "folder", "folder": tree}

    assert run(tmp_path / "1", source=source).shape == (1, 5, 6)
    assert run(tmp_path / "2", source=source, image_size=8).shape == (1, 8, 8)
    assert run(tmp_path / "3", source=source, image_size=[8, 9], channels=3).shape == (3, 8, 9)
    assert run(tmp_path / "4", source=source, channels=3).shape == (3, 5, 6)


def test_one_colour_image_makes_all_colour(tree: Path, tmp_path: Path):
    """No image is turned grey unless that is asked for."""
    picture(tree / "eval" / "dog" / "2.png", mode="RGB")

    assert run(tmp_path / "out", source={"kind": "folder", "folder": tree}).shape == (3, 5, 6)


def test_sizes_that_differ_need_a_size(tree: Path, tmp_path: Path):
    """Without `image_size` different images are an error naming one of each size."""
    picture(tree / "eval" / "dog" / "2.png", size=(7, 5))

    with pytest.raises(DataError, match="different sizes") as error:
        run(tmp_path / "out", source={"kind": "folder", "folder": tree})

    assert error.value.found == "5x6 (train/cat/1.png), 5x7 (eval/dog/2.png)"


@pytest.mark.parametrize("settings", [{}, {"image_size": 8, "channels": 1}, {"cache": True}])
def test_all_bad_files_are_named_at_once(tree: Path, tmp_path: Path, settings: dict[str, Any]):
    """Empty, cut off and false files of both splits are in one error."""
    cut = tree / "eval" / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (tree / "train" / "cat" / "1.png").write_bytes(b"")
    (tree / "train" / "dog" / "2.png").write_text("hello")

    with pytest.raises(DataError, match="3 image file") as error:
        run(tmp_path / "out", source={"kind": "folder", "folder": tree}, **settings)

    assert "train/cat/1.png is empty (0 bytes), train/dog/2.png is not a" in error.value.found
    assert "eval/dog/1.png" in error.value.found


def test_nothing_but_bad_files(tree: Path, tmp_path: Path):
    """Where no file can be read each is named all the same."""
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")

    with pytest.raises(DataError, match="8 image file"):
        run(tmp_path / "out", source={"kind": "folder", "folder": tree})


def test_mean_and_std(tmp_path: Path):
    """Measured on train only, unless given; one given does not hinder the other."""
    labels = np.zeros(4, np.int64)
    train = np.array([0, 255, 0, 255], np.uint8).repeat(16).reshape(4, 4, 4)
    held = np.full((4, 4, 4), 7, np.uint8)
    arrays = {"train_images": train, "train_labels": labels}
    np.savez(tmp_path / "d.npz", **arrays, eval_images=held, eval_labels=labels)
    source = {"kind": "npz", "file": tmp_path / "d.npz"}

    measured = run(tmp_path / "1", source=source).preprocess
    given = run(tmp_path / "2", source=source, mean=[0.25]).preprocess

    assert (measured.mean, measured.std) == ((0.5,), (0.5,))
    assert (given.mean, given.std) == ((0.25,), (0.5,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.1, 0.2, 0.3]}, "data.mean does not fit"),
        ({"std": [0.1, 0.2]}, "data.std does not fit"),
        ({"augment": {"shift": 8}}, "out of sight"),
        ({"classes": 9}, "data.classes is 9"),
    ],
)
def test_settings_that_do_not_fit_the_images(tmp_path: Path, settings: dict, message: str):
    """What only the data can tell is an error of the data stage."""
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", source="digits", **settings)


def test_images_without_contrast_cannot_be_normalised(tmp_path: Path):
    """A deviation of 0 is an error, not a division by it."""
    images = np.full((8, 4, 4), 9, np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.zeros(8, np.int64))

    with pytest.raises(DataError, match="same value in every pixel"):
        run(tmp_path / "out", source={"kind": "npz", "file": tmp_path / "d.npz"})


def test_subsets_are_stratified(tmp_path: Path):
    """`max_train` and `max_eval` keep classes even, and draw from their own split."""
    full = run(tmp_path / "full", source="digits")

    quick = run(tmp_path / "quick", source="digits", max_train=100, max_eval=50)

    assert np.bincount(quick.train.labels).tolist() == [10] * 10
    assert np.bincount(quick.eval.labels).tolist() == [5] * 10
    assert set(quick.train.ids) < set(full.train.ids)
    assert set(quick.eval.ids) < set(full.eval.ids)
