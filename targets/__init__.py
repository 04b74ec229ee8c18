"""Runtimes: one file each, files in and files out; knows no stage, no artifact and no config file.

A new target is a new file and its name in TARGETS; other packages bring theirs through the entry
point group `kdpipe.targets`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from kdpipe.targets.base import Target
from kdpipe.targets.errors import UsageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino
from kdpipe.targets.tensorrt import TensorRt

TARGETS: tuple[type[Target], ...] = (OnnxRuntime, OpenVino, TensorRt)

__all__ = ["GROUP", "TARGETS", "Target", "discover", "name_of", "target_named", "targets"]

GROUP = "kdpipe.targets"


def name_of(target: type[Target]) -> str:
    """The name that a target goes by in the YAML, e.g. `openvino`."""
    return str(target.model_fields["name"].default)


def targets() -> tuple[type[Target], ...]:
    """Every target: kdpipe's own, in order, then those of other installed packages.

    Raises UsageError, naming the entry point, when one does not load, is not a Target, or takes
    a name that is already taken.
    """
    kinds, errors = discover()
    for error in errors.values():
        raise error
    return kinds


def discover() -> tuple[tuple[type[Target], ...], dict[str, UsageError]]:
    """Every target that can be used, and an error for each entry point that cannot, by its name."""
    found = {name_of(target): target for target in TARGETS}
    errors: dict[str, UsageError] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            target = _load(entry)
            if name_of(target) in found:
                raise _broken(entry, f"the name {name_of(target)!r} is taken")
        except UsageError as error:
            errors[entry.name] = error
        else:
            found[name_of(target)] = target
    return tuple(found.values()), errors


def target_named(name: str) -> type[Target]:
    """The target that goes by `name`; raises UsageError listing all when there is none.

    Entry points that are broken do not matter unless one could have been meant.
    """
    for target in discover()[0]:
        if name_of(target) == name:
            return target
    known = ", ".join(name_of(target) for target in targets())
    raise UsageError(f"there is no target {name!r}", found=f"the targets are {known}")


def _load(entry: EntryPoint) -> type[Target]:
    try:
        target = entry.load()
    except Exception as error:  # anything may go wrong while another package is imported
        raise _broken(entry, f"{type(error).__name__}: {error}") from error
    if not (isinstance(target, type) and issubclass(target, Target)):
        raise _broken(entry, f"{entry.value} is not a subclass of kdpipe.targets.base.Target")
    return target


def _broken(entry: EntryPoint, found: str) -> UsageError:
    package = entry.dist.name if entry.dist else "the package that brings it"
    return UsageError(
        f"the entry point {entry.name!r} of {package!r} in {GROUP!r} is broken",
        found=found,
        fix=f"pip install --upgrade {package}, or pip uninstall {package}",
    )
