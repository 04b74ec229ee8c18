"""Running toy stages: reuse what is sound, keep what was finished, tell everything that happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from kdpipe.pipeline.chain import Step, steps
from kdpipe.pipeline.journal import Journal, read
from kdpipe.pipeline.plan import Planner
from kdpipe.pipeline.run import Executed, Runner
from kdpipe.pipeline.store import MANIFEST, Store
from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.paths import UserPath
from kdpipe.targets.base import Audit, Missing, Session, Target
from kdpipe.targets.errors import DataError, StageError

FORK = multiprocessing.get_context("fork")


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
        return Audit(0.0)


class Deed(Stage):
    """What a stage can do besides its work; `switch` is a file that is no part of the key."""

    switch: str = ""

    def act(self, work: Work) -> None:
        """Do what the switch says; without one, nothing."""
        deed = Path(self.switch).read_text() if self.switch and Path(self.switch).exists() else ""
        if deed:
            (work.scratch / "checkpoint").write_text("half")
            _DEEDS[deed]()


def _fail() -> None:
    raise StageError("no luck", found="a black cat")


def _wrong_data() -> None:
    raise DataError("the label is wrong")


def _crash() -> None:
    raise ZeroDivisionError("one over zero")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_DEEDS = {
    "fail": _fail,
    "wrong data": _wrong_data,
    "crash": _crash,
    "exit": lambda: sys.exit(0),
    "interrupt": _interrupt,
    "kill": _kill,
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


TARGETS = (Toy(precision="fp32"), Toy(precision="int8"))
ALL = [
    "first", "second", "make[toy-fp32]", "make[toy-int8]", "try[toy-fp32]", "try[toy-int8]",
]  # fmt: skip


@dataclass
class Bench:
    """A store, a journal, and a switch that decides what a stage does next."""

    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def switch(self) -> Path:
        return self.folder / "switch"

    def chain(self, at: str = "", targets: tuple[Toy, ...] = TARGETS) -> list[Step]:
        """The chain, with the switch at one stage."""
        path = str(self.switch)
        stages: list[Stage] = [
            First(switch=path if at == "first" else ""),
            Second(switch=path if at == "second" else ""),
            Make(switch=path if at == "make" else ""),
            Try(),
        ]
        return steps(stages, {}, targets)

    def run(self, chain: list[Step], redo: frozenset[str] = frozenset()) -> Executed:
        """One run; its events are in `events`."""
        self.events.clear()
        journal = Journal(self.folder / "journal.jsonl", (self.events.append,))
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


def text(done: Executed, step: str) -> str:
    """What a step wrote."""
    return Text(done.entries[step].folder).text


def test_whole_chain(bench: Bench) -> None:
    """Each step runs once, in order, and reads what it should."""
    done = bench.run(bench.chain())

    assert done.ran == ALL
    assert text(done, "try[toy-int8]") == "HELLOtoy-int8"
    assert bench.told("started", "finished")[:4] == [
        ("started", "first"), ("finished", "first"), ("started", "second"), ("finished", "second"),
    ]  # fmt: skip
    assert {type(a) for a in done.artifacts(bench.chain()).values()} == {Text}


def test_second_run_runs_nothing(bench: Bench) -> None:
    """All is reused, and said to be."""
    first = bench.run(bench.chain())
    second = bench.run(bench.chain())

    assert second.ran == []
    assert second.entries == first.entries
    assert {(e["event"], e["step"]) for e in bench.events} == {("reused", step) for step in ALL}


def test_failing_target_stage(bench: Bench) -> None:
    """Where one target fails, the other one is finished."""
    bench.switch.write_text("fail")
    done = bench.run(bench.chain("make"))

    assert list(done.failed) == ["make[toy-fp32]"]
    assert done.skipped == {"try[toy-fp32]": "needs make[toy-fp32]"}
    assert done.ran == ["first", "second", "make[toy-int8]", "try[toy-int8]"]


def test_failing_common_stage(bench: Bench) -> None:
    """Where a stage that all need fails, the rest is not run and what was finished is kept."""
    bench.switch.write_text("fail")
    done = bench.run(bench.chain("second"))

    assert done.ran == ["first"]
    assert list(done.failed) == ["second"]
    assert list(done.skipped) == ALL[2:]

    bench.switch.unlink()
    again = bench.run(bench.chain("second"))
    assert again.ran == ALL[1:]


def test_error_of_a_stage(bench: Bench) -> None:
    """An error that a stage foresaw is kept as it is, and journaled with its parts."""
    bench.switch.write_text("wrong data")
    done = bench.run(bench.chain("second"))

    (event,) = [e for e in bench.events if e["event"] == "failed"]
    assert isinstance(done.failed["second"], DataError)
    assert event["error"] == "the label is wrong"
    assert "_wrong_data" in event["traceback"]


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        ("crash", "second failed: ZeroDivisionError: one over zero"),
        ("exit", "second failed: SystemExit: 0"),
    ],
)
def test_unforeseen_exception(bench: Bench, deed: str, what: str) -> None:
    """Anything else becomes a StageError; a module that calls exit(0) is no success either."""
    bench.switch.write_text(deed)
    error = bench.run(bench.chain("second")).failed["second"]

    assert isinstance(error, StageError)
    assert (error.what, error.exit_code) == (what, 1)
    assert "--debug" in error.fix


def test_failed_stage_stores_nothing(bench: Bench) -> None:
    """What a failing stage had written is in no entry, and no draft is left."""
    bench.switch.write_text("fail")
    bench.run(bench.chain("first"))

    assert not (bench.store.root / "objects").exists()
    assert list((bench.store.root / "drafts").iterdir()) == []


def test_interrupt(bench: Bench) -> None:
    """Ctrl-C passes through, is journaled, keeps finished steps, and the next run resumes."""
    bench.switch.write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.chain("second"))
    assert bench.told("finished", "interrupted") == [("finished", "first"), ("interrupted", "second")]
    assert list(read(bench.folder / "journal.jsonl"))[-1]["event"] == "interrupted"

    bench.switch.unlink()
    done = bench.run(bench.chain("second"))

    assert done.ran == ALL[1:]
    assert [e["yes"] for e in bench.events if e["event"] == "fact"] == [True]


def test_kill(bench: Bench) -> None:
    """After SIGKILL inside a stage its output is absent; the next run resumes and clears up."""
    bench.switch.write_text("kill")
    process = FORK.Process(target=bench.run, args=(bench.chain("second"),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [p.name.split("-")[0] for p in (bench.store.root / "objects").iterdir()] == ["first"]
    assert len(list((bench.store.root / "drafts").iterdir())) == 1

    bench.switch.unlink()
    done = bench.run(bench.chain("second"))

    assert done.ran == ALL[1:]
    assert [e["yes"] for e in bench.events if e["event"] == "fact"] == [True]
    assert list((bench.store.root / "drafts").iterdir()) == []
    assert list((bench.store.root / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["text", MANIFEST])
@pytest.mark.parametrize("content", [b"", b"broken"])
def test_damaged_entry(bench: Bench, name: str, content: bytes) -> None:
    """A damaged entry is told, set aside and made again; what came of it is reused if equal."""
    folder = bench.run(bench.chain()).entries["second"].folder
    (folder / name).chmod(0o644)
    (folder / name).write_bytes(content)

    done = bench.run(bench.chain())

    assert done.ran == ["second"]
    (event,) = [e for e in bench.events if e["event"] == "damaged"]
    assert (event["step"], (Path(event["kept"]) / name).read_bytes()) == ("second", content)
    assert text(done, "second") == "HELLO"
    assert ("reused", "try[toy-fp32]") in bench.told("reused")


def test_damage_behind_a_step_that_runs(bench: Bench) -> None:
    """An entry whose key is only known after another step has run is checked as well."""
    entries = bench.run(bench.chain()).entries
    for path in (entries[step].folder / "text" for step in ("first", "second")):
        path.chmod(0o644)
        path.write_text("broken")

    done = bench.run(bench.chain())

    assert done.ran == ["first", "second"]
    assert bench.told("damaged") == [("damaged", "first"), ("damaged", "second")]
    assert text(done, "second") == "HELLO"


def test_missing_target(bench: Bench) -> None:
    """Steps of a target that cannot run here are skipped with the reason."""
    targets = (Toy(precision="fp32", gone=True), Toy(precision="int8"))
    done = bench.run(bench.chain(targets=targets))

    assert done.skipped == dict.fromkeys(
        ["make[toy-fp32]", "try[toy-fp32]"], "the toy is broken"
    )
    assert done.ran == ["first", "second", "make[toy-int8]", "try[toy-int8]"]


def test_asked_for_again(bench: Bench) -> None:
    """A stored step runs again when asked to, and its consumers are reused if it is equal."""
    bench.run(bench.chain())
    done = bench.run(bench.chain(), redo=frozenset({"first"}))

    assert done.ran == ["first"]
    assert bench.told("reused") == [("reused", step) for step in ALL[1:]]


def test_file_that_changes_while_it_is_read(bench: Bench) -> None:
    """What was made from a file that changed meanwhile is not stored under any key."""
    file = bench.folder / "data.txt"
    file.write_text("one")

    error = bench.run(steps([First(file=file, meddle=True)], {}, [])).failed["first"]

    assert error.what == "first: what it reads changed while it ran"
    assert error.found == "first.file"
    assert not (bench.store.root / "objects").exists()


class Slow(First):
    """Waits in the middle until it is let go."""

    started: ClassVar[Any] = FORK.Event()
    go: ClassVar[Any] = FORK.Event()

    def run(self, inputs: NoInputs, work: Work) -> None:
        self.started.set()
        assert self.go.wait(60)
        with Path(self.switch).open("a") as log:
            log.write("made\n")
        (work.out / "text").write_text("slow")


def test_two_runs_at_once(bench: Bench) -> None:
    """The second run that needs an output waits for the first one and reuses what it made."""
    Slow.started.clear()
    Slow.go.clear()
    chain = steps([Slow(switch=str(bench.switch)), Second()], {}, [])
    process = FORK.Process(target=bench.run, args=(chain,))
    process.start()
    assert Slow.started.wait(60)

    heard: list[tuple[str, str]] = []

    def hear(event: Mapping[str, Any]) -> None:
        heard.append((event["event"], event["step"]))
        if event["event"] == "waiting":
            Slow.go.set()

    journal = Journal(bench.folder / "second.jsonl", (hear,))
    done = Runner(bench.store, Planner(bench.store, {}), journal).run(chain[:1])
    journal.close()
    process.join(60)

    assert process.exitcode == 0
    assert heard == [("waiting", "first"), ("reused", "first")]
    assert done.ran == []
    assert bench.switch.read_text() == "made\n"
