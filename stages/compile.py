"""The compile stage, once per target: the artifact that ships, its fp32 twin, and the teacher.

All three go through the same runtime, so that what is compared later differs in one thing only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.export import Exported
from kdpipe.stages.remedy import culprits, remedy
from kdpipe.targets.base import Target
from kdpipe.targets.digest import digest, size
from kdpipe.targets.errors import StageError


@dataclass(frozen=True)
class CompileInputs:
    """What compiling reads."""

    export: Exported
    target: Target


class Compiled(Artifact):
    """The output of the compile stage: up to three compiled models of one runtime."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        """{"id": of the artifact, "roles": {role: {path, sha256, size_bytes, batch, ...}}}

        A role also has what `Audit.to_dict` gives, and what to make of it were it to run in int8:
        the `culprits` and the `remedy`.
        """
        meta: dict[str, Any] = json.loads((self.folder / "compiled.json").read_text("utf-8"))
        return meta

    @property
    def id(self) -> str:
        """How results and rules call the artifact."""
        return str(self.meta["id"])

    @property
    def roles(self) -> dict[str, dict[str, Any]]:
        """What is known of each compiled role: `artifact`, `teacher`, and `fp32` for int8."""
        roles: dict[str, dict[str, Any]] = self.meta["roles"]
        return roles

    def path(self, role: str) -> Path:
        """Where the compiled `artifact`, its `fp32` twin or the `teacher` is."""
        return self.folder / str(self.roles[role]["path"])


class Compile(Stage):
    """Compile the exported student for one target."""

    name: ClassVar[str] = "compile"
    version: ClassVar[int] = 2
    packages: ClassVar[tuple[str, ...]] = ("onnx",)
    machine: ClassVar[bool] = True
    Inputs: ClassVar[type] = CompileInputs
    Output: ClassVar[type[Artifact]] = Compiled

    def run(self, inputs: CompileInputs, work: Work) -> None:
        """Compile each role into its own folder and read back what really was compiled."""
        target, sources = inputs.target, _sources(inputs)
        twin = target.model_copy(update={"precision": "fp32"})
        roles: dict[str, dict[str, Any]] = {}
        for done, (role, onnx) in enumerate(sources.items(), start=1):
            roles[role] = _compile(target if role == "artifact" else twin, onnx, work.out, role)
            work.observer.progress(done, len(sources), role)
        _no_silent_fallback(target, roles["artifact"])
        meta = {"id": target.id, "roles": roles}
        (work.out / "compiled.json").write_text(json.dumps(meta, indent=1))


def _sources(inputs: CompileInputs) -> dict[str, Path]:
    """The ONNX file of each role; an fp32 artifact is its own twin."""
    target, export = inputs.target, inputs.export
    sources = {"artifact": export.student(target.source, target.flavour)}
    if target.precision != "fp32":
        sources["fp32"] = export.student("fp32", target.flavour)
    return sources | {"teacher": export.teacher}


def _compile(target: Target, onnx: Path, out: Path, role: str) -> dict[str, Any]:
    folder = out / role
    folder.mkdir()
    path = target.compile(onnx, folder)
    audit = target.audit(path)
    with target.open(path) as session:
        batch = session.batch
    return {
        "path": path.relative_to(out).as_posix(),
        "sha256": digest(path),
        "size_bytes": size(path),
        "batch": batch,
        **audit.to_dict(),
        "culprits": culprits(audit),
        "remedy": remedy(target, audit),
    }


def _no_silent_fallback(target: Target, artifact: dict[str, Any]) -> None:
    if target.precision == "int8" and artifact["int8_fraction"] == 0:
        raise StageError(
            f"{target.id}: the runtime runs none of the quantized layers in int8",
            found=artifact["culprits"],
            fix=artifact["remedy"],
        )
