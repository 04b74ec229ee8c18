"""Label maps in the data stage: checked, split, subset, stored and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.tasks import Task
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.targets.errors import DataError

SHAPE = (6, 5)


class Heard(Silent):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[tuple[int, int, str]] = []

    def warn(self, text: str) -> None:
        """Remembered."""
        self.warnings.append(text)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Remembered."""
        self.notes.append((done, total, note))


def run(
    out: Path, task: Task | None = None, heard: Silent | None = None, **settings: Any
) -> Dataset:
    out.mkdir(parents=True)
    data = Data.model_validate(settings)
    data.check()
    data.run(DataInputs(task or Segmentation()), Work(out, out, heard or Silent()))
    return Dataset(out)


def random_maps(count: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (count, *SHAPE), dtype=np.uint8)


def shown(maps: np.ndarray) -> np.ndarray:
    """Images in which every pixel tells its label and, by noise, its sample: 80 * label + 0..39."""
    noise = np.random.default_rng(5).integers(0, 40, maps.shape)
    return (maps.astype(np.int64) % 3 * 80 + noise).astype(np.uint8)


def npz(path: Path, maps: np.ndarray, **arrays: Any) -> dict[str, Any]:
    """A pool of images that show their labels."""
    np.savez(path, **{"images": shown(maps), "labels": maps, **arrays})
    return {"kind": "npz", "file": path}


def pairs(root: Path, maps: np.ndarray) -> dict[str, Any]:
    """The same as files beside files."""
    for kind, pictures in (("images", shown(maps)), ("masks", maps)):
        (root / kind).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / kind / f"{number:02}.png")
    return {"kind": "masks", "folder": root}


def number_of(ids: tuple[str, ...]) -> list[int]:
    return [int(Path(id).stem) for id in ids]


@pytest.mark.parametrize("kind", [npz, pairs])
@pytest.mark.parametrize("cache", [True, False])
def test_each_sample_keeps_its_map(tmp_path: Path, kind: Any, cache: bool):
    """In splits, subsets and calibration, ids, images and maps are of the same samples."""
    maps = random_maps(20)

    data = run(
        tmp_path / "out",
        source=kind(tmp_path / "d.npz", maps),
        cache=cache,
        max_train=12,
        calibration=4,
    )

    assert (len(data.train), len(data.eval), len(data.calibration)) == (12, 5, 4)
    assert not set(data.train.ids) & set(data.eval.ids)
    for split in (data.train, data.eval, data.calibration):
        rows = np.arange(len(split))
        numbers = number_of(split.ids)
        assert np.array_equal(split.labels[rows], maps[numbers])
        assert np.array_equal(split.images[rows][..., 0], shown(maps)[numbers])
    assert np.load(tmp_path / "out" / "train.labels.npy").dtype == np.uint8
    assert data.classes == ("0", "1", "2")


def test_stored_maps_are_read_like_an_array(tmp_path: Path):
    """A number, a slice, numbers, and a choice of a choice."""
    data = run(tmp_path / "out", source=npz(tmp_path / "d.npz", random_maps(20)))
    whole = np.load(tmp_path / "out" / "train.labels.npy")

    labels = data.train.labels
    picked = data.train.pick("some", np.array([9, 2, 7])).pick("fewer", np.array([2, 0])).labels

    assert labels.shape == whole.shape
    assert np.array_equal(labels[3], whole[3])
    assert np.array_equal(labels[4:40], whole[4:])
    assert np.array_equal(labels[np.array([5, 0, 5])], whole[[5, 0, 5]])
    assert picked.shape == (2, *SHAPE)
    assert np.array_equal(picked[:], whole[[7, 9]])


def test_maps_and_images_are_brought_to_one_size(tmp_path: Path):
    """The maps by nearest neighbour: a doubled one holds each label four times."""
    maps = random_maps(8)
    source = npz(tmp_path / "d.npz", maps)

    data = run(tmp_path / "out", source=source, image_size=[12, 10])

    assert data.shape == (1, 12, 10)
    expected = maps[number_of(data.train.ids)].repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(data.train.labels[:], expected)


def test_samples_of_maps_form_one_stratum(tmp_path: Path):
    """No single class belongs to a sample, so draws keep no proportions; class numbers do."""
    data = run(tmp_path / "out", source=npz(tmp_path / "d.npz", random_maps(20)))
    digits = run(tmp_path / "digits", Classification(), source="digits", max_train=50, max_eval=20)

    assert data.train.strata.tolist() == [0] * 15
    assert np.array_equal(digits.train.strata, digits.train.labels)


