"""Paths that a user gives: relative to the config file, or to the shell's folder on `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ValidationInfo


class Typed(str):
    """Text typed on the command line; paths in it are relative to the shell's folder, `base`."""

    base: Path

    def __new__(cls, text: str, base: Path) -> Self:
        """The text, remembering where it was typed."""
        typed = super().__new__(cls, text)
        typed.base = base
        return typed

    def __getnewargs__(self) -> tuple[str, Path]:  # type: ignore[override]  # str has no base
        """What copies and pickles are made of."""
        return str(self), self.base


def _resolve(value: Any, info: ValidationInfo) -> Any:
    """Make a path absolute; `info.context["base"]` is the folder of the config file.

    Links and `..` stay: what `..` leads to depends on the links before it.
    """
    if not isinstance(value, str | Path):
        return value
    context = info.context or {}
    base = value.base if isinstance(value, Typed) else context.get("base", Path.cwd())
    return (base / Path(value).expanduser()).absolute()


UserPath = Annotated[Path, BeforeValidator(_resolve)]
