"""A run's folder: results without NaN, the artifacts that were measured, their samples."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.pipeline.journal import Journal
from kdpipe.pipeline.rundir import SCHEMA, RunDir
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import StageError, UsageError


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    """A run folder that does not exist yet."""
    return RunDir(tmp_path / "run")


def evidence(name: str = "toy-int8") -> Evidence:
    """Four samples and two processes."""
    return Evidence(
        artifact=name,
        target="toy",
        precision="int8",
        metric="accuracy",
        score=np.array([1, 0, 1, 1], np.float32),
        teacher_score=np.ones(4, np.float32),
        agreement=np.ones(4, np.float32),
        latency={"artifact": Timing((np.array([1.0, 2.0]), np.array([1.5])))},
        values={"size_bytes": 3.0},
    )


def whole(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Results of a run that passed."""
    measured = {
        "target": "toy", "precision": "int8", "size_bytes": 3, "samples": 4, "drop": {},
        "latency_ms": None, "speedup": None, "speedup_fp32": None,
    }  # fmt: skip
    networks = dict.fromkeys(("teacher", "student", "control"))
    return {
        "run": {"kdpipe": "0.1.0", "config": "/kdpipe.yaml", "assignments": []},
        "metric": "accuracy",
        **networks,
        "waterfall": [],
        "artifacts": [measured | row for row in rows],
        "skipped": [],
        "failed": [],
        "gate": {"policy": [], "rules": [], "skipped": []},
        "verdict": "PASSED",
        "exit_code": 0,
        "reason": "no rule was asked for",
        **changes,
    }


def finish(rundir: RunDir, file: Path, name: str = "toy-int8") -> dict[str, Any]:
    """Keep an artifact and write results that name it; returns its row."""
    sha256 = digest(file)
    row = {"id": name, "sha256": sha256, **rundir.keep(name, file, sha256, evidence(name))}
    rundir.write_results(whole(row))
    return row


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An artifact that is one file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"abc")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact that is a folder of read-only files, as the store has them."""
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    for name in ("a.xml", "sub/b.bin"):
        (path / name).write_text(name)
        (path / name).chmod(0o444)
    return path


def test_results_come_back(rundir: RunDir) -> None:
    """What is written is read again, with the name of its format first."""
    rundir.write_results(whole())

    assert rundir.read_results() == {"schema": SCHEMA, **whole()}
    assert rundir.results.read_text().startswith('{\n  "schema": ')
    assert [p.name for p in rundir.folder.iterdir()] == ["results.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_nan_in_results(rundir: RunDir, value: float) -> None:
    """NaN and infinity are refused, and the older results stay whole."""
    rundir.write_results(whole(x=1))

    with pytest.raises(ValueError, match="JSON"):
        rundir.write_results(whole(x=value))

    assert rundir.read_results()["x"] == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "holds no results"),
        ("{", "is damaged"),
        ("[]", "is damaged: it is no JSON object"),
        ("null", "is damaged: it is no JSON object"),
        ('{"schema": "kdpipe.results/1"}', "is damaged: run: Field required"),
        ('{"schema": "kdpipe.results/99"}', "has another format"),
    ],
)
def test_results_that_cannot_be_read(rundir: RunDir, text: str | None, what: str) -> None:
    """Absent, damaged and foreign results are usage errors that say what to do."""
    rundir.folder.mkdir()
    if text:
        rundir.results.write_text(text)

    with pytest.raises(UsageError, match=what) as caught:
        rundir.read_results()

    assert caught.value.fix


def test_damaged_results_are_told_by_their_place(rundir: RunDir) -> None:
    """What a command would stumble over later is refused at once: a verdict without its reason."""
    verdict = {
        "rule": {"metric": "accuracy", "min": 0.5}, "artifact": "toy-int8", "verdict": "PASS",
        "measured": 0.9, "low": 0.8, "high": None, "limit": 0.5, "unit": "fraction", "n": 4,
    }  # fmt: skip
    rundir.write_results(whole(gate={"policy": [], "rules": [verdict], "skipped": []}))

    with pytest.raises(UsageError, match=r"is damaged: gate\.rules\[0\]\.reason: Field required"):
        rundir.read_results()


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    """Neither to read nor to write."""
    file = tmp_path / "kdpipe.yaml"
    file.touch()

    with pytest.raises(UsageError, match="holds no results"):
        RunDir(file).read_results()
    for folder in (file, file / "below"):
        with pytest.raises(UsageError, match="a file is in the way"), RunDir(folder).lock():
            pass


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_keep(rundir: RunDir, kind: str, request: pytest.FixtureRequest) -> None:
    """A copy of the artifact, file or folder, and of its samples; twice is as good as once."""
    file: Path = request.getfixturevalue(kind)
    finish(rundir, file)
    row = finish(rundir, file)

    assert row["path"] == f"artifacts/toy-int8/{file.name}"
    assert digest(rundir.folder / row["path"]) == row["sha256"]
    assert rundir.changed() == []
    (found,) = rundir.evidence()
    assert np.array_equal(found.score, evidence().score)
    assert found.latency["artifact"].pooled.tolist() == [1.0, 2.0, 1.5]


def test_keep_what_was_not_measured(rundir: RunDir, model: Path) -> None:
    """A file other than the measured one does not get into the run's folder as if it were."""
    with pytest.raises(StageError, match="toy: the stored artifact is not the one that was"):
        rundir.keep("toy", model, "0" * 64, evidence())


