"""Sources of arrays (digits, IDX, .npz): what they mean, and what they say of wrong files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from kdpipe.stages.pixels import Form
from kdpipe.stages.sources import SOURCES
from kdpipe.stages.sources.base import Part
from kdpipe.stages.sources.digits import Digits
from kdpipe.stages.sources.idx import Idx
from kdpipe.stages.sources.npz import Npz
from kdpipe.targets.errors import DataError


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder of four IDX files: 6 + 3 images of 5x4; the eval images are gzipped."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(random_images(6, 5, 4)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(6) % 3))
    content = gzip.compress(idx(random_images(3, 5, 4)))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    return tmp_path


def pixels(part: Part, form: Form) -> np.ndarray:
    rows = np.arange(len(part.ids))
    return np.concatenate([chunk.pixels for chunk in part.frames.chunks(rows, form, {})])


def test_every_source_is_listed_with_a_kind_and_a_summary():
    """Kinds are distinct, since a config tells sources apart by them."""
    kinds = [source.model_fields["kind"].default for source in SOURCES]

    assert kinds == ["digits", "idx", "folder", "npz", "csv", "masks"]
    assert all(source.summary for source in SOURCES)


def test_digits_fill_the_range():
    """1,797 images whose 17 levels reach from 0 to 255."""
    part = Digits().read().parts["pool"]

    images = pixels(part, Form(8, 8, 1))

    assert images.shape == (1797, 8, 8, 1)
    assert len(np.unique(images)) == 17
    assert (images.min(), images.max()) == (0, 255)
    assert part.ids[3] == "digits/3"


def test_idx_plain_and_gzipped(mnist: Path):
    """Images, labels and the split are those of the files."""
    contents = Idx(folder=mnist, classes=("a", "b", "c")).read()

    train, held = contents.parts["train"], contents.parts["eval"]
    assert np.array_equal(pixels(train, Form(5, 4, 1))[..., 0], random_images(6, 5, 4))
    assert np.array_equal(pixels(held, Form(5, 4, 1))[..., 0], random_images(3, 5, 4))
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert held.ids == ("idx/eval/0", "idx/eval/1", "idx/eval/2")
    assert contents.classes == ("a", "b", "c")


def test_idx_reads_only_the_rows_asked_for(mnist: Path):
    """A subset comes in its order and brings no other image along."""
    frames = Idx(folder=mnist).read().parts["train"].frames

    chunks = frames.chunks(np.array([1, 4]), Form(5, 4, 1), {})

    (images,) = [chunk.pixels for chunk in chunks]
    assert np.array_equal(images[..., 0], random_images(6, 5, 4)[[1, 4]])


def test_idx_files_are_the_four_that_are_read(mnist: Path):
    """What else lies in the folder does not enter the key."""
    (mnist / "readme.txt").touch()

    files = Idx(folder=mnist).files()["folder"]

    assert files.folder == mnist
    assert files.names == (
        "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte",
    )  # fmt: skip


def test_idx_missing_file_names_the_homepage(mnist: Path):
    """A file that is not there is named before the run, with where to get it."""
    (mnist / "t10k-labels-idx1-ubyte").unlink()

    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\[.gz\] is missing") as error:
        Idx(folder=mnist, homepage="https://example.org/data").check()

    assert "get it from https://example.org/data" in error.value.fix
    assert "train-images-idx3-ubyte" in error.value.found


def test_idx_missing_folder_names_the_nearest(tmp_path: Path):
    """The error shows how much of the path exists."""
    with pytest.raises(DataError, match="is not there") as error:
        Idx(folder=tmp_path / "a" / "b").check()

    assert error.value.found == f"only {tmp_path} exists"


def test_idx_twice_is_ambiguous(mnist: Path):
    """A file both plain and gzipped is an error, not a guess."""
    (mnist / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(6))))

    with pytest.raises(DataError, match="there twice"):
        Idx(folder=mnist).check()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\x00\x00\x0b\x03" + bytes(12), "not an IDX file"),
        ("train-images-idx3-ubyte", b"", "not an IDX file"),
        ("train-images-idx3-ubyte", idx(np.zeros((6, 0, 4))), "is empty"),
        ("train-images-idx3-ubyte", idx(np.zeros((6, 5, 4)))[:-1], "is cut off"),
        ("train-images-idx3-ubyte", idx(np.zeros((6, 5, 4))) + b"\x00", "longer than it says"),
        ("train-images-idx3-ubyte", idx(np.zeros((7, 5, 4))), "do not pair up"),
        ("train-labels-idx1-ubyte", idx(np.zeros(6))[:-1], "is cut off"),
        ("train-labels-idx1-ubyte", idx(np.zeros(6)) + b"\x00", "longer than it says"),
        ("t10k-images-idx3-ubyte.gz", b"not gzip at all", "is damaged"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(bytes(99), mtime=0)[:-6], "not an IDX|damaged"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(idx(random_images(3, 5, 4)), mtime=0)[:-12],
            "is damaged",
        ),
    ],
)
def test_idx_that_contradicts_itself(mnist: Path, file: str, content: bytes, message: str):
    """False magic numbers, counts and lengths, and broken gzip streams, are named."""
    (mnist / file).write_bytes(content)

    with pytest.raises(DataError, match=message):
        [pixels(part, Form(5, 4, 1)) for part in Idx(folder=mnist).read().parts.values()]


def test_fashion_mnist():
    """The real files read as what their authors say: 60,000 + 10,000 of ten even classes."""
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("../shared/data/fashion-mnist is not here")

    contents = Idx(folder=folder).read()

    train, held = contents.parts["train"], contents.parts["eval"]
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(held.labels).tolist() == [1000] * 10
    images = pixels(held, Form(28, 28, 1))
    assert images.shape == (10_000, 28, 28, 1)
    assert round(float(images.mean()) / 255, 4) == 0.2868


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_pool_with_groups(tmp_path: Path, save):
    """A pool keeps images, labels and, renumbered, its groups; colour stays."""
    images = random_images(5, 4, 3, 3)
    path = tmp_path / "data.npz"
    save(path, images=images, labels=np.arange(5), groups=np.array(["p", "q", "p", "r", "q"]))

    part = Npz(file=path).read().parts["pool"]

    assert np.array_equal(pixels(part, Form(4, 3, 3)), images)
    assert part.labels.tolist() == [0, 1, 2, 3, 4]
    assert part.groups is not None
    assert part.groups.tolist() == [0, 1, 0, 2, 1]


def test_npz_with_splits(tmp_path: Path):
    """Four arrays are train and eval; (N, H, W) is grey."""
    path = tmp_path / "data.npz"
    train, held = random_images(5, 4, 3), random_images(2, 4, 3)
    np.savez(path, train_images=train, train_labels=[0] * 5, eval_images=held, eval_labels=[0, 0])

    parts = Npz(file=path).read().parts

    assert np.array_equal(pixels(parts["eval"], Form(4, 3, 1))[..., 0], held)
    assert len(parts["train"].ids) == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "does not hold the arrays"),
        ({"images": np.zeros((2, 4, 4)), "labels": [0, 1]}, "are not images"),
        ({"images": np.zeros((2, 4), np.uint8), "labels": [0, 1]}, "are not images"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8), "labels": [0, 1]}, "are not images"),
        ({"images": np.zeros((4, 4, 2), np.uint8).T, "labels": [0, 1]}, "Fortran"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, 1, 2]}, "does not pair up"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([{}, 1], object)},
            "Object arrays",
        ),
    ],
)
def test_npz_that_is_no_dataset(tmp_path: Path, arrays: dict, message: str):
    """Missing arrays, other dtypes and shapes, and pickled objects are refused."""
    np.savez(tmp_path / "data.npz", **arrays)

    with pytest.raises(DataError, match=message):
        Npz(file=tmp_path / "data.npz").read()


def test_npz_that_is_cut_off(tmp_path: Path):
    """Half a file is no .npz."""
    path = tmp_path / "data.npz"
    np.savez(path, images=random_images(5, 4, 4), labels=np.arange(5))
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(DataError, match="cannot be read as"):
        Npz(file=path).read()


def test_npz_with_flipped_bits(tmp_path: Path):
    """A damaged member is noticed by its checksum when it is read."""
    path = tmp_path / "data.npz"
    np.savez(path, images=random_images(5, 40, 40), labels=np.arange(5))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as"):
        pixels(Npz(file=path).read().parts["pool"], Form(40, 40, 1))
