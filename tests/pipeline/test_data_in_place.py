"""Data that lie beside the config and the store: what is part of the key, and what only is near.

Unlike `test_plan.py`, with the real data stage, launched from a config file named `k.yaml`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.pipeline.config import Config
from kdpipe.pipeline.launch import Launch, Selection
from kdpipe.pipeline.plan import Planned
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Store

CSV, FOLDER = "{kind: csv, file: data.csv}", "{kind: folder, folder: .}"
both = pytest.mark.parametrize("source", [CSV, FOLDER], ids=["csv", "folder"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shell's folder: 2 classes of 8 images 6x5, listed in data.csv too, and a spare image."""
    folder = tmp_path / "here"
    rows = ["path,label"]
    for number in range(16):
        name = f"{('cat', 'dog')[number % 2]}/{number}.png"
        rows.append(f"{name},{number % 2}")
        picture(folder / name, number)
    (folder / "data.csv").write_text("\n".join(rows))
    monkeypatch.chdir(folder)
    return folder


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def launch(source: str, *, cache: bool = True) -> Launch:
    """A run up to the data stage, in the shell's folder, as `kdpipe run k.yaml --to data`."""
    store = Path(".kdpipe")
    data = f"data: {{source: {source}, cache: {json.dumps(cache)}}}\n"
    Path("k.yaml").write_text(data + "teacher: {model: resnet8}\ntargets: [onnxruntime]\n")
    config = Config.read(Path("k.yaml"))
    return Launch(config, Store(store), RunDir(store / "runs" / "k"), Selection(stop="data"))


def run(source: str, **settings: Any) -> str:
    """How it ended."""
    return launch(source, **settings).run(())[0].line


def plan(source: str, **settings: Any) -> Planned:
    (planned,) = launch(source, **settings).plan()
    return planned


@pytest.mark.usefixtures("here")
@both
def test_beside_the_store(source: str) -> None:
    """A run does not change what it reads by writing its store there; the next one reuses it."""
    assert run(source).startswith("STOPPED | after data")
    assert plan(source).status == "stored"


@both
def test_only_what_is_read_counts(here: Path, source: str) -> None:
    """New notes, and a hidden image, change nothing; a changed image does."""
    run(source)
    (here / "notes.txt").write_text("of no concern")
    picture(here / "cat" / ".hidden.png", 1)

    assert plan(source).status == "stored"

    picture(here / "cat" / "0.png", 99)
    changed = plan(source)
    assert (changed.status, changed.why) == ("run", "the content of `data.source.folder` changed")


def test_an_image_more(here: Path) -> None:
    """A file that the CSV does not list is not part of it; a folder of images takes it in."""
    run(CSV)
    run(FOLDER)
    picture(here / "cat" / "99.png", 99)

    assert (plan(CSV).status, plan(FOLDER).status) == ("stored", "run")


def test_a_class_without_images(here: Path) -> None:
    """An empty folder is a class that nothing teaches: it is not passed over as nothing new."""
    run(FOLDER)
    (here / "eel").mkdir()

    assert plan(FOLDER).status == "run"
    assert run(FOLDER) == "FAILED | data: 1 of 3 classes have no training samples"


@pytest.mark.parametrize("link", ["eel", "cat/more"])
def test_images_behind_a_link(here: Path, tmp_path: Path, link: str) -> None:
    """A changed image in a linked folder is no reason to reuse what was made of the old one."""
    for number in range(8):
        picture(tmp_path / "elsewhere" / f"{number}.png", 100 + number)
    (here / link).symlink_to(tmp_path / "elsewhere")
    run(FOLDER)
    assert plan(FOLDER).status == "stored"

    picture(tmp_path / "elsewhere" / "1.png", 99)

    assert plan(FOLDER).status == "run"


@both
def test_moved_with_its_images_in_the_store(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Everything that was read is stored, so that where it came from does not matter."""
    run(source)
    monkeypatch.chdir(here.rename(tmp_path / "moved"))

    assert plan(source).status == "stored"


@pytest.mark.parametrize(
    ("source", "field"),
    [(CSV, "file"), (FOLDER, "folder"), ("{kind: csv, file: data.csv, folder: .}", "folder")],
)
def test_moved_with_its_images_in_place(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, field: str
) -> None:
    """Without the cache the output leads back to the images, so a move makes it another one."""
    run(source, cache=False)
    assert plan(source, cache=False).status == "stored"
    monkeypatch.chdir(here.rename(tmp_path / "moved"))

    planned = plan(source, cache=False)

    assert planned.status == "run"
    assert planned.why.startswith(f'`data.source.{field}` "{here}')
    assert run(source, cache=False).startswith("STOPPED")
    entry = plan(source, cache=False).entry
    assert entry
    assert json.loads((entry.folder / "meta.json").read_text())["files"] == str(tmp_path / "moved")


@pytest.mark.usefixtures("here")
def test_cache_says_nothing_of_sources_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of an .npz are stored in any case, so it may always move."""
    images = np.random.default_rng(0).integers(0, 256, (16, 5, 6), dtype=np.uint8)
    np.savez("d.npz", images=images, labels=np.arange(16) % 2)
    source = "{kind: npz, file: d.npz}"
    run(source, cache=False)
    monkeypatch.chdir(Path.cwd().rename(tmp_path / "moved"))

    assert plan(source, cache=False).status == "stored"
