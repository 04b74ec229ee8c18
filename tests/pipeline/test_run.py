"""Running toy stages: reuse what is sound, keep what was finished, tell everything that happens."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.journal import read
from kdpipe.pipeline.store import MANIFEST
from kdpipe.targets.errors import DataError, StageError

FORK = multiprocessing.get_context("fork")
ALL = [
    "first", "second", "make[toy-fp32]", "make[toy-int8]", "try[toy-fp32]", "try[toy-int8]",
]  # fmt: skip


def text(done: Any, step: str) -> Any:
    """What a step wrote."""
    return (done.entries[step].folder / "text").read_text()


def test_whole_chain(bench: Any) -> None:
    """Each step runs once, in order, and reads what it should."""
    done = bench.run(bench.chain())

    assert done.ran == ALL
    assert text(done, "try[toy-int8]") == "HELLOtoy-int8"
    assert bench.told("started", "finished")[:4] == [
        ("started", "first"), ("finished", "first"), ("started", "second"), ("finished", "second"),
    ]  # fmt: skip
    artifacts = done.artifacts(bench.chain())
    assert artifacts["second"].text == "HELLO"
    assert list(artifacts) == ALL


def test_second_run_runs_nothing(bench: Any) -> None:
    """All is reused, and said to be."""
    first = bench.run(bench.chain())
    second = bench.run(bench.chain())

    assert second.ran == []
    assert second.entries == first.entries
    assert {(e["event"], e["step"]) for e in bench.events} == {("reused", step) for step in ALL}


def test_failing_target_stage(bench: Any) -> None:
    """Where one target fails, the other one is finished."""
    bench.switch.write_text("fail")
    done = bench.run(bench.chain("make"))

    assert list(done.failed) == ["make[toy-fp32]"]
    assert done.skipped == {"try[toy-fp32]": "needs make[toy-fp32]"}
    assert done.ran == ["first", "second", "make[toy-int8]", "try[toy-int8]"]


def test_failing_common_stage(bench: Any) -> None:
    """Where a stage that all need fails, the rest is not run and what was finished is kept."""
    bench.switch.write_text("fail")
    done = bench.run(bench.chain("second"))

    assert done.ran == ["first"]
    assert list(done.failed) == ["second"]
    assert list(done.skipped) == ALL[2:]

    bench.switch.unlink()
    again = bench.run(bench.chain("second"))
    assert again.ran == ALL[1:]


def test_error_of_a_stage(bench: Any) -> None:
    """An error that a stage foresaw is kept as it is, and journaled with its parts."""
    bench.switch.write_text("wrong data")
    done = bench.run(bench.chain("second"))

    (event,) = [e for e in bench.events if e["event"] == "failed"]
    assert isinstance(done.failed["second"], DataError)
    assert event["error"] == "the label is wrong"
    assert "DataError" in event["traceback"]


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        ("crash", "second failed: ZeroDivisionError: one over zero"),
        ("exit", "second failed: SystemExit: 0"),
    ],
)
def test_unforeseen_exception(bench: Any, deed: str, what: str) -> None:
    """Anything else becomes a StageError; a module that calls exit(0) is no success either."""
    bench.switch.write_text(deed)
    error = bench.run(bench.chain("second")).failed["second"]

    assert isinstance(error, StageError)
    assert (error.what, error.exit_code) == (what, 1)
    assert "--debug" in error.fix


def test_failed_stage_stores_nothing(bench: Any) -> None:
    """What a failing stage had written is in no entry, and no draft is left."""
    bench.switch.write_text("fail")
    bench.run(bench.chain("first"))

    assert not (bench.store.root / "objects").exists()
    assert list((bench.store.root / "drafts").iterdir()) == []


def test_interrupt(bench: Any) -> None:
    """Ctrl-C passes through, is journaled, keeps finished steps, and the next run resumes."""
    bench.switch.write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.chain("second"))
    assert bench.told("finished", "interrupted") == [
        ("finished", "first"),
        ("interrupted", "second"),
    ]
    assert list(read(bench.folder / "journal.jsonl"))[-1]["event"] == "interrupted"

    bench.switch.unlink()
    done = bench.run(bench.chain("second"))

    assert done.ran == ALL[1:]
    assert [e["yes"] for e in bench.events if e["event"] == "fact"] == [True]


def test_kill(bench: Any) -> None:
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
def test_damaged_entry(bench: Any, name: str, content: bytes) -> None:
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


def test_damage_behind_a_step_that_runs(bench: Any) -> None:
    """An entry whose key is only known after another step has run is checked as well."""
    entries = bench.run(bench.chain()).entries
    for path in (entries[step].folder / "text" for step in ("first", "second")):
        path.chmod(0o644)
        path.write_text("broken")

    done = bench.run(bench.chain())

    assert done.ran == ["first", "second"]
    assert bench.told("damaged") == [("damaged", "first"), ("damaged", "second")]
    assert text(done, "second") == "HELLO"


def test_missing_target(bench: Any) -> None:
    """Steps of a target that cannot run here are skipped with the reason."""
    targets = (bench.toy(precision="fp32", gone=True), bench.toy(precision="int8"))
    done = bench.run(bench.chain(targets=targets))

    assert done.skipped == dict.fromkeys(["make[toy-fp32]", "try[toy-fp32]"], "the toy is broken")
    assert done.ran == ["first", "second", "make[toy-int8]", "try[toy-int8]"]


def test_asked_for_again(bench: Any) -> None:
    """A stored step runs again when asked to, and its consumers are reused if it is equal."""
    bench.run(bench.chain())
    done = bench.run(bench.chain(), redo=frozenset({"first"}))

    assert done.ran == ["first"]
    assert bench.told("reused") == [("reused", step) for step in ALL[1:]]


def test_file_that_changes_while_it_is_read(bench: Any) -> None:
    """What was made from a file that changed meanwhile is not stored under any key."""
    file = bench.folder / "data.txt"
    file.write_text("one")

    error = bench.run(bench.alone(file=file, meddle=True)).failed["first"]

    assert error.what == "first: what it reads changed while it ran"
    assert error.found == "first.file"
    assert not (bench.store.root / "objects").exists()


def test_two_runs_at_once(bench: Any) -> None:
    """The second run that needs an output waits for the first one and reuses what it made."""
    bench.switch.write_text("wait")
    chain = bench.chain("first")
    process = FORK.Process(target=bench.run, args=(chain,))
    process.start()
    while not (bench.folder / "started").exists():
        assert process.is_alive()
        time.sleep(0.005)

    def let_go(event: Mapping[str, Any]) -> None:
        if event["event"] == "waiting":
            (bench.folder / "go").touch()

    bench.listeners.append(let_go)
    done = bench.run(chain[:1])
    process.join(60)

    assert process.exitcode == 0
    assert bench.told("waiting", "started", "reused") == [("waiting", "first"), ("reused", "first")]
    assert done.ran == []
    made = [e for e in read(bench.folder / "journal.jsonl") if e["event"] == "finished"]
    assert [e["step"] for e in made].count("first") == 1
