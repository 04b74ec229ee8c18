"""Evidence on disk: what was measured comes back, and older evidence can still be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence, Timing


@pytest.fixture
def evidence() -> Evidence:
    """Three samples of two groups, two timed and two weighed processes."""
    return Evidence(
        artifact="openvino-int8",
        target="openvino",
        precision="int8",
        metric="accuracy",
        score=np.array([1, 0, 1], np.float32),
        teacher_score=np.ones(3, np.float32),
        agreement=np.array([1, 0, 1], np.float32),
        groups=np.array([4, 4, 9]),
        latency={"artifact": Timing((np.array([1.0, 2.0]), np.array([1.5])))},
        values={"memory_bytes": 5.0},
        memory={"artifact": np.array([4.0, 6.0]), "teacher": np.array([-1.0, 3.0])},
    )


def test_groups_and_processes_come_back(evidence: Evidence, tmp_path: Path) -> None:
    """Raw samples of every kind survive, each under its role."""
    evidence.save(tmp_path)
    loaded = Evidence.load(tmp_path)

    assert loaded.groups is not None
    assert loaded.groups.tolist() == [4, 4, 9]
    assert {role: each.tolist() for role, each in loaded.memory.items()} == {
        "artifact": [4.0, 6.0],
        "teacher": [-1.0, 3.0],
    }
    assert [each.tolist() for each in loaded.latency["artifact"].processes] == [[1.0, 2.0], [1.5]]
    assert loaded.values == evidence.values


def test_older_evidence_has_neither_groups_nor_weighed_processes(tmp_path: Path) -> None:
    """What an earlier version wrote is read as samples on their own and memory not measured."""
    scores = dict.fromkeys(("score", "teacher_score", "agreement"), np.ones(2, np.float32))
    np.savez_compressed(tmp_path / "evidence.npz", **scores)
    names = {"artifact": "a", "target": "t", "precision": "fp32", "metric": "accuracy"}
    (tmp_path / "evidence.json").write_text(json.dumps({**names, "values": {}, "processes": {}}))

    loaded = Evidence.load(tmp_path)

    assert loaded.groups is None
    assert dict(loaded.memory) == {}
