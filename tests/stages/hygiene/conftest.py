"""What tests of the hygiene share: pictures with detail, and a data stage that is run on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.tasks.base import Task
from kdpipe.stages.tasks.classification import Classification

SIDE = 24


@dataclass
class Heard(Silent):
    """An observer that remembers warnings."""

    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Remembered."""
        self.warnings.append(text)

    def about(self, words: str) -> list[str]:
        """Those with these words."""
        return [text for text in self.warnings if words in text]


def cloudy(count: int, seed: int, side: int = SIDE, channels: int = 3) -> NDArray[np.uint8]:
    """Cloudy pictures (count, side, side, channels), pale in colour, no two alike."""
    rng = np.random.default_rng(seed)
    light = rng.integers(30, 226, (count, 6, 6, 1))
    coarse = (light + rng.integers(-30, 30, (count, 6, 6, channels))).astype(np.uint8)
    found = np.empty((count, side, side, channels), np.uint8)
    for number, image in enumerate(coarse):
        plain = Image.fromarray(image if channels == 3 else image[..., 0])
        large = np.asarray(plain.resize((side, side), Image.Resampling.BICUBIC))
        found[number] = large.reshape(side, side, channels)
    return found


Pictures = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def pictures() -> Pictures:
    """pictures(count, seed): uint8 (count, side, side, channels)."""
    return cloudy


Run = Callable[..., tuple[Dataset, Heard]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(train, held, ...): the dataset of these arrays, and what was told; settings of `data`."""

    def made(
        train: NDArray[np.uint8],
        held: NDArray[np.uint8],
        labels: tuple[Any, Any] | None = None,
        task: Task | None = None,
        **settings: Any,
    ) -> tuple[Dataset, Heard]:
        given = labels or (np.arange(len(train)) % 2, np.arange(len(held)) % 2)
        arrays = {"train_labels": np.asarray(given[0]), "eval_labels": np.asarray(given[1])}
        file = tmp_path / "data.npz"
        np.savez(file, train_images=train, eval_images=held, **arrays)
        out, scratch, heard = tmp_path / "out", tmp_path / "scratch", Heard()
        for folder in (out, scratch):
            folder.mkdir(exist_ok=True)
        stage = Data.model_validate({"source": {"kind": "npz", "file": file}, **settings})
        stage.run(DataInputs(task or Classification()), Work(out, scratch, heard))
        return Dataset(out), heard

    return made


@pytest.fixture
def heard_of(tmp_path: Path) -> Run:
    """heard_of(**settings): the dataset of any source, and what was told."""

    def made(**settings: Any) -> tuple[Dataset, Heard]:
        out, heard = tmp_path / "out", Heard()
        out.mkdir()
        Data.model_validate(settings).run(DataInputs(Classification()), Work(out, out, heard))
        return Dataset(out), heard

    return made


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """files(train, held, groups): the pictures as PNG files, listed in a CSV, as a source."""

    def made(
        train: NDArray[np.uint8], held: NDArray[np.uint8], groups: tuple[Any, Any] | None = None
    ) -> dict[str, Any]:
        lines = ["path,label,split" + (",group" if groups else "")]
        for part, (name, images) in enumerate((("train", train), ("eval", held))):
            for number, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / f"{name}{number}.png")
                group = f",{groups[part][number]}" if groups else ""
                lines.append(f"{name}{number}.png,{number % 2},{name}{group}")
        (tmp_path / "d.csv").write_text("\n".join(lines))
        return {"kind": "csv", "file": tmp_path / "d.csv"}

    return made
