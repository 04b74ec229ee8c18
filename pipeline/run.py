"""Running a plan: reuse what is stored and sound, run the rest, keep whatever was finished."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from kdpipe.pipeline.chain import Step
from kdpipe.pipeline.journal import Journal, StepObserver
from kdpipe.pipeline.plan import Planned, Planner
from kdpipe.pipeline.store import Entry, Record, Store, key_of
from kdpipe.stages.base import Artifact, Work
from kdpipe.targets.errors import KdpipeError, StageError, listing


@dataclass
class Executed:
    """What became of each step: its stored entry, its error, or why it was not run."""

    entries: dict[str, Entry] = field(default_factory=dict)
    failed: dict[str, KdpipeError] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def artifacts(self, steps: Sequence[Step]) -> dict[str, Artifact]:
        """The typed outputs that exist, by step id."""
        return {
            step.id: step.stage.Output(self.entries[step.id].folder)
            for step in steps
            if step.id in self.entries
        }

    def records(self) -> dict[str, Record]:
        """What each output depended on, for the next plan's reasons."""
        return {step: entry.record for step, entry in self.entries.items()}


class Runner:
    """Executes steps in order against a store, telling a journal."""

    def __init__(self, store: Store, planner: Planner, journal: Journal) -> None:
        self._store = store
        self._planner = planner
        self._journal = journal

    def sound(self, steps: Sequence[Step]) -> list[Planned]:
        """A plan whose stored entries are intact; damaged ones are set aside and planned anew."""
        while True:
            plan = self._planner.plan(steps)
            damaged = [p for p in plan if p.key and self._damaged(p.step, p.key)]
            if not damaged:
                return plan

    def run(self, steps: Sequence[Step]) -> Executed:
        """Run all `steps`. A failing step stops the chain, or only its own target's part of it.

        KeyboardInterrupt passes through after it is journaled; finished steps are stored.
        """
        done = Executed()
        for planned in self.sound(steps):
            step = planned.step
            lacking = [source for source in step.reads.values() if source not in done.entries]
            if planned.status == "blocked":
                self._skip(done, step, planned.why)
            elif lacking:
                self._skip(done, step, f"needs {lacking[0]}")
            else:
                self._attempt(planned, done)
        return done

    def _damaged(self, step: Step, key: str) -> bool:
        """Whether `key` was stored and damaged; if so, it is set aside now."""
        if not self._store.holds(key) or not self._store.damage(key):
            return False
        with self._lock(step, key):  # another run may just have been replacing it
            damage = self._store.holds(key) and self._store.damage(key)
            if damage:
                place = self._store.set_aside(key)
                self._journal.tell("damaged", step=step.id, damage=damage, kept=str(place))
        return bool(damage)

    def _lock(self, step: Step, key: str) -> AbstractContextManager[None]:
        return self._store.lock(key, lambda: self._journal.tell("waiting", step=step.id))

    def _skip(self, done: Executed, step: Step, why: str) -> None:
        done.skipped[step.id] = why
        event = "blocked" if step.target and step.target.missing() else "unreached"
        self._journal.tell(event, step=step.id, why=why)

    def _attempt(self, planned: Planned, done: Executed) -> None:
        step = planned.step
        if planned.status == "stored" and planned.entry:
            done.entries[step.id] = planned.entry
            self._journal.tell("reused", step=step.id, key=planned.entry.key)
            return
        try:
            done.entries[step.id] = self._run(planned, done)
        except KeyboardInterrupt:
            self._journal.tell("interrupted", step=step.id)
            raise
        except (Exception, SystemExit) as error:  # a user's module that exits must not pass for ok
            known = error if isinstance(error, KdpipeError) else _unforeseen(step, error)
            done.failed[step.id] = known
            text = "".join(traceback.format_exception(error))
            self._journal.tell("failed", step=step.id, error=str(known), traceback=text)

    def _run(self, planned: Planned, done: Executed) -> Entry:
        step = planned.step
        sources = {source: done.entries[source] for source in step.reads.values()}
        record = self._planner.record(step, sources)
        key = key_of(step.id, record)
        if not self._planner.redoes(step):
            self._damaged(step, key)
        with self._lock(step, key):
            entry = self._store.find(key)
            if entry and not self._planner.redoes(step):
                self._journal.tell("reused", step=step.id, key=key)
                return entry
            started = time.monotonic()
            self._journal.tell("started", step=step.id, why=planned.why, key=key)
            entry = self._produce(step, key, record, sources)
        seconds = round(time.monotonic() - started, 3)
        self._journal.tell("finished", step=step.id, seconds=seconds)
        done.ran.append(step.id)
        return entry

    def _produce(self, step: Step, key: str, record: Record, sources: Mapping[str, Entry]) -> Entry:
        draft = self._store.draft(key)
        observer = StepObserver(self._journal, step.id)
        inputs = step.inputs({source: entry.folder for source, entry in sources.items()})
        try:
            step.stage.run(inputs, Work(draft, self._store.scratch(key), observer))
            self._require_same_files(step, record)
            return self._store.put(key, step.id, record, draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _require_same_files(self, step: Step, record: Record) -> None:
        """What was made from files that changed meanwhile belongs to no key."""
        now = self._planner.files(step)
        if changed := [name for name, sha in now.items() if sha != record["files"].get(name)]:
            raise StageError(
                f"{step.id}: what it reads changed while it ran",
                found=listing([f"{step.stage.name}.{name}" for name in changed]),
                fix="leave the files alone and run again",
            )


def _unforeseen(step: Step, error: BaseException) -> StageError:
    """An exception that no stage foresaw, named after where it happened."""
    return StageError(
        f"{step.id} failed: {type(error).__name__}: {error}",
        fix="run again with --debug to see where",
    )
