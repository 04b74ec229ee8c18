"""One `--set a.b=c` on a config's data; `document.py` keeps track of where it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpipe.pipeline import nodes
from kdpipe.pipeline.place import Address, count, cut, dotted, shown
from kdpipe.stages.paths import Typed
from kdpipe.targets.errors import UsageError


def assign(data: dict[Any, Any], assignment: str) -> tuple[dict[Any, Any], Address]:
    """A copy of `data` with `path=value` carried out, and the address that it set.

    Raises UsageError when the path leads nowhere or the value is not YAML.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not text.strip():
        raise UsageError(
            f"--set {assignment}: there is no value",
            fix="write --set path=value; to skip a stage or clear a value, write path=null",
        )
    steps = _steps(path, assignment)
    value = _typed(_value(text, assignment))
    changed, address = _put(data, steps, value, (), assignment)
    return dict(changed), address


def _steps(path: str, assignment: str) -> list[str | int]:
    """Example: "targets[0].precision" -> ["targets", 0, "precision"]; a plain `0` stays text."""
    if not re.fullmatch(r"[^\[\].\s]+(\[\d+\])*(\.[^\[\].\s]+(\[\d+\])*)*", path):
        raise UsageError(
            f"--set {assignment}: {shown(path)} is not a path",
            fix="write it like distill.epochs=3 or targets[0].precision=int8",
        )
    parts = re.findall(r"\[(\d+)\]|([^\[\].]+)", path)
    return [int(index) if index else name for index, name in parts]


def _value(text: str, assignment: str) -> Any:
    try:
        return nodes.read(text).value
    except nodes.Refused as error:
        first = error.problems[0]
        raise UsageError(
            f"--set {assignment}: the value is not valid YAML",
            found=f"{first.what}: {cut(text)}",
            fix="put text with special characters in YAML quotes, e.g. --set 'a.b=\"x: y\"'",
        ) from error


def _typed(value: Any) -> Any:
    """The value with every text in it marked as typed in the shell's folder; keys stay as is."""
    if isinstance(value, str):
        return Typed(value, Path.cwd())
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return value


def _put(
    node: Any, steps: Sequence[str | int], value: Any, at: Address, assignment: str
) -> tuple[Any, Address]:
    """A copy of `node` with `value` at `steps`, and the full address it got; shares the rest."""
    if not steps:
        return value, at
    if isinstance(node, list):
        index = _index(node, steps[0], at, assignment)
        item, address = _put(node[index], steps[1:], value, (*at, index), assignment)
        return [*node[:index], item, *node[index + 1 :]], address
    if isinstance(steps[0], int) or not isinstance(node, dict | None):
        raise _no_way(node, steps[0], at, assignment)
    mapping = node or {}
    key = next((k for k in mapping if str(k) == steps[0]), steps[0])
    item, address = _put(mapping.get(key), steps[1:], value, (*at, nodes.step_of(key)), assignment)
    return {**mapping, key: item}, address


def _index(items: list[Any], step: str | int, at: Address, assignment: str) -> int:
    if not str(step).isdecimal():
        raise UsageError(
            f"--set {assignment}: {dotted(at)} is a list, and {shown(step)} is not an index",
            found=count(len(items), "item"),
            fix=f"name an item by its number, e.g. {dotted((*at, 0, str(step)))}",
        )
    if int(step) >= len(items):
        there = ", ".join(f"[{i}] {shown(item)}" for i, item in enumerate(items[:10]))
        raise UsageError(
            f"--set {assignment}: there is no {dotted((*at, int(step)))}",
            found=f"{dotted(at)} has {len(items)}: {there}" if items else "an empty list",
            fix=f"indices start at 0; to replace the whole list, write --set '{dotted(at)}=[...]'",
        )
    return int(step)


def _no_way(node: Any, step: str | int, at: Address, assignment: str) -> UsageError:
    name = dotted(at)
    wanted = f"has no entry [{step}]" if isinstance(step, int) else f"has no key {shown(step)}"
    return UsageError(
        f"--set {assignment}: {name} {wanted}",
        found=f"{name} is {shown(node)}",
        fix=f"set the whole of it: --set '{name}=...'",
    )