def test_groups_are_held_out_whole(tmp_path: Path):
    """Maps of one group are on one side."""
    groups = np.arange(20) // 4
    source = npz(tmp_path / "d.npz", random_maps(20), groups=groups)

    data = run(tmp_path / "out", source=source)

    sides = [set(groups[number_of(split.ids)]) for split in (data.train, data.eval)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(5))


@pytest.mark.parametrize(
    ("task", "labels", "fix"),
    [
        (Segmentation(), np.arange(20) % 3, "kind: masks"),
        (Segmentation(), np.zeros((20, *SHAPE, 1), np.uint8), "kind: masks"),
        (Classification(), random_maps(20), "task: segmentation"),
    ],
    ids=["numbers", "four dimensions", "maps"],
)
def test_task_and_labels_must_fit(tmp_path: Path, task: Task, labels: np.ndarray, fix: str):
    """What was there is told, and what to type."""
    images = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=labels)

    with pytest.raises(DataError, match=f"task: {task.kind}. needs") as error:
        run(tmp_path / "out", task, source={"kind": "npz", "file": tmp_path / "d.npz"})

    assert "npz: d.npz (20 pool)" in error.value.found
    assert fix in error.value.fix


def test_all_bad_files_are_named_at_once(tmp_path: Path):
    """Those of images and of masks, in one error."""
    source = pairs(tmp_path / "d", random_maps(12))
    (tmp_path / "d" / "images" / "03.png").write_bytes(b"")
    (tmp_path / "d" / "masks" / "03.png").write_text("hello")
    Image.new("RGB", SHAPE[::-1]).save(tmp_path / "d" / "masks" / "05.png")
    Image.new("L", (4, 4)).save(tmp_path / "d" / "masks" / "07.png")

    with pytest.raises(DataError, match="4 image file") as error:
        run(tmp_path / "out", source=source)

    for name in (
        "images/03.png is empty",
        "masks/03.png is not a PNG",
        "masks/05.png is a picture",
    ):
        assert name in error.value.found
    assert "masks/07.png is 4x4, its image 6x5" in error.value.found


def test_all_maps_with_wrong_labels_are_named(tmp_path: Path):
    """Numbers that are no class, by the file that holds them; so are maps without any label."""
    maps = random_maps(12)
    maps[2, 0, 0], maps[6, 1, 1], maps[7] = 9, 7, 255
    source = pairs(tmp_path / "d", maps)

    with pytest.raises(DataError, match=r"label map\(s\) of train cannot be used") as error:
        run(tmp_path / "out", source={**source, "classes": ["a", "b", "c"]}, eval_fraction=0.01)

    for number in (2, 6, 7):
        assert f"masks/{number:02}.png" in error.value.found
    assert "masks/03.png" not in error.value.found


def test_black_and_white_masks_are_explained(tmp_path: Path):
    """0 and 255 are one class and no label, which is hardly meant."""
    maps = np.where(random_maps(12, classes=2), 255, 0).astype(np.uint8)

    with pytest.raises(DataError, match="fewer than two classes") as error:
        run(tmp_path / "out", source=npz(tmp_path / "d.npz", maps))

    assert error.value.found == "the values 0, 255; 255 is no label (task.ignore_index)"


@pytest.mark.parametrize(
    ("settings", "ignored"), [({"classes": 1}, 255), ({}, 0), ({"classes": 2}, 1)]
)
def test_a_single_class_is_no_task(tmp_path: Path, settings: dict[str, Any], ignored: int):
    """Every network would be right, and pass the gate: also where the number is declared."""
    maps = np.full((12, *SHAPE), 1 if ignored == 0 else 0, np.uint8)
    task = Segmentation(ignore_index=ignored)

    with pytest.raises(DataError, match="fewer than two classes"):
        run(tmp_path / "out", source=npz(tmp_path / "d.npz", maps), task=task, **settings)


