"""Chains of toy stages, which run in milliseconds: real stages, targets, stores and journals.

`bench` runs steps, with a switch that makes a stage fail, wait or die; `project` launches whole
runs, with a benchmark that pretends to measure.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from kdpipe.pipeline.chain import Step, steps
from kdpipe.pipeline.config import Config
from kdpipe.pipeline.journal import Journal, read
from kdpipe.pipeline.launch import Launch, Selection
from kdpipe.pipeline.plan import Planner
from kdpipe.pipeline.run import Executed, Runner
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Store
from kdpipe.stages import Rule
from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.benchmark import Measured
from kdpipe.stages.compile import Compiled
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.paths import UserPath
from kdpipe.stages.tasks import TASKS
from kdpipe.targets.base import Audit, Missing, Session, Target
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import DataError, KdpipeError, StageError


class Text(Artifact):
    """A folder with `text`."""

    @property
    def text(self) -> str:
        return (self.folder / "text").read_text()


class Toy(Target):
    """A target that may be missing."""

    name: Literal["toy"] = "toy"
    gone: bool = False

    def missing(self) -> Missing | None:
        return Missing("the toy is broken", "buy a new one") if self.gone else None

    def compile(self, onnx: Path, folder: Path) -> Path:
        raise StageError("a toy compiles nothing")

    def open(self, artifact: Path) -> Session:
        raise StageError("a toy runs nothing")

    def audit(self, artifact: Path) -> Audit:
        return Audit()


class Deed(Stage):
    """What a stage can do besides its work; `switch` is a file that is no part of the key."""

    switch: str = ""

    def act(self, work: Work) -> None:
        """Do what the switch says; without one, nothing."""
        deed = Path(self.switch).read_text() if self.switch and Path(self.switch).exists() else ""
        if deed:
            (work.scratch / "checkpoint").write_text("half")
        if deed in _ERRORS:
            raise _ERRORS[deed]
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "wait":
            _wait(Path(self.switch))


def _wait(switch: Path) -> None:
    """Say that it waits, and do so until there is a file `go`."""
    switch.with_name("started").touch()
    while not switch.with_name("go").exists():
        time.sleep(0.005)


_ERRORS: dict[str, BaseException] = {
    "fail": StageError("no luck", found="a black cat"),
    "wrong data": DataError("the label is wrong"),
    "crash": ZeroDivisionError("one over zero"),
    "exit": SystemExit(0),
    "interrupt": KeyboardInterrupt(),
}


@dataclass(frozen=True)
class NoInputs:
    """Nothing."""


class First(Deed):
    """Says hello, or what the user's file says."""

    name: ClassVar[str] = "first"
    Inputs: ClassVar[type] = NoInputs
    Output: ClassVar[type[Artifact]] = Text

    file: UserPath | None = None
    meddle: bool = False

    def files(self) -> Mapping[str, Path]:
        return {"file": self.file} if self.file else {}

    def run(self, inputs: NoInputs, work: Work) -> None:
        text = self.file.read_text() if self.file else "hello"
        if self.file and self.meddle:
            self.file.write_text(text + "!")
        (work.out / "text").write_text(text)
        self.act(work)


@dataclass(frozen=True)
class SecondInputs:
    """What the first says."""

    first: Text


class Second(Deed):
    """Says it louder; a checkpoint in its scratch folder makes it resume."""

    name: ClassVar[str] = "second"
    Inputs: ClassVar[type] = SecondInputs
    Output: ClassVar[type[Artifact]] = Text

    def run(self, inputs: SecondInputs, work: Work) -> None:
        work.observer.fact("resumed", yes=(work.scratch / "checkpoint").exists())
        self.act(work)
        (work.out / "text").write_text(inputs.first.text.upper())


@dataclass(frozen=True)
class MakeInputs:
    """The louder text, for a target."""

    second: Text
    target: Target


class Make(Deed):
    """Once per target; does its deed for the first target only."""

    name: ClassVar[str] = "make"
    Inputs: ClassVar[type] = MakeInputs
    Output: ClassVar[type[Artifact]] = Text

    def run(self, inputs: MakeInputs, work: Work) -> None:
        if inputs.target.precision == "fp32":
            self.act(work)
        (work.out / "text").write_text(inputs.second.text + inputs.target.id)


@dataclass(frozen=True)
class TryInputs:
    """What was made for the target."""

    make: Text
    target: Target


class Try(Stage):
    """After Make, for the same target."""

    name: ClassVar[str] = "try"
    Inputs: ClassVar[type] = TryInputs
    Output: ClassVar[type[Artifact]] = Text

    def run(self, inputs: TryInputs, work: Work) -> None:
        (work.out / "text").write_text(inputs.make.text)


BOTH = (Toy(precision="fp32"), Toy(precision="int8"))


