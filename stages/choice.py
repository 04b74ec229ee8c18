"""One of several settings classes, told apart by a key; a bare word is shorthand for that key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, BeforeValidator, Field


def choice(types: Sequence[type[BaseModel]], key: str) -> Any:
    """The type of a field that holds any of `types`, discriminated by their literal field `key`.

    Example: choice((Digits, Idx), "kind") reads both `digits` and `{kind: idx, folder: data}`.
    """

    def expand(value: Any) -> Any:
        return {key: value} if isinstance(value, str) else value

    union: Any = Union.__getitem__(tuple(types))
    discriminator = Field(discriminator=key) if len(types) > 1 else Field()
    return Annotated[union, discriminator, BeforeValidator(expand)]
