"""The plan of toy stages: what is stored, will run or is blocked, and why in the user's words."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from kdpipe.pipeline.chain import Step, steps
from kdpipe.pipeline.journal import Journal
from kdpipe.pipeline.plan import Planned, Planner, load_records
from kdpipe.pipeline.run import Executed, Runner
from kdpipe.pipeline.store import Record, Store, key_of
from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.paths import UserPath
from kdpipe.targets.base import Audit, Missing, Session, Target
from kdpipe.targets.errors import StageError


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


@dataclass(frozen=True)
class NoInputs:
    """Nothing."""


class Words(Stage):
    """Writes `text`, or what the user's file says; `note` leaves no trace in the output."""

    name: ClassVar[str] = "words"
    packages: ClassVar[tuple[str, ...]] = ("numpy",)
    Inputs: ClassVar[type] = NoInputs
    Output: ClassVar[type[Artifact]] = Text

    text: str = "hello"
    note: str = ""
    options: dict[str, int] = Field({"size": 1})
    file: UserPath | None = None

    def files(self) -> Mapping[str, Path]:
        return {"file": self.file} if self.file else {}

    def run(self, inputs: NoInputs, work: Work) -> None:
        (work.out / "text").write_text(self.file.read_text() if self.file else self.text)


class NewWords(Words):
    """The same stage in a later kdpipe, which writes something else."""

    version: ClassVar[int] = 2


class MachineWords(Words):
    """The same stage, if its output depended on the machine."""

    machine: ClassVar[bool] = True


