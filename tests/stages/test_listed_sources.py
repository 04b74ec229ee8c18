"""Sources of image files (folder, CSV): what they mean, and what they say of wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.base import Files
from kdpipe.stages.pixels import Form
from kdpipe.stages.sources.base import Part
from kdpipe.stages.sources.folder import Folder
from kdpipe.stages.sources.manifest import Manifest
from kdpipe.targets.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/{cat,dog} and val/{cat,dog} with one 3x2 image each."""
    for split in ("train", "val"):
        for name in ("dog", "cat"):
            picture(tmp_path / split / name / "1.png")
    return tmp_path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 2, 3), 9, np.uint8)).save(path)


def pixels(part: Part, form: Form) -> np.ndarray:
    rows = np.arange(len(part.ids))
    return np.concatenate([chunk.pixels for chunk in part.frames.chunks(rows, form, {})])


def test_folder_with_splits(tree: Path):
    """train/ and val/ are the splits; classes are numbered by name; ids are relative paths."""
    contents = Folder(folder=tree).read()

    assert contents.classes == ("cat", "dog")
    assert contents.parts["train"].ids == ("train/cat/1.png", "train/dog/1.png")
    assert contents.parts["eval"].ids == ("val/cat/1.png", "val/dog/1.png")
    assert contents.parts["eval"].labels.tolist() == [0, 1]
    assert contents.warnings == ()


def test_folder_of_classes_is_one_pool(tree: Path):
    """Without train/ the folders are the classes."""
    contents = Folder(folder=tree / "train").read()

    assert list(contents.parts) == ["pool"]
    assert contents.parts["pool"].ids == ("cat/1.png", "dog/1.png")


def test_folder_takes_any_case_and_depth_and_names_the_rest(tree: Path):
    """Suffixes in capitals and nested folders count; hidden files do not; others are named."""
    cat = tree / "train" / "cat"
    (cat / "1.png").rename(cat / "2.PNG")
    picture(cat / "deep" / "3.jpeg")
    (cat / ".hidden.png").touch()
    (cat / ".cache").mkdir()
    (cat / ".cache" / "4.png").touch()
    (cat / "notes.txt").touch()
    (tree / "val" / "readme.md").touch()

    contents = Folder(folder=tree).read()

    assert contents.parts["train"].ids[:2] == ("train/cat/2.PNG", "train/cat/deep/3.jpeg")
    assert len(contents.parts["train"].ids) == 3
    assert contents.warnings == ("left out, not images: train/cat/notes.txt, val/readme.md",)


def test_folder_files_are_those_that_are_read(tree: Path):
    """Images and class folders are listed for the key; the store, configs and the like are not."""
    (tree / ".kdpipe").mkdir()
    (tree / ".kdpipe" / "journal.png").touch()
    (tree / "kdpipe.yaml").touch()
    (tree / "train" / "cat" / "notes.txt").touch()
    (tree / "train" / "eel").mkdir()
    source = Folder(folder=tree)

    files = source.files()["folder"]

    ids = [id for part in source.read().parts.values() for id in part.ids]
    classes = {"train/cat", "train/dog", "train/eel", "val/cat", "val/dog"}
    assert files.folder == tree
    assert set(files.names) == classes | set(ids)
    assert len(files.names) == 5 + 4