def split_npz(path: Path, train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    arrays = {"train_images": shown(train), "train_labels": train}
    np.savez(path, **arrays, eval_images=shown(held), eval_labels=held)
    return {"kind": "npz", "file": path}


def test_a_class_without_training_pixels_is_refused(tmp_path: Path):
    """One pixel of eval shows that there is a class 4; `classes` lets it pass, and is told."""
    held = random_maps(4, seed=1)
    held[0, 0, 0] = 4
    source = split_npz(tmp_path / "d.npz", random_maps(8), held)
    heard = Heard()

    with pytest.raises(DataError, match="2 of 5 classes have no training pixels") as error:
        run(tmp_path / "refused", source=source)
    data = run(tmp_path / "out", None, heard, source=source, classes=5, calibration=4)

    assert error.value.found == "without: 3, 4"
    assert data.outputs == 5
    assert heard.warnings == [
        "no training pixels of class 3, 4",
        "no eval pixels of class 3: nothing is measured of it",
    ]
    assert [note for note in heard.notes if "maps" in note[2]] == [
        (8, 8, "train label maps"),
        (4, 4, "eval label maps"),
    ]


def test_a_class_absent_from_eval_is_told(tmp_path: Path):
    """By its name, where it has one."""
    heard = Heard()
    source = split_npz(tmp_path / "d.npz", random_maps(8), random_maps(4, classes=2, seed=1))

    run(tmp_path / "o", None, heard, source={**source, "classes": ["a", "b", "c"]}, calibration=4)

    assert heard.warnings == ["no eval pixels of class c: nothing is measured of it"]


def test_the_ignored_number_may_be_among_the_classes(tmp_path: Path):
    """0 for no label, as many masks have it: it is no class that lacks pixels."""
    heard = Heard()
    source = npz(tmp_path / "d.npz", random_maps(20))

    data = run(tmp_path / "out", Segmentation(ignore_index=0), heard, source=source, calibration=4)

    assert data.classes == ("0", "1", "2")
    assert data.train.ignored == 0
    assert heard.warnings == []


def test_a_shift_needs_a_label_for_what_comes_in(tmp_path: Path):
    """Without `ignore_index` every number is a class."""
    source = npz(tmp_path / "d.npz", random_maps(20))
    task = Segmentation(ignore_index=None)

    with pytest.raises(DataError, match="brings in pixels") as error:
        run(tmp_path / "refused", task, source=source, augment={"shift": 1})
    run(tmp_path / "out", task, source=source, augment={"flip": True})

    assert "task.ignore_index" in error.value.fix


def test_paired_pictures_have_the_same_maps(tmp_path: Path):
    """Another modality, twice as large, stays beside its sample and its map."""
    maps = random_maps(20)
    large = maps.repeat(2, axis=1).repeat(2, axis=2)
    other = npz(tmp_path / "other.npz", large, images=255 - shown(maps).repeat(2, 1).repeat(2, 2))

    data = run(
        tmp_path / "out", source=npz(tmp_path / "d.npz", maps), paired={"depth": {"source": other}}
    )

    rows = np.arange(len(data.eval))
    depth = data.eval.paired["depth"].images[rows]
    assert np.array_equal(depth[:, ::2, ::2], 255 - data.eval.images[rows])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (random_maps(20)[::-1], "label maps differ: npz/pool/"),
        (np.arange(20) % 3, "label maps and class numbers"),
        (random_maps(19), "20 and 19 samples"),
    ],
    ids=["order", "numbers", "count"],
)
def test_pictures_of_other_samples_are_refused(tmp_path: Path, labels: np.ndarray, words: str):
    """Their maps tell, once both are of one size."""
    source = npz(tmp_path / "d.npz", random_maps(20))
    images = shown(random_maps(20))[: len(labels)]
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    other = {"kind": "npz", "file": tmp_path / "other.npz"}

    with pytest.raises(DataError, match=r"data\.paired\.depth are not those") as error:
        run(tmp_path / "out", source=source, paired={"depth": {"source": other}})

    assert words in error.value.found


def test_same_settings_same_bytes(tmp_path: Path):
    """Two runs write the same files."""
    source = pairs(tmp_path / "d", random_maps(12))

    for name in ("a", "b"):
        run(tmp_path / name, source=source)

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "train.labels.npy" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_aerial_photographs(tmp_path: Path):
    """Real photographs and masks: what the stage stores is what the files say."""
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "aerial-segmentation"
    if not folder.is_dir():
        pytest.skip("../shared/data/aerial-segmentation is not here")
    names = list(json.loads((folder / "classes.json").read_text())["classes"].values())
    source = {"kind": "masks", "folder": folder, "classes": names}

    data = run(
        tmp_path / "out", Segmentation(ignore_index=0), source=source, max_train=60, max_eval=20
    )

    assert data.shape == (3, 224, 224)
    assert data.source == "masks: aerial-segmentation (747 train, 279 eval)"
    assert data.classes == tuple(names)
    assert {id.split("_")[0] for id in data.eval.ids} == {"eval/images/tile6", "eval/images/tile8"}
    for row, id in enumerate(data.eval.ids):
        mask = folder / id.replace("images", "masks").replace(".jpg", ".png")
        assert np.array_equal(data.eval.labels[row], np.asarray(Image.open(mask)))
