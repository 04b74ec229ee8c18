"""Labels, classes, splits and groups: which faults stop the data stage, and which it tells."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import DataError


class Heard(Silent):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def warn(self, text: str) -> None:
        """Remembered."""
        self.warnings.append(text)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Remembered."""
        self.steps.append((done, total))


def run(out: Path, heard: Silent | None = None, **settings: Any) -> Dataset:
    out.mkdir(parents=True)
    data = Data.model_validate(settings)
    data.check()
    data.run(DataInputs(Classification()), Work(out, out, heard or Silent()))
    return Dataset(out)


def npz(path: Path, labels: list[int], **arrays: Any) -> dict[str, Any]:
    """A source of random 4x4 images with these labels."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    np.savez(path, images=images, labels=np.array(labels), **arrays)
    return {"kind": "npz", "file": path}


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 1] * 3, "out of range"),
        ([0, 2, 0, 2] * 3, "1 of 3 classes have no training samples\n  found: without: 1"),
        ([0, 0, 0, 2**60] * 3, "and 1152921504606846965 more"),
        ([0.5, 1.0] * 6, "not class numbers"),
        ([], "there are no samples in pool"),
    ],
)
def test_labels_that_cannot_be_right(tmp_path: Path, labels: list, message: str):
    """Wrong labels, and gaps between them, are errors before any training."""
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", source=npz(tmp_path / "d.npz", labels))


def test_declared_classes_may_have_no_samples(tmp_path: Path):
    """`classes` says that a gap is meant; it is still told."""
    heard = Heard()

    dataset = run(
        tmp_path / "out",
        heard,
        source=npz(tmp_path / "d.npz", [0, 2] * 6),
        classes=4,
        calibration=8,
    )

    assert dataset.classes == ("0", "1", "2", "3")
    assert heard.warnings == [
        "no training samples of class 1, 3",
        "no eval samples of class 1, 3: nothing is measured of it",
        "fewer than 29 eval samples of class 0 (2), 2 (1): even without an error they do not prove"
        " an accuracy of 90 % (95 % confidence)",
    ]


def test_empty_splits_are_errors(tree: Path, tmp_path: Path):
    """A declared split without images is named."""
    for path in (tree / "eval").rglob("*.png"):
        path.unlink()

    with pytest.raises(DataError, match="no samples in eval"):
        run(tmp_path / "out", source={"kind": "folder", "folder": tree})


def test_a_class_without_training_images(tree: Path, tmp_path: Path):
    """A class that only eval has cannot be learned."""
    picture(tree / "eval" / "emu" / "1.png")

    with pytest.raises(DataError, match="without: emu"):
        run(tmp_path / "out", source={"kind": "folder", "folder": tree})


def test_what_the_user_should_know_is_told(tree: Path, tmp_path: Path):
    """Left-out files, a setting without effect, an unmeasured class and a small calibration."""
    (tree / "train" / "cat" / "notes.txt").touch()
    for path in (tree / "eval" / "dog").iterdir():
        path.unlink()
    heard = Heard()

    run(tmp_path / "out", heard, source={"kind": "folder", "folder": tree}, eval_fraction=0.5)

    assert heard.warnings == [
        "left out, not images: train/cat/notes.txt",
        "data.eval_fraction is not used: the source has an eval split",
        "no eval samples of class dog: nothing is measured of it",
        "calibration uses all 4 samples of train, fewer than the 256 of data.calibration",
        "fewer than 29 eval samples of class cat (2): even without an error they do not prove"
        " an accuracy of 90 % (95 % confidence)",
    ]
    assert heard.steps == [(4, 4), (2, 2)]


def test_groups_in_both_splits_are_refused(tmp_path: Path):
    """A group that a declared split tears apart flatters accuracy; the file with pairs stays."""
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    rows = ["path,label,split,group", "a.png,0,train,p", "b.png,0,train,q", "c.png,0,eval,q"]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    source = {"kind": "csv", "file": tmp_path / "d.csv"}

    with pytest.raises(DataError, match=r"1 group\(s\) are in both train and eval") as error:
        run(tmp_path / "out", source=source, calibration=2)

    path = tmp_path / "out" / "duplicates.csv"
    assert error.value.found == f"b.png and c.png; one pair of each in {path}"
    assert "data.allow_leak: true" in error.value.fix
    assert path.read_text().splitlines()[1:] == ["train,b.png,,eval,c.png,,group,"]


def test_groups_in_both_splits_may_be_allowed(tmp_path: Path):
    """Then the dataset says how many eval samples have others of their group in train."""
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"{name}.png")
    rows = ["path,label,split,group", "a.png,0,train,p", "b.png,0,train,q", "c.png,0,eval,q"]
    (tmp_path / "d.csv").write_text("\n".join([*rows, "d.png,0,eval,r"]))
    heard = Heard()
    source = {"kind": "csv", "file": tmp_path / "d.csv"}

    dataset = run(tmp_path / "out", heard, source=source, calibration=2, allow_leak=True)

    assert dataset.leaks["eval"] == 1
    assert dataset.leaks["share"] == 0.5
    assert dataset.leaks["group"] == 1
    assert heard.warnings[0] == (
        "1 eval sample(s), 50 %, are known from train: 1 group(s) in both splits;"
        " data.allow_leak lets it pass, and every number is marked"
    )
