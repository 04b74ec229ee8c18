"""What a stage is: its settings, its typed inputs, its typed output, and one `run`.

A stage's fields are its YAML. It reads artifacts, writes into the folder it is given, tells an
observer how it goes, and neither prints nor configures logging.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from kdpipe.targets.base import Precision

if TYPE_CHECKING:
    from kdpipe.stages.tasks import Task


@dataclass(frozen=True)
class Artifact:
    """What a stage left in the store: a folder, read through typed properties of a subclass."""

    folder: Path


@dataclass(frozen=True)
class Files:
    """Some of what lies in `folder`; `names` are paths relative to it.

    Where a name leads to a folder, it counts that the folder is there, and not what it holds.
    """

    folder: Path
    names: tuple[str, ...]


class Observer(Protocol):
    """Where stages tell what happens; the journal and the console listen."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps; `note` is a few words such as `epoch 3 loss 0.41`."""

    def fact(self, text: str, **values: Any) -> None:
        """A result worth keeping, e.g. fact("teacher accuracy", accuracy=0.98)."""

    def warn(self, text: str) -> None:
        """Something the user should read even when all goes well."""


class Silent:
    """An observer that hears nothing, for tests and for use from Python."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def fact(self, text: str, **values: Any) -> None:
        """Ignored."""

    def warn(self, text: str) -> None:
        """Ignored."""


@dataclass(frozen=True)
class Work:
    """Where a stage works: `out` becomes its output, `scratch` survives a kill for resuming."""

    out: Path
    scratch: Path
    observer: Observer


class Stage(BaseModel):
    """One step of the chain. Subclasses set `name`, `Inputs` and `Output`, and write `run`.

    `Inputs` is a frozen dataclass. A field is named after the stage it comes from (typed by that
    stage's `Output`, `| None` where the stage may be skipped), or `task` or `target`. A stage
    with a `target` input runs once for each target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised by one whenever the meaning of the output changes; part of the key."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions change the output; part of the key."""
    machine: ClassVar[bool] = False
    """Whether the output depends on the machine it was made on, whatever the settings."""
    Inputs: ClassVar[type]
    Output: ClassVar[type[Artifact]]

    def distributions(self) -> tuple[str, ...]:
        """`packages`, and those that its settings bring in; their versions join the key."""
        return self.packages

    def measures(self) -> bool:
        """`machine`, or whether its settings make it so: then the machine joins the key."""
        return self.machine

    @property
    def skipped(self) -> bool:
        """Whether its settings say that there is nothing to do, as if its key were null."""
        return False

    def files(self) -> Mapping[str, Path | Files]:
        """Exactly the files outside the store that the stage reads, by the field that names them.

        Their content, not where they lie, is part of the key. Raises DataError when what the
        user named is not there.
        """
        return {}

    def places(self) -> Collection[str]:
        """Fields of `files` whose path is part of the key too: the output leads back to it."""
        return ()

    def precision(self) -> Precision | None:
        """The precision that artifacts get because this stage is in the chain, if any."""
        return None

    def check(self) -> None:
        """Fail fast on what the user gave, before any stage runs; must be quick.

        Raises DataError or UsageError.
        """

    def check_task(self, task: Task) -> None:
        """Fail fast where the settings and the config's task contradict, as `check` does."""

    def check_chain(self, chain: Mapping[str, Stage]) -> None:
        """Fail fast where the settings contradict those of other stages, by name, as `check` does.

        Stages that are skipped are not in `chain`.
        """

    def run(self, inputs: Any, work: Work) -> None:
        """Do the work: write everything that `Output` reads into `work.out`."""
        raise TypeError(f"{type(self).__name__} has no run()")