class MeasuringWords(Words):
    """The same stage, if some of its settings measured something."""

    def measures(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class ShoutInputs:
    """Words."""

    words: Text


class Shout(Stage):
    """Louder."""

    name: ClassVar[str] = "shout"
    Inputs: ClassVar[type] = ShoutInputs
    Output: ClassVar[type[Artifact]] = Text

    def run(self, inputs: ShoutInputs, work: Work) -> None:
        (work.out / "text").write_text(inputs.words.text.upper())


@dataclass(frozen=True)
class PrintInputs:
    """Words for a target."""

    shout: Text
    target: Target


class Print(Stage):
    """Once per target."""

    name: ClassVar[str] = "print"
    Inputs: ClassVar[type] = PrintInputs
    Output: ClassVar[type[Artifact]] = Text

    def run(self, inputs: PrintInputs, work: Work) -> None:
        (work.out / "text").write_text(inputs.shout.text + inputs.target.id)


@dataclass(frozen=True)
class FrameInputs:
    """A print of the same target."""

    print: Text
    target: Target


class Frame(Print):
    """Needs the print."""

    name: ClassVar[str] = "frame"
    Inputs: ClassVar[type] = FrameInputs

    def run(self, inputs: FrameInputs, work: Work) -> None:
        (work.out / "text").write_text(f"[{inputs.print.text}]")


@dataclass
class Bench:
    """A store, and the records of the last run in it."""

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def steps(self, words: Stage, *targets: Target) -> list[Step]:
        stages = [words, Shout(), *([Print(), Frame()] if targets else [])]
        return steps(stages, {}, targets)

    def plan(
        self, words: Stage, *targets: Target, redo: frozenset[str] = frozenset()
    ) -> dict[str, Planned]:
        planner = Planner(self.store, self.records, redo)
        return {p.step.id: p for p in planner.plan(self.steps(words, *targets))}

    def run(self, words: Stage, *targets: Target, stop: int | None = None) -> Executed:
        journal = Journal(self.folder / "journal.jsonl")
        planner = Planner(self.store, self.records)
        done = Runner(self.store, planner, journal).run(self.steps(words, *targets)[:stop])
        journal.close()
        self.records |= done.records()
        return done

    def why(self, words: Stage) -> str:
        return self.plan(words)["words"].why


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store."""
    return Bench(tmp_path)


def statuses(plan: Mapping[str, Planned]) -> dict[str, str]:
    """{step: status}"""
    return {step: planned.status for step, planned in plan.items()}


def test_nothing_was_run_yet(bench: Bench) -> None:
    """In an empty store all run, keys behind the first are unknown, and planning makes nothing."""
    plan = bench.plan(Words())

    assert {name: (p.status, p.why) for name, p in plan.items()} == {
        "words": ("run", "not run before"),
        "shout": ("run", "after words"),
    }
    assert plan["words"].key
    assert plan["shout"].key is None
    assert not (bench.folder / "store" / "objects").exists()


def test_everything_is_stored(bench: Bench) -> None:
    """After a run with the same settings nothing is left to do."""
    bench.run(Words())

    plan = bench.plan(Words())

    assert statuses(plan) == {"words": "stored", "shout": "stored"}
    assert plan["shout"].entry


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (Words(text="bye"), '`words.text` "hello" -> "bye"'),
        (Words(options={"size": 2}), "`words.options.size` 1 -> 2"),
        (Words(options={}), "`words.options.size` 1 -> null"),
        (Words(text="x", note="y"), '`words.text` "hello" -> "x"; `words.note` "" -> "y"'),
        (NewWords(), "kdpipe changed how `words` works"),
        (MachineWords(), "another machine"),
        (MeasuringWords(), "another machine"),
    ],
)
def test_reasons(bench: Bench, changed: Stage, why: str) -> None:
    """A step that must run again says which setting differs from last time; so does its key."""
    bench.run(Words())
    before = bench.plan(Words())["words"].key

    plan = bench.plan(changed)

    assert plan["words"].why == why
    assert plan["words"].key != before
    assert (plan["shout"].status, plan["shout"].why) == ("run", "after words")


def test_reason_package(bench: Bench) -> None:
    """Another version of a package that a stage declares is a reason, and part of the key."""
    bench.run(Words())
    old: dict[str, Any] = copy.deepcopy(dict(bench.records["words"]))
    now = old["packages"]["numpy"]
    old["packages"]["numpy"] = "1.0"
    (bench.folder / "store").rename(bench.folder / "elsewhere")
    bench.records["words"] = old

    assert bench.why(Words()) == f"numpy 1.0 -> {now}"
    assert bench.plan(Words())["words"].key != key_of("words", old)


def test_reason_other_store(bench: Bench) -> None:
    """Where nothing changed and the output is not there, the store is the reason."""
    bench.run(Words())
    (bench.folder / "store").rename(bench.folder / "elsewhere")

    assert bench.why(Words()) == "its output is not in this store"


def test_reason_input(bench: Bench) -> None:
    """Where what comes before is stored, but is not what it was, that is named."""
    bench.run(Words())
    bench.run(Words(text="bye"), stop=1)

    plan = bench.plan(Words(text="bye"))

    assert statuses(plan) == {"words": "stored", "shout": "run"}
    assert plan["shout"].why == "the output of words changed"
    assert plan["shout"].key


def test_users_file(bench: Bench, tmp_path: Path) -> None:
    """Moving the user's file changes no key; changing a byte of it does, and is the reason."""
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("one")
    bench.run(Words(file=old))
    key = bench.plan(Words(file=old))["words"].key
    old.rename(new)

    moved = bench.plan(Words(file=new))
    assert statuses(moved) == {"words": "stored", "shout": "stored"}
    assert moved["words"].key == key

    new.write_text("two")
    changed = bench.plan(Words(file=new))["words"]
    assert (changed.status, changed.why) == ("run", "the content of `words.file` changed")
    assert changed.key != key


def test_back_to_what_was(bench: Bench) -> None:
    """Settings that were run before, though not the last time, are stored still."""
    bench.run(Words())
    bench.run(Words(text="bye"))

    assert set(statuses(bench.plan(Words())).values()) == {"stored"}


def test_early_cut_off(bench: Bench) -> None:
    """A stage that runs again to an equal output does not run its consumers again."""
    bench.run(Words())

    assert statuses(bench.plan(Words(note="new"))) == {"words": "run", "shout": "run"}
    done = bench.run(Words(note="new"))

    assert done.ran == ["words"]
    assert set(done.entries) == {"words", "shout"}
    assert statuses(bench.plan(Words(note="new"))) == {"words": "stored", "shout": "stored"}


def test_missing_target_blocks_its_own_steps(bench: Bench) -> None:
    """What cannot run here is blocked with the reason, what needs it too, and nothing else."""
    here, gone = Toy(precision="fp32"), Toy(precision="int8", gone=True)

    plan = bench.plan(Words(), here, gone)

    assert {name: (p.status, p.why) for name, p in plan.items() if "[" in name} == {
        "print[toy-fp32]": ("run", "after shout"),
        "print[toy-int8]": ("blocked", "the toy is broken"),
        "frame[toy-fp32]": ("run", "after print[toy-fp32]"),
        "frame[toy-int8]": ("blocked", "the toy is broken"),
    }


def test_required_is_not_part_of_the_key(bench: Bench) -> None:
    """Whether a target is required decides an exit code and no output; its threads decide."""
    bench.run(Words(), Toy(required=True))

    assert bench.plan(Words(), Toy(required=False))["frame[toy]"].status == "stored"
    plan = bench.plan(Words(), Toy(threads=2))
    assert (plan["print[toy]"].status, plan["print[toy]"].why) == ("run", "`target.threads` 1 -> 2")


def test_asked_for(bench: Bench) -> None:
    """A stored step that the user wants again runs, and what follows waits for it."""
    bench.run(Words())

    plan = bench.plan(Words(), redo=frozenset({"words"}))

    assert plan["words"].why == "asked for"
    assert plan["words"].key
    assert statuses(plan) == {"words": "run", "shout": "run"}


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "null", "3", '{"words": 1}', '{"words": {}}', "[" * 100_000,
        '{"words": {"fields": [], "settings": 1, "files": {}, "inputs": {}, "packages": {}}}',
    ],
    ids=lambda text: str(text)[:20],
)  # fmt: skip
def test_records_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    """Without the last run's records a plan has fewer reasons, and no error."""
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)

    assert load_records(path) == {}
