"""The folder of a run: results, journal, evidence and a copy of every artifact that was measured.

results.json       what `docs/results.md` documents
journal.jsonl      every event, run after run
plan.json          what each output depended on, for the next plan's reasons
config.yaml        the config as it was read, below a comment with its `--set`, if any
lock               held by the run, or the `kdpipe gate`, that is using the folder
artifacts/<id>/    the measured files themselves
evidence/<id>/     the raw samples, which `kdpipe gate` judges again
ci/                what CI platforms read, see `docs/ci.md`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from kdpipe.pipeline import durable
from kdpipe.pipeline.journal import read
from kdpipe.pipeline.results_shape import fault
from kdpipe.stages.evidence import Evidence
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import StageError, UsageError

SCHEMA = "kdpipe.results/1"


class RunDir:
    """Reads and writes one run's folder; every file in it is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self.records = folder / "plan.json"
        self.results = folder / "results.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other processes.

        Raises UsageError when one is using it, and when it cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another run is using {self.folder}",
                fix="wait until it has ended, or give this one another --run-dir",
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise UsageError(
                f"{self.folder} cannot be the folder of a run: a file is in the way",
                fix="give another --run-dir",
            ) from None
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written",
                found=str(error),
                fix="let it be written, or take a copy of it",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def require(self, config: Path) -> None:
        """Refuse a folder that belongs to another config; one that is gone owns nothing.

        Configs are compared as files: however the path is written, and wherever it was typed.
        """
        owner = next((Path(path) for path in reversed(self._configs())), config)
        if owner.exists() and not owner.samefile(config):
            raise UsageError(
                f"{self.folder} belongs to another config",
                found=f"{owner}, and this is {config}",
                fix=f"give this one another folder, e.g. --run-dir {self.folder}-2",
            )

    def write(self, path: Path, text: str) -> None:
        """Replace a file in one step; it survives a power cut from then on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, text)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`; NaN and infinity are refused, JSON has neither."""
        text = json.dumps({"schema": SCHEMA, **results}, indent=2, allow_nan=False)
        self.write(self.results, text + "\n")

    def read_results(self) -> dict[str, Any]:
        """The results of the last finished run; UsageError when there are none, or damaged ones."""
        try:
            results: Any = json.loads(self.results.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{self.folder} holds no results",
                found="a file" if self.folder.is_file() else "",
                fix="give the --run-dir of a finished `kdpipe run`",
            ) from None
        except ValueError as error:
            raise self._damaged(str(error)) from None
        if not isinstance(results, dict):
            raise self._damaged("it is no JSON object")
        if results.get("schema") != SCHEMA:
            raise UsageError(
                f"{self.results} has another format",
                found=str(results.get("schema")),
                fix=f"run kdpipe again; this version reads {SCHEMA}",
            )
        if wrong := fault(results):
            raise self._damaged(wrong)
        return results

    def _damaged(self, why: str) -> UsageError:
        return UsageError(
            f"{self.results} is damaged: {why}",
            fix="run kdpipe again; what is stored is reused",
        )

    def keep(self, artifact: str, file: Path, sha256: str, evidence: Evidence) -> dict[str, str]:
        """Copy a measured artifact and its samples here.

        Returns what `results.json` says of them: `path`, relative to this folder, and
        `evidence_sha256`.

        Raises StageError when the copy is not the file that was measured.
        """
        home = self.folder / "artifacts" / artifact
        _empty(home)
        copy = home / file.name
        if file.is_dir():
            shutil.copytree(file, copy)
        else:
            shutil.copyfile(file, copy)
        if digest(copy) != sha256:
            raise StageError(
                f"{artifact}: the stored artifact is not the one that was measured",
                found=f"sha256 {digest(copy)}, measured {sha256}",
                fix="run kdpipe again; the damaged entry will be made anew",
            )
        samples = self.folder / "evidence" / artifact
        _empty(samples)
        evidence.save(samples)
        durable.sync_tree(home)
        durable.sync_tree(samples)
        path = copy.relative_to(self.folder).as_posix()
        return {"path": path, "evidence_sha256": digest(samples)}

    def forget(self) -> None:
        """Remove what an earlier run concluded, so that no stale verdict survives this one."""
        self.results.unlink(missing_ok=True)
        for name in ("artifacts", "evidence", "ci"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        durable.sync(self.folder)

    def evidence(self) -> list[Evidence]:
        """The raw samples of every artifact, in the order of the results.

        Raises UsageError when they are absent or damaged.
        """
        return [self._evidence(artifact["id"]) for artifact in self.read_results()["artifacts"]]

    def changed(self) -> list[str]:
        """What is no longer as the run left it, one sentence for each artifact or its samples."""
        rows = self.read_results()["artifacts"]
        return [sentence for row in rows for sentence in self._changed(row)]

    def _changed(self, row: Mapping[str, Any]) -> Iterator[str]:
        artifact = row["id"]
        if self._sha256(row["path"]) != row["sha256"]:
            yield f"{artifact}: the file is not the one that was measured"
        if self._sha256(f"evidence/{artifact}") != row.get("evidence_sha256"):
            yield f"{artifact}: the samples are not those that were measured"

    def _configs(self) -> list[str]:
        """The configs of the runs in this folder, the latest last."""
        events = read(self.journal) if self.journal.exists() else ()
        return [str(e["config"]) for e in events if e.get("event") == "run" and "config" in e]

    def _evidence(self, artifact: str) -> Evidence:
        folder = self.folder / "evidence" / artifact
        try:
            return Evidence.load(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise UsageError(
                f"the samples of {artifact} cannot be read",
                found=f"{folder}: {error}",
                fix="run kdpipe again; what is stored is reused",
            ) from None

    def _sha256(self, path: str) -> str | None:
        file = self.folder / path
        return digest(file) if file.exists() else None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