@dataclass
class Bench:
    """A store, a journal, and a switch that decides what a stage does next."""

    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    toy: ClassVar[type[Toy]] = Toy

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def switch(self) -> Path:
        return self.folder / "switch"

    def chain(self, at: str = "", targets: tuple[Toy, ...] = BOTH) -> list[Step]:
        """The chain, with the switch at one stage."""
        path = str(self.switch)
        stages: list[Stage] = [
            First(switch=path if at == "first" else ""),
            Second(switch=path if at == "second" else ""),
            Make(switch=path if at == "make" else ""),
            Try(),
        ]
        return steps(stages, {}, targets)

    def alone(self, **settings: Any) -> list[Step]:
        """The first stage, by itself."""
        return steps([First(**settings)], {}, [])

    def run(self, chain: list[Step], redo: frozenset[str] = frozenset()) -> Executed:
        """One run; its events are in `events`."""
        self.events.clear()
        journal = Journal(self.folder / "journal.jsonl", (self.events.append, *self.listeners))
        try:
            return Runner(self.store, Planner(self.store, {}, redo), journal).run(chain)
        finally:
            journal.close()

    def told(self, *names: str) -> list[tuple[str, str]]:
        """(event, step) of the last run's events of these names."""
        return [(e["event"], e["step"]) for e in self.events if e["event"] in names]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store."""
    return Bench(tmp_path)


class Words(Stage):
    """The first stage; breaks when it is told to."""

    name: ClassVar[str] = "words"
    Inputs: ClassVar[type] = NoInputs
    Output: ClassVar[type[Artifact]] = Artifact

    broken: Literal["", "stage", "data", "check", "interrupt"] = ""

    def check(self) -> None:
        if self.broken == "check":
            raise DataError("the words are not there")

    def run(self, inputs: NoInputs, work: Work) -> None:
        errors: dict[str, BaseException] = {
            "stage": StageError("no words"),
            "data": DataError("bad words"),
            "interrupt": KeyboardInterrupt(),
        }
        if self.broken:
            raise errors[self.broken]
        (work.out / "words").write_text("hello")


@dataclass(frozen=True)
class CompileInputs:
    """Words for a target."""

    words: Artifact
    target: Target


class Compile(Stage):
    """Writes an artifact; int8 is `refused` when it is told so."""

    name: ClassVar[str] = "compile"
    Inputs: ClassVar[type] = CompileInputs
    Output: ClassVar[type[Artifact]] = Compiled

    refused: bool = False

    def run(self, inputs: CompileInputs, work: Work) -> None:
        target = inputs.target
        if self.refused and target.precision == "int8":
            raise StageError("the runtime refuses it")
        (work.out / "model").write_text(target.id)
        roles = {"artifact": {"path": "model"}}
        meta = {"id": target.id, "roles": roles}
        (work.out / "compiled.json").write_text(json.dumps(meta))


@dataclass(frozen=True)
class BenchmarkInputs:
    """An artifact."""

    compile: Compiled
    target: Target


class Benchmark(Stage):
    """Pretends to measure: 200 samples of which `right` are, and latencies around `ms`."""

    name: ClassVar[str] = "benchmark"
    Inputs: ClassVar[type] = BenchmarkInputs
    Output: ClassVar[type[Artifact]] = Measured

    right: int = 200
    ms: float = 1.0

    def run(self, inputs: BenchmarkInputs, work: Work) -> None:
        target, path = inputs.target, inputs.compile.path("artifact")
        random = np.random.default_rng(0)
        processes = tuple(self.ms * random.uniform(0.99, 1.01, 50) for _ in range(10))
        slower = tuple(2 * samples for samples in processes)
        Evidence(
            artifact=target.id,
            target=target.name,
            precision=target.precision or "fp32",
            metric="accuracy",
            score=(np.arange(200) < self.right).astype(np.float32),
            teacher_score=np.ones(200, np.float32),
            agreement=np.ones(200, np.float32),
            latency={"artifact": Timing(processes), "fp32": Timing(slower)},
            values={"size_bytes": 4.0, "int8_fraction": 1.0},
        ).save(work.out)
        artifact = {
            "path": "model", "sha256": digest(path), "size_bytes": 4, "int8_fraction": 1.0,
            "kernels": {}, "float_kernels": [],
        }  # fmt: skip
        meta = {"artifact": artifact, "start": {"artifact": {}}, "machine": {"cpu": "toy"}}
        (work.out / "measured.json").write_text(json.dumps(meta))


@dataclass(frozen=True)
class Project:
    """A folder with a store and a run folder."""

    folder: Path
    toy: ClassVar[type[Toy]] = Toy

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.folder / "run")

    def launch(
        self,
        rules: tuple[dict[str, Any], ...] = (),
        targets: tuple[Target, ...] = BOTH,
        selection: Selection = Selection(),  # noqa: B008 (frozen)
        *,
        words: Any = "",
        refused: bool = False,
        right: int = 200,
    ) -> Launch:
        """A run of the toy chain: how `words` breaks, and settings of the two other stages."""
        stages = (Words(broken=words), Compile(refused=refused), Benchmark(right=right))
        config = Config(
            path=Path("kdpipe.yaml"),
            text=f"# {rules}",
            task=TASKS[0].model_validate({}),
            stages=stages,
            targets=targets,
            rules=tuple(Rule.model_validate(rule) for rule in rules),
        )
        return Launch(config, Store(self.folder / "store"), self.run_dir, selection)

    def run(self, **settings: Any) -> tuple[int, str, dict[str, Any]]:
        """(exit code, last line, results)"""
        conclusion, results = self.launch(**settings).run(())
        return conclusion.exit_code, conclusion.line, results

    def error(self, **settings: Any) -> KdpipeError:
        """What stops a run before it starts."""
        with pytest.raises(KdpipeError) as caught:
            self.launch(**settings).run(())
        assert not self.run_dir.journal.exists()
        return caught.value

    def ran(self, **settings: Any) -> list[str]:
        """The steps that really ran."""
        before = len(self.events())
        self.launch(**settings).run(())
        return [e["step"] for e in self.events()[before:] if e["event"] == "finished"]

    def events(self) -> list[dict[str, Any]]:
        """All that was journaled so far."""
        path = self.run_dir.journal
        return list(read(path)) if path.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path)
