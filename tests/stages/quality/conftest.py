"""Decisions of a teacher and an artifact on made samples, which tests of quality share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.tasks.classification import Classification

Logits = NDArray[np.float32]
Case = tuple[Logits, Logits, NDArray[np.int64]]


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """case(samples, classes): logits of an artifact and a teacher that mostly agree, and labels."""

    def made(samples: int, classes: int, seed: int = 0) -> Case:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, samples)
        teacher = rng.normal(size=(samples, classes)).astype(np.float32)
        teacher[np.arange(samples), labels] += 2
        own = teacher + rng.normal(scale=0.7, size=teacher.shape).astype(np.float32)
        return own, teacher, labels

    return made


@pytest.fixture(scope="session")
def compared(case) -> Callable[..., Compared]:
    """compared(samples, classes): what `Task.quality` is given of them."""

    def made(samples: int, classes: int, groups=None, seed: int = 0) -> Compared:
        own, teacher, labels = case(samples, classes, seed)
        outcomes = [Classification().outcome(each, labels) for each in (own, teacher)]
        names = tuple(f"c{number}" for number in range(classes))
        ids = tuple(f"s{number}" for number in range(samples))
        return Compared(*outcomes, labels, names, ids, groups)

    return made


@pytest.fixture(scope="session")
def decided(compared) -> Callable[..., Decisions]:
    """decided(samples, classes): the same as `Decisions`."""

    def made(samples: int, classes: int, seed: int = 0) -> Decisions:
        both = compared(samples, classes, seed=seed)
        return Classification().decisions(both.own, both.teacher, both.labels)

    return made