def test_folder_enters_links(tree: Path, tmp_path_factory: pytest.TempPathFactory):
    """A linked folder, as a class or inside one, is read and listed like any other."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "7.png")
    (tree / "train" / "cat" / "more").symlink_to(elsewhere)
    (tree / "train" / "eel").symlink_to(elsewhere)
    source = Folder(folder=tree)

    ids = set(source.read().parts["train"].ids)

    assert ids > {"train/cat/more/7.png", "train/eel/7.png"}
    assert ids < set(source.files()["folder"].names)


@pytest.mark.parametrize("target", [".", "..", "../../val/dog"])
def test_folder_refuses_links_in_circles(tree: Path, target: str):
    """A link to a folder above it, directly or by way of another link, is named."""
    (tree / "train" / "cat" / "again").symlink_to(target)
    (tree / "val" / "dog" / "back").symlink_to(tree / "train" / "cat")

    for reads in (Folder(folder=tree).files, Folder(folder=tree).read):
        with pytest.raises(DataError, match="leads back") as error:
            reads()
        assert " -> " in error.value.found


@pytest.mark.parametrize(
    ("make", "drop"), [("test", ""), ("", "val"), ("", "train")], ids=["two", "no eval", "no train"]
)
def test_folder_with_unclear_splits(tree: Path, make: str, drop: str):
    """Two eval folders, none, or an eval folder alone are errors, before the run."""
    if make:
        (tree / make).mkdir()
    if drop:
        (tree / drop).rename(tree / f".{drop}")

    with pytest.raises(DataError, match="neither train/ with one of eval/, val/, test/"):
        Folder(folder=tree).check()


def test_folder_without_folders(tmp_path: Path):
    """An empty folder, or a file, is an error before the run."""
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="neither"):
        Folder(folder=tmp_path).check()
    with pytest.raises(DataError, match="is not there") as error:
        Folder(folder=tmp_path / "file").check()
    assert "of another type" in error.value.found


def test_files_survey_upright_sizes_and_grey(tmp_path: Path):
    """All sizes are found with a file each; one colour file makes the dataset colour."""
    Image.new("L", (4, 3)).save(tmp_path / "grey.png")
    Image.new("I;16", (4, 3)).save(tmp_path / "deep.png")
    Image.new("RGB", (5, 3)).save(tmp_path / "rgb.png")
    (tmp_path / "data.csv").write_text("path,label\ngrey.png,0\ndeep.png,0\nrgb.png,1\n")
    frames = Manifest(file=tmp_path / "data.csv").read().parts["pool"].frames

    assert frames.survey(np.arange(2)).channels == 1
    survey = frames.survey(np.arange(3))
    assert (dict(survey.sizes), survey.channels) == ({(3, 4): "grey.png", (3, 5): "rgb.png"}, 3)


def manifest(tmp_path: Path, text: str) -> Manifest:
    for name in ("a.png", "b.png", "c, d.png", "e.png"):
        picture(tmp_path / name)
    (tmp_path / "data.csv").write_bytes(text.encode())
    return Manifest(file=tmp_path / "data.csv")


def test_csv_names_splits_and_groups(tmp_path: Path):
    """Names become numbers, groups too; quoting, a BOM, CRLF and other columns are no matter."""
    text = (
        "\ufeffpath,who,label,split,group\r\na.png,x,dog,train,2\r\n"
        'b.png,y,cat,test,1\r\n"c, d.png",z,dog,train,10\r\ne.png,,cat,train,1\r\n'
    )

    contents = manifest(tmp_path, text).read()

    train, held = contents.parts["train"], contents.parts["eval"]
    assert contents.classes == ("cat", "dog")
    assert train.ids == ("a.png", "c, d.png", "e.png")
    assert train.labels.tolist() == [1, 1, 0]
    assert train.groups is not None
    assert held.groups is not None
    assert train.groups[2] == held.groups[0]
    assert len(set(train.groups.tolist())) == 3
    assert pixels(train, Form(3, 2, 3)).shape == (3, 3, 2, 3)


def test_csv_numbers_are_class_numbers(tmp_path: Path):
    """Labels that are all whole numbers stay what they are, in one pool."""
    contents = manifest(tmp_path, "path,label\na.png,10\nb.png,2\n").read()

    assert contents.parts["pool"].labels.tolist() == [10, 2]
    assert contents.classes is None
    assert contents.parts["pool"].groups is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns"),
        ("file,label\na.png,1\n", "lacks the columns"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "empty or has too many\n  found: line 2"),
        ("path,label\na.png,1,2\n", "empty or has too many\n  found: line 2"),
        ("path,label\na.png,1\n./a.png,1\n", r"twice\n  found: ./a.png \(lines 2 and 3\)"),
        ("path,label\n../a.png,1\n", "lists files outside"),
        ("path,label\n/a.png,1\n", "lists files outside"),
        ("path,label\nx.png,1\na.png,1\ny.png,1\n", "line 2: x.png, line 4: y.png"),
        ("path,label,group\na.png,1,\nb.png,1,g\n", "the group of some rows empty"),
        ("path,label,split\na.png,1,train\nb.png,1,\n", "the splits of data.csv"),
        ("path,label,split\na.png,1,train\nb.png,1,train\n", "the splits of data.csv"),
        ("path,label,split\na.png,1,train\nb.png,1,val\ne.png,1,test\n", "the splits of"),
        ('path,label\n"a.png,1\n', "is not a CSV file"),
    ],
)
def test_csv_that_is_wrong(tmp_path: Path, text: str, message: str):
    """Every fault of the manifest is named with its line."""
    with pytest.raises(DataError, match=message):
        manifest(tmp_path, text).read()


def test_csv_folder_is_where_paths_start(tmp_path: Path):
    """`folder` moves the start of the paths; only files that are listed enter the key."""
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "unlisted.png")
    (tmp_path / "data.csv").write_text("path,label\na.png,0\n")

    source = Manifest(file=tmp_path / "data.csv", folder=tmp_path / "images")

    source.check()
    assert source.files() == {
        "file": tmp_path / "data.csv",
        "folder": Files(tmp_path / "images", ("a.png",)),
    }
    assert source.places() == ("folder",)
    assert Manifest(file=tmp_path / "data.csv").places() == ("file",)
