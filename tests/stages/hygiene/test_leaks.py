"""What the data stage does about samples that eval shares with train or calibration."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe.pipeline.config import Config
from kdpipe.pipeline.launch import Launch, Selection
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Store
from kdpipe.stages.hygiene import inspection, search
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.targets.errors import DataError


@pytest.fixture
def leaky(pictures: Callable) -> tuple[np.ndarray, np.ndarray]:
    """30 and 12 pictures; eval 0 is train 3, eval 1 is a darker train 4, eval 2 train 5 mirrored.

    And eval 3 is train 6 as well as train 7.
    """
    train, held = pictures(30, 0), pictures(12, 1)
    train[7] = train[6]
    held[0] = train[3]
    held[1] = (train[4] * 0.8).astype(np.uint8)
    held[2] = train[5, :, ::-1]
    held[3] = train[6]
    return train, held


def test_clean_data_has_no_leak(run: Callable, pictures: Callable) -> None:
    """Nothing is told of it, and the file of pairs has a header alone."""
    dataset, heard = run(pictures(30, 0), pictures(12, 1), calibration=8)

    assert dataset.leaks == {}
    assert heard.about("known from") == []
    assert len((dataset.folder / "duplicates.csv").read_text().splitlines()) == 1
    assert dataset.meta["hygiene"]["pairs"]["train-eval"] == {
        "exact": 0, "near": 0, "mirrored": 0, "group": 0, "sought": 12, "of": 12,
    }  # fmt: skip


def test_a_leak_is_refused(run: Callable, leaky: tuple, tmp_path: Path) -> None:
    """With numbers by kind, the first pairs, a file of all that stays, and what to type."""
    with pytest.raises(DataError, match="4 eval sample") as error:
        run(*leaky)

    assert error.value.exit_code == 2
    assert error.value.what == (
        "4 eval sample(s), 33.3 %, are known from train: exact 2, near 1, mirrored 1"
    )
    path = tmp_path / "scratch" / "duplicates.csv"
    assert error.value.found == (
        "npz/train/3 = npz/eval/0, npz/train/6 = npz/eval/3, npz/train/7 = npz/eval/3,"
        " npz/train/4 = npz/eval/1 (near), npz/train/5 = npz/eval/2 (mirrored);"
        f" 5 pair(s) in {path}"
    )
    assert "`data.drop_twins: true`" in error.value.fix
    assert "`data.allow_leak: true`" in error.value.fix
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [(row["id_a"], row["id_b"], row["kind"]) for row in rows] == [
        ("npz/train/3", "npz/eval/0", "exact"),
        ("npz/train/6", "npz/eval/3", "exact"),
        ("npz/train/7", "npz/eval/3", "exact"),
        ("npz/train/4", "npz/eval/1", "near"),
        ("npz/train/5", "npz/eval/2", "mirrored"),
    ]
    assert {(row["split_a"], row["split_b"]) for row in rows} == {("train", "eval")}
    assert [float(row["distance"]) < 0.003 for row in rows] == [True] * 5
    assert rows[0]["distance"] == "0.00000"


def test_the_file_outlives_the_failed_stage(
    leaky: tuple, files: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run from a config: exit 2, and the file that the message names is there."""
    monkeypatch.chdir(tmp_path)
    files(*leaky)
    Path("k.yaml").write_text(
        "data: {source: {kind: csv, file: d.csv}}\nteacher: {model: resnet8}\n"
        "targets: [onnxruntime]\n"
    )
    store = Path(".kdpipe")
    launch = Launch(
        Config.read(Path("k.yaml")), Store(store), RunDir(store / "k"), Selection(stop="data")
    )

    conclusion, _ = launch.run(())

    assert conclusion.exit_code == 2
    assert conclusion.line.startswith("FAILED | data: 4 eval sample(s), 33.3 %, are known from")
    told = [json.loads(line) for line in (store / "k" / "journal.jsonl").read_text().splitlines()]
    (error,) = [event["error"] for event in told if event["event"] == "failed"]
    (path,) = [word for word in error.split() if word.endswith("duplicates.csv")]
    assert len(Path(path).read_text().splitlines()) == 6
    assert not list((store / "drafts").iterdir())


def test_an_allowed_leak_marks_the_dataset(run: Callable, leaky: tuple) -> None:
    """It is warned of and counted, and calibration keeps clear of it all the same."""
    dataset, heard = run(*leaky, allow_leak=True, calibration=20)

    assert dataset.leaks == {
        "eval": 4, "share": 4 / 12, "known_from": {"train": 4},
        "exact": 2, "near": 1, "mirrored": 1, "group": 0,
    }  # fmt: skip
    assert len(heard.about("data.allow_leak lets it pass, and every number is marked")) == 1
    drawn = {int(id.rpartition("/")[2]) for id in dataset.calibration.ids}
    assert drawn.isdisjoint({3, 4, 5, 6, 7})
    assert len(drawn) == 20
    assert len((dataset.folder / "duplicates.csv").read_text().splitlines()) == 1 + 5 + 1


@pytest.mark.parametrize("cache", [True, False])
def test_twins_can_be_dropped(
    leaky: tuple, files: Callable, heard_of: Callable, cache: bool
) -> None:
    """Train loses exactly those samples, labels and pixels stay together, and nothing is marked."""
    train, held = leaky

    dataset, heard = heard_of(
        source=files(train, held), cache=cache, drop_twins=True, calibration=8
    )

    kept = [number for number in range(30) if number not in (3, 4, 5, 6, 7)]
    assert dataset.train.ids == tuple(f"train{number}.png" for number in kept)
    assert np.array_equal(dataset.train.images[np.arange(25)], train[kept])
    assert dataset.train.labels.tolist() == [number % 2 for number in kept]
    assert dataset.meta["samples"] == {"train": 25, "eval": 12}
    assert dataset.leaks == {}
    assert heard.about("data.drop_twins") == [
        "5 sample(s) of train are in eval too and are left out, by data.drop_twins:"
        " train3.png, train4.png, train5.png, train6.png, train7.png"
    ]


