"""Sources of label maps (masks, CSV, .npz): what they mean, and what they say of wrong files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Part
from kdpipe.stages.sources.manifest import Manifest
from kdpipe.stages.sources.masks import Masks
from kdpipe.stages.sources.npz import Npz
from kdpipe.targets.errors import DataError

FORM = Form(3, 2, 3)


def save(path: Path, value: int, channels: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (3, 2, channels) if channels else (3, 2)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def pair(root: Path, name: str, value: int) -> None:
    save(root / "images" / f"{name}.jpg", value, channels=3)
    save(root / "masks" / f"{name}.png", value)


def maps(part: Part) -> np.ndarray:
    return np.concatenate(list(part.maps.chunks(np.arange(len(part.ids)), FORM, {})))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ with the images 1 and deep/2, val/ with 3; maps full of that number."""
    root = tmp_path / "tree"
    pair(root / "train", "1", 1)
    pair(root / "train", "deep/2", 2)
    pair(root / "val", "3", 3)
    return root


def test_masks_lie_beside_images(tree: Path):
    """Each image has the map of the same name; ids are paths of images, names those of masks."""
    contents = Masks(folder=tree, classes=("a", "b")).read()

    train, held = contents.parts["train"], contents.parts["eval"]
    assert train.ids == ("train/images/1.jpg", "train/images/deep/2.jpg")
    assert train.maps.names == ("train/masks/1.png", "train/masks/deep/2.png")
    assert maps(train)[:, 0, 0].tolist() == [1, 2]
    assert held.ids == ("val/images/3.jpg",)
    assert contents.classes == ("a", "b")
    assert contents.described == "masks: tree (2 train, 1 eval)"


def test_images_and_masks_alone_are_one_pool(tree: Path):
    """Without train/ there is one part."""
    contents = Masks(folder=tree / "train").read()

    assert list(contents.parts) == ["pool"]
    assert contents.parts["pool"].ids == ("images/1.jpg", "images/deep/2.jpg")


def test_exactly_images_and_masks_are_in_the_key(tree: Path):
    """Hidden files and notes are not read; notes are told."""
    (tree / "train" / "images" / ".hidden.jpg").touch()
    (tree / "train" / "masks" / "notes.txt").touch()
    (tree / "classes.json").touch()
    source = Masks(folder=tree)

    files = source.files()["folder"]

    assert set(files.names) == {
        f"{split}/{kind}/{name}.{suffix}"
        for split, names in (("train", ("1", "deep/2")), ("val", ("3",)))
        for name in names
        for kind, suffix in (("images", "jpg"), ("masks", "png"))
    }
    assert source.read().warnings == ("left out, not images: train/masks/notes.txt",)


def test_all_odd_files_are_named_before_the_run(tree: Path):
    """Images without a mask, masks without an image, and two images of one mask."""
    (tree / "train" / "masks" / "1.png").unlink()
    save(tree / "train" / "masks" / "deep" / "9.png", 0)
    save(tree / "train" / "images" / "deep" / "2.png", 0)

    with pytest.raises(DataError, match="do not pair up") as error:
        Masks(folder=tree).check()

    assert error.value.found == (
        "without a mask: train/images/1.jpg; without an image: train/masks/deep/9.png;"
        " of one name: train/images/deep/2.jpg, train/images/deep/2.png"
    )


@pytest.mark.parametrize("make", ["images", "test"])
def test_unclear_layouts_are_refused(tree: Path, make: str):
    """A pool beside a split, and two eval splits."""
    (tree / make).mkdir()

    with pytest.raises(DataError, match=r"neither train/ with .* nor images/ with masks/"):
        Masks(folder=tree).check()


def test_a_missing_folder_of_masks_is_named(tree: Path):
    """Before anything is read."""
    (tree / "val" / "masks").rename(tree / "val" / "labels")

    with pytest.raises(DataError, match=r"folder of masks is not there: .*val/masks"):
        Masks(folder=tree).check()


def test_a_csv_may_list_masks(tree: Path):
    """`mask` in the place of `label`; the maps follow their rows into the splits."""
    lines = [
        "path,mask,split,group",
        "val/images/3.jpg,val/masks/3.png,train,p",
        "train/images/1.jpg,train/masks/1.png,eval,q",
        "train/images/deep/2.jpg,train/masks/deep/2.png,train,r",
    ]
    (tree / "d.csv").write_text("\n".join(lines))
    source = Manifest(file=tree / "d.csv")

    parts = source.read().parts

    assert maps(parts["train"])[:, 0, 0].tolist() == [3, 2]
    assert parts["eval"].maps.names == ("train/masks/1.png",)
    assert parts["eval"].groups is not None
    assert "train/masks/1.png" in source.files()["folder"].names


def test_a_csv_with_labels_is_about_labels(tree: Path):
    """A further column called mask is not looked at, as ever."""
    (tree / "d.csv").write_text("path,label,mask\ntrain/images/1.jpg,0,none.png")

    part = Manifest(file=tree / "d.csv").read().parts["pool"]

    assert part.numbers.tolist() == [0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train/images/1.jpg,", "leaves fields empty"),
        ("train/images/1.jpg,train/masks/7.png", "lists files that are not in"),
        ("train/images/1.jpg,../m.png", "lists files outside of"),
    ],
)
def test_wrong_rows_of_masks_are_named(tree: Path, row: str, message: str):
    """As those of images are."""
    (tree / "d.csv").write_text(f"path,mask\n{row}")

    with pytest.raises(DataError, match=message) as error:
        Manifest(file=tree / "d.csv").check()

    assert "line 2" in error.value.found


def test_a_csv_without_labels_is_refused(tree: Path):
    """The message has both ways to say them."""
    (tree / "d.csv").write_text("path,class\ntrain/images/1.jpg,0")

    with pytest.raises(DataError, match="lacks the columns path and label, or path and mask"):
        Manifest(file=tree / "d.csv").check()


def npz(path: Path, labels: np.ndarray) -> Npz:
    images = np.zeros((len(labels), 3, 2), np.uint8)
    np.savez_compressed(path, images=images, labels=labels)
    return Npz(file=path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2", bool])
def test_npz_labels_may_be_maps(tmp_path: Path, dtype: Any):
    """Of any whole numbers, read as a stream like the images."""
    labels = (np.arange(24).reshape(4, 3, 2) % 2).astype(dtype)

    part = npz(tmp_path / "d.npz", labels).read().parts["pool"]

    assert part.dense
    assert np.array_equal(maps(part), labels)
    assert part.maps.names == part.ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 2, 3), np.uint8), "not the label maps of its images"),
        (np.zeros((4, 3, 2)), "not the label maps of its images"),
        (np.zeros((2, 3, 4), np.uint8).T, "not the label maps of its images"),
        (np.full((4, 3, 2), -1), "not of 0..255\n  found: -1 to -1"),
        (np.full((4, 3, 2), 256), "not of 0..255"),
    ],
    ids=["other size", "floats", "fortran order", "negative", "too large"],
)
def test_npz_maps_that_cannot_be_right(tmp_path: Path, labels: np.ndarray, message: str):
    """Shapes and types are seen at once, values when they are read."""
    images = np.zeros((4, 3, 2), np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=labels)

    with pytest.raises(DataError, match=message):
        maps(Npz(file=tmp_path / "d.npz").read().parts["pool"])
