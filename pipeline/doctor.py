"""What this machine has and what is missing: the first thing to run when something is odd."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdpipe.pipeline.catalogue import target_rows
from kdpipe.pipeline.conclusion import PASSED, UNAVAILABLE
from kdpipe.targets import target_named
from kdpipe.targets.fingerprint import fingerprint


def diagnose(config: Path | None = None) -> dict[str, Any]:
    """Packages, targets, sensors, machine; exit code 4 when `config` requires a missing target.

    Raises ConfigError or DataError when `config` is given and wrong.
    """
    required: list[str] = []
    if config:
        from kdpipe.pipeline.config import Config

        read = Config.read(config)
        read.check()
        required = [t.id for t in read.targets if t.required and t.missing()]
    rows = [row | (_broken(row["name"]) if row["status"] == "ok" else {}) for row in target_rows()]
    return {
        "packages": list(_packages()),
        "targets": rows,
        "sensors": list(_sensors()),
        "machine": fingerprint(),
        "required_but_missing": required,
        "exit_code": UNAVAILABLE if required else PASSED,
    }


def render(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines, what is wrong first in each part."""
    yield "packages"
    for row in sorted(report["packages"], key=lambda row: row["status"] == "ok"):
        found = row["found"] or "absent"
        yield f"  {row['status']:<8} {row['name']:<14} {found:<14} wanted {row['wanted'] or 'any'}"
    yield "targets"
    for row in sorted(report["targets"], key=lambda row: row["status"] == "ok"):
        yield f"  {row['status']:<8} {row['name']:<14} {row['summary']}"
    yield "sensors of energy"
    for row in sorted(report["sensors"], key=lambda row: row["status"] == "ok"):
        yield f"  {row['status']:<8} {row['name']:<14} {row['summary']}"
    yield "machine"
    for name, value in report["machine"].items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        yield f"  {name:<14} {shown}"
    for name in report["required_but_missing"]:
        yield f"the config requires {name}, which cannot run here"


def _broken(name: str) -> dict[str, Any]:
    """A target that is installed but does not import says so; only here, as importing is slow."""
    broken = target_named(name).model_validate({"name": name}).broken()
    return {"status": "broken", "summary": f"{broken.reason}; {broken.fix}"} if broken else {}


def _sensors() -> Iterator[dict[str, Any]]:
    """Where the energy of a call could be read here, or why not, and what to type."""
    from kdpipe.targets.power import SENSORS

    for kind in SENSORS:
        sensor = kind()
        why = sensor.missing()
        found = f"{sensor.device}: {sensor.what}" if why is None else f"{why.reason}; {why.fix}"
        yield {"name": kind.name, "status": "missing" if why else "ok", "summary": found}
        sensor.close()


def _packages() -> Iterator[dict[str, Any]]:
    """What kdpipe depends on, with what is installed; extras are left to their targets."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("kdpipe") or []:
        requirement = Requirement(text)
        if requirement.marker:
            continue
        found = _found(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        yield {
            "name": requirement.name,
            "found": found,
            "wanted": str(requirement.specifier),
            "status": "ok" if fits else "missing" if found is None else "wrong",
        }


def _found(package: str) -> str | None:
    try:
        return re.sub(r"\+.*", "", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return None
