"""Corrupted pictures: what each corruption does, that both models see the same, what it proves."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from kdpipe.stages.dataset import Split
from kdpipe.stages.images import StoredImages
from kdpipe.stages.quality.band import band, mean_scores, robust_drop, robust_score
from kdpipe.stages.quality.corruptions import CORRUPTIONS, corrupt
from kdpipe.stages.quality.robustness import Kind, Robustness, chosen, robustness
from kdpipe.stages.statistics import paired_drop
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.targets.device.preprocess import Preprocess

ROWS = np.arange(4)


def pictures(side: int, channels: int) -> np.ndarray:
    """Four pictures with structure and every level of grey."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, side)[None, :, None, None] * np.ones((4, 1, side, channels))
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def split_of(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    np.save(tmp_path / "images.npy", images)
    _, height, width, channels = images.shape
    how = Preprocess(height, width, [0.0] * channels, [1.0] * channels)
    return Split("eval", StoredImages(tmp_path / "images.npy"), labels, how)


def test_settings_name_what_there_is() -> None:
    """The YAML offers every corruption, and by default all of them."""
    assert tuple(CORRUPTIONS) == Kind.__args__ == Robustness().corruptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"corruptions": ["fog"]},
        {"corruptions": []},
        {"corruptions": ["jpeg", "jpeg"]},
        {"severities": [4]},
        {"severities": [1, 1]},
        {"samples": 0},
        {"noise": 1},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    """No corruption without a definition, and none that counts twice."""
    with pytest.raises(ValidationError):
        Robustness.model_validate(wrong)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (70, 64)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_pictures_keep_their_form_and_get_worse(kind: str, size, channels: int) -> None:
    """Grey and colour, any size: uint8 of the same shape, further away with every severity."""
    images = pictures(70, channels)[:, : size[0], : size[1]]

    found = [corrupt(images, kind, severity, ROWS) for severity in (1, 2, 3)]

    distances = [np.abs(each.astype(float) - images).mean() for each in found]
    assert {(each.shape, each.dtype) for each in found} == {(images.shape, images.dtype)}
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_sample_is_corrupted_the_same_way_in_any_batch(kind: str) -> None:
    """Teacher and artifact may be fed in other batches; another seed is another noise."""
    images = pictures(16, 3)

    whole = corrupt(images, kind, 2, ROWS)
    alone = [corrupt(images[row : row + 1], kind, 2, ROWS[row : row + 1])[0] for row in ROWS]

    assert np.array_equal(whole, np.stack(alone))
    assert np.array_equal(whole, corrupt(images, kind, 2, ROWS, seed=1)) == (
        kind != "gaussian_noise"
    )


def test_noise_has_the_published_deviation() -> None:
    """0.04 of white for small pictures, 0.08 for large ones (CIFAR-10-C and ImageNet-C)."""
    for side, expected in ((32, 0.04), (64, 0.08)):
        grey = np.full((4, side, side, 3), 128, np.uint8)
        difference = corrupt(grey, "gaussian_noise", 1, ROWS).astype(float) - 128
        assert difference.std() / 255 == pytest.approx(expected, rel=0.03)
        assert abs(difference.mean()) < 0.5


def test_brightness_adds_to_the_value_and_keeps_the_hue() -> None:
    """By hand: 0.1 of 255 more in the largest channel, the others in proportion; black is grey."""
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 0, 0] = 100, 50, 0

    found = corrupt(image, "brightness", 1, ROWS[:1])

    assert found[0, 0, 0].tolist() == [126, 63, 0]  # 125.5 and 62.75
    assert found[0, 1, 1].tolist() == [26, 26, 26]


def test_contrast_leaves_a_share_of_the_distance_from_the_mean() -> None:
    """0.4 of it, in large pictures."""
    image = np.zeros((1, 64, 64, 1), np.uint8)
    image[0, :32] = 200

    found = corrupt(image, "contrast", 1, ROWS[:1])

    assert np.unique(found).tolist() == [60, 140]


def test_blur_keeps_the_mean_and_takes_the_edges() -> None:
    """A step becomes a ramp."""
    image = np.zeros((1, 64, 64, 1), np.uint8)
    image[0, :, 32:] = 200

    found = corrupt(image, "gaussian_blur", 3, ROWS[:1])[0, 10, :, 0].astype(int)

    assert (found[:20] == 0).all()
    assert (found[-20:] == 200).all()
    assert found.mean() == pytest.approx(100, abs=1)
    assert np.diff(found).max() < 30


def test_jpeg_is_what_pillow_writes_at_that_quality() -> None:
    """Quality 80 of a small picture."""
    image = pictures(16, 3)
    file = BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=80)

    assert np.array_equal(corrupt(image, "jpeg", 1, ROWS)[0], np.asarray(Image.open(file)))