@pytest.mark.parametrize("kind", ["model", "folder"])
@pytest.mark.parametrize("change", ["edit", "remove"])
def test_changed_artifact(
    rundir: RunDir, kind: str, change: str, request: pytest.FixtureRequest
) -> None:
    """An artifact that was edited or removed after the run is named."""
    row = finish(rundir, request.getfixturevalue(kind))
    path = rundir.folder / row["path"]
    path = path / "a.xml" if path.is_dir() else path
    path.chmod(0o644)
    path.write_text("other") if change == "edit" else path.unlink()

    assert rundir.changed() == ["toy-int8: the file is not the one that was measured"]


def test_changed_samples(rundir: RunDir, model: Path) -> None:
    """Samples that were edited after the run are named, and so are those that nobody saw."""
    row = finish(rundir, model)
    better = replace(evidence(), score=np.ones(4, np.float32))
    better.save(rundir.folder / "evidence/toy-int8")
    said = ["toy-int8: the samples are not those that were measured"]

    assert rundir.changed() == said
    evidence().save(rundir.folder / "evidence/toy-int8")
    rundir.write_results(whole({**row, "evidence_sha256": None}))
    assert rundir.changed() == said


@pytest.mark.parametrize("file", ["evidence.npz", "evidence.json"])
@pytest.mark.parametrize("content", [None, b"", b"PK broken"])
def test_damaged_evidence(rundir: RunDir, model: Path, file: str, content: bytes | None) -> None:
    """Samples that are absent or damaged are a usage error that names the artifact."""
    finish(rundir, model)
    path = rundir.folder / "evidence" / "toy-int8" / file
    path.unlink() if content is None else path.write_bytes(content)

    with pytest.raises(UsageError, match="the samples of toy-int8 cannot be read"):
        rundir.evidence()


def test_forget(rundir: RunDir, model: Path) -> None:
    """What an earlier run concluded goes whole; its journal and records stay."""
    finish(rundir, model)
    rundir.write(rundir.records, json.dumps({}))
    rundir.forget()
    rundir.forget()

    assert [p.name for p in rundir.folder.iterdir()] == ["plan.json"]


def test_one_run_at_a_time(rundir: RunDir) -> None:
    """While a run holds its folder another one is refused at once; then the folder is free."""
    with rundir.lock():
        with pytest.raises(UsageError, match="another run is using") as caught, second(rundir):
            pass
        assert "--run-dir" in caught.value.fix

    with second(rundir):
        pass


def second(rundir: RunDir) -> AbstractContextManager[None]:
    """The lock, as another run asks for it."""
    return RunDir(rundir.folder).lock()


def ran(rundir: RunDir, *configs: Path) -> None:
    """Journal one run of each config."""
    journal = Journal(rundir.journal)
    for config in configs:
        journal.tell("run", config=str(config))
        journal.tell("fact", step="data", text="it went well")
    journal.close()


def test_folder_of_another_config(rundir: RunDir, tmp_path: Path) -> None:
    """A folder in which another config ran last is refused, also when that run was interrupted."""
    mine, other = tmp_path / "mine/k.yaml", tmp_path / "other/k.yaml"
    for config in (mine, other):
        config.parent.mkdir()
        config.touch()
    rundir.require(mine)
    ran(rundir, mine, other)

    with pytest.raises(UsageError, match="belongs to another config") as caught:
        rundir.require(mine)
    assert str(other) in caught.value.found
    assert "--run-dir" in caught.value.fix

    rundir.require(other)


def test_folder_of_the_same_config(
    rundir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the path to it is written, it is the same config; one that is gone owns nothing."""
    mine, link = tmp_path / "mine.yaml", tmp_path / "link.yaml"
    mine.touch()
    link.symlink_to(mine)
    ran(rundir, tmp_path / "gone.yaml")
    rundir.require(mine)
    ran(rundir, mine)
    monkeypatch.chdir(tmp_path)

    for spelling in (Path("mine.yaml"), Path("run/../mine.yaml"), link):
        rundir.require(spelling)


def test_a_folder_that_cannot_be_written_is_told(
    rundir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only disk: wrong use, with the cause, and no broken step."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(UsageError, match="cannot be written") as caught, rundir.lock():
        pass
    assert "Read-only" in caught.value.found