def test_where_all_of_train_is_in_eval_dropping_is_no_way(run: Callable, pictures: Callable):
    """Nothing would be left to train on: the leak is refused, and dropping is not advised."""
    pixels = pictures(8, 0)

    for drop in (False, True):
        with pytest.raises(DataError, match="8 eval sample") as error:
            run(pixels, pixels, drop_twins=drop)
        assert "drop_twins" not in (error.value.fix or "")


def test_copies_within_a_split_are_no_leak(run: Callable, pictures: Callable) -> None:
    """They are counted, told and listed."""
    train, held = pictures(30, 0), pictures(12, 1)
    train[9], held[5] = train[2], (held[4] * 0.9).astype(np.uint8)

    dataset, heard = run(train, held, calibration=8)

    assert dataset.leaks == {}
    assert heard.about("repeat") == [
        "1 of 30 train samples repeat another one: npz/train/2 = npz/train/9",
        "1 of 12 eval samples repeat another one: npz/eval/4 = npz/eval/5 (near)",
    ]
    rows = list(csv.reader((dataset.folder / "duplicates.csv").open()))[1:]
    assert rows[0] == ["train", "npz/train/2", "0", "train", "npz/train/9", "1", "exact", "0.00000"]
    assert rows[1][:6] == ["eval", "npz/eval/4", "0", "eval", "npz/eval/5", "1"]


def test_a_calibration_source_must_not_resemble_eval(
    run: Callable, pictures: Callable, tmp_path: Path
) -> None:
    """Neither equal nor nearly equal; train has nothing to do with it."""
    held, own = pictures(12, 1), pictures(16, 2)
    own[3] = (held[7] * 0.8).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=own, labels=np.zeros(16, np.int64))
    source = {"kind": "npz", "file": tmp_path / "own.npz"}
    settings = {"calibration": {"source": source, "samples": 16}}

    with pytest.raises(DataError, match="are known from calibration: near 1") as error:
        run(pictures(30, 0), held, **settings)
    dataset, heard = run(pictures(30, 0), held, **settings, allow_leak=True)

    assert "drop_twins" not in error.value.fix
    assert dataset.leaks["known_from"] == {"calibration": 1}
    assert len(heard.about("known from calibration")) == 1


def test_groups_leak_with_their_pixels_apart(
    files: Callable, heard_of: Callable, pictures: Callable
) -> None:
    """Every eval sample of a shared group counts, beside those that are twins."""
    train, held = pictures(30, 0), pictures(12, 1)
    held[5] = train[3]
    groups = np.arange(30) // 3, 9 + np.arange(12) // 4

    dataset, _ = heard_of(source=files(train, held, groups), calibration=8, allow_leak=True)

    assert dataset.leaks["eval"] == 5  # eval 0 ... 3 are of group 9, and eval 5 is a twin
    assert (dataset.leaks["exact"], dataset.leaks["group"]) == (1, 1)


def test_label_maps_leak_too(run: Callable, pictures: Callable) -> None:
    """Pixels alone count; rows of the file have no class."""
    train, held = pictures(10, 0), pictures(4, 1)
    held[2] = train[8]
    maps = np.random.default_rng(0).integers(0, 2, (14, 24, 24), np.uint8)
    given = {"labels": (maps[:10], maps[10:]), "task": Segmentation(), "calibration": 4}

    with pytest.raises(DataError, match="exact 1"):
        run(train, held, **given)
    dataset, _ = run(train, held, **given, drop_twins=True)

    assert dataset.train.labels.shape == (9, 24, 24)
    assert np.array_equal(dataset.train.labels[8], maps[9])
    assert dataset.meta["hygiene"]["conflicts"] is None
    assert dataset.meta["hygiene"]["balance"] is None


def test_small_images_are_compared_by_equality_alone(run: Callable, pictures: Callable) -> None:
    """Below 64 pixels near duplicates are not sought, and that is written down."""
    train, held = pictures(30, 0, side=7), pictures(12, 1, side=7)
    held[0] = train[0] - 1

    dataset, _ = run(train, held, calibration=8)

    assert dataset.meta["hygiene"]["pairs"]["train-eval"]["sought"] is None


def test_a_search_that_was_cut_says_so(
    run: Callable, pictures: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of how many samples near duplicates were sought, in the warning and in meta.json."""
    monkeypatch.setattr(search.search, "__defaults__", (*search.search.__defaults__[:-1], 30 * 4))

    dataset, heard = run(pictures(30, 0), pictures(12, 1), calibration=8)

    assert dataset.meta["hygiene"]["pairs"]["train-eval"]["sought"] == 4
    assert heard.about("near duplicates of train-eval were sought for 4 of 12 samples")


def test_meta_is_plain_json_and_names_its_thresholds(run: Callable, pictures: Callable) -> None:
    """No NaN, and the numbers that decided."""
    dataset, _ = run(pictures(30, 0), pictures(12, 1), calibration=8)

    text = (dataset.folder / "meta.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))["hygiene"]
    assert found["thresholds"] == {
        "correlation": inspection.CORRELATION,
        "detail": inspection.DETAIL,
    }