def brightest(x: np.ndarray) -> np.ndarray:
    """A network of a kind: the logit of class 1 is how bright the right half is."""
    halves = [x[:, :, :, :8].mean((1, 2, 3)), x[:, :, :, 8:].mean((1, 2, 3))]
    return np.stack(halves, axis=1).astype(np.float32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """300 grey pictures, noise with one half a little brighter, which is the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    images = rng.normal(100, 40, (300, 16, 16, 1))
    for image, label in zip(images, labels, strict=True):
        image[:, 8 * label : 8 * label + 8] += 8
    return split_of(tmp_path, np.clip(images, 0, 255).astype(np.uint8), labels)


def test_scores_are_those_of_the_corrupted_pixels(split: Split) -> None:
    """Each variant, for the chosen samples, in both models; a model that guesses is no better."""
    settings = Robustness(corruptions=("gaussian_noise", "jpeg"), severities=(1, 3), samples=280)
    rows, seen = chosen(300, 280), []

    def guesser(x: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([1, 0]), (len(x), 1))

    found = robustness(
        {"artifact": guesser, "teacher": brightest},
        split,
        Classification(),
        settings,
        lambda done, total, note: seen.append((done, total, note)),
    )

    assert list(found) == ["gaussian_noise/1", "gaussian_noise/3", "jpeg/1", "jpeg/3"]
    pixels = corrupt(split.images[rows], "gaussian_noise", 3, rows)
    expected = brightest(split.preprocess(pixels)).argmax(1) == split.labels[rows]
    own, teacher = found["gaussian_noise/3"]
    assert np.array_equal(teacher, expected.astype(np.float32))
    assert np.array_equal(own, (split.labels[rows] == 0).astype(np.float32))
    assert seen[-1] == (4, 4, "jpeg 3")


def test_a_model_loses_nothing_against_itself(split: Split) -> None:
    """It sees the same pixels in both roles."""
    both = {"artifact": brightest, "teacher": brightest}

    found = robustness(both, split, Classification(), Robustness(samples=50))

    assert len(found) == 15
    assert all(np.array_equal(own, teacher) for own, teacher in found.values())
    assert robust_drop(found, 0.95).drop == 0


def test_label_maps_stay_as_they_are(tmp_path: Path) -> None:
    """Every pixel keeps its label, as nothing is moved."""
    images = np.zeros((6, 16, 16, 1), np.uint8)
    images[:, :, 8:] = 255
    maps = (images[..., 0] > 0).astype(np.uint8)

    def threshold(x: np.ndarray) -> np.ndarray:
        return np.concatenate([0.5 - x, x - 0.5], axis=1).astype(np.float32)

    both = {"artifact": threshold, "teacher": threshold}
    settings = Robustness(corruptions=("contrast", "jpeg"), severities=(1,))
    found = robustness(both, split_of(tmp_path, images, maps), Segmentation(), settings)

    assert all(own.tolist() == [1] * 6 for own, _ in found.values())


def test_outputs_that_are_not_finite_are_wrong(split: Split) -> None:
    """A network that breaks on noise scores 0 on it."""
    forwards = {
        "artifact": lambda x: np.full((len(x), 2), np.nan, np.float32),
        "teacher": brightest,
    }

    found = robustness(forwards, split, Classification(), Robustness(severities=(1,), samples=30))

    assert all(not own.any() for own, _ in found.values())


def test_a_sample_is_one_sample_however_often_it_is_corrupted() -> None:
    """n counts samples, and bounds do not shrink with copies of a corruption."""
    rng = np.random.default_rng(0)
    own, teacher = ((rng.random(80) < share).astype(np.float32) for share in (0.7, 0.9))
    once = {"jpeg/1": (own, teacher)}
    copies = {f"jpeg/{number}": (own, teacher) for number in range(3)}

    assert robust_drop(copies, 0.95) == robust_drop(once, 0.95) == paired_drop(teacher, own, 0.95)
    assert robust_score(copies, 0.95).n == 80


def test_what_is_reported(split: Split) -> None:
    """Each variant and the mean, both with bounds, beside the same samples as they are."""
    rng = np.random.default_rng(0)
    groups = np.arange(300) // 5
    clean, taught = ((rng.random(300) < 0.9).astype(np.float32) for _ in range(2))
    rows = chosen(300, 100)
    corrupted = {
        "jpeg/1": (clean[rows], taught[rows]),
        "jpeg/2": (np.zeros(100, np.float32), taught[rows]),
    }

    found = band(corrupted, clean, taught, 0.95, groups)

    assert found is not None
    assert found["samples"] == 100
    assert found["lowest"] == "jpeg/2"
    assert found["clean"] == found["corruptions"]["jpeg/1"]
    assert found["mean"]["artifact"]["value"] == pytest.approx(clean[rows].mean() / 2)
    assert found["mean"]["drop"]["n"] == np.unique(groups[rows]).size
    assert np.array_equal(mean_scores(corrupted)[1], taught[rows])
    assert band({}, clean, taught, 0.95) is None


def test_the_choice_is_told_by_two_numbers() -> None:
    """Random, in order, without repeats; all of fewer."""
    rows = chosen(1000, 100)

    assert np.array_equal(rows, chosen(1000, 100))
    assert (np.diff(rows) > 0).all()
    assert np.unique(rows % 10).size == 10
    assert chosen(5, 100).tolist() == [0, 1, 2, 3, 4]


def test_the_documented_severities_are_those_of_the_code() -> None:
    """Each row of the table in docs/quality.md, and its YAML, which has the defaults."""
    text = (Path(__file__).resolve().parents[3] / "docs/quality.md").read_text()
    rows = re.findall(r"^\| `(\w+)`, [^|]*\| ([\d., ]+) \| ([\d., ]+) \|$", text, re.MULTILINE)
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)

    found = {
        name: tuple(tuple(float(x) for x in each.split(",")) for each in strengths)
        for name, *strengths in rows
    }
    assert found == {name: (each.large, each.small) for name, each in CORRUPTIONS.items()}
    settings = yaml.safe_load(block)["benchmark"]["robustness"]
    assert Robustness.model_validate(settings) == Robustness()
