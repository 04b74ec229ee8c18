"""`choice`: one of several settings classes, by a key or by a bare word."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kdpipe.stages.choice import choice


class Circle(BaseModel):
    """A shape with a setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(BaseModel):
    """Another shape, with another setting, that has no default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["square"] = "square"
    side: float


SHAPE: TypeAdapter[BaseModel] = TypeAdapter(choice((Circle, Square), "kind"))


def test_the_key_tells_which():
    """The class is that whose literal the key names, with its own settings."""
    assert SHAPE.validate_python({"kind": "circle", "radius": 2}) == Circle(radius=2)
    assert SHAPE.validate_python({"kind": "square", "side": 3}) == Square(side=3)


def test_a_bare_word_is_the_key():
    """`circle` is short for `{kind: circle}`."""
    assert SHAPE.validate_python("circle") == Circle()


def test_an_instance_is_taken_as_it_is():
    """From Python one passes the settings object itself."""
    square = Square(side=2)

    assert SHAPE.validate_python(square) == square


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("triangle", "'circle', 'square'"),
        ({"radius": 1}, "kind"),
        ("square", "side"),
        ({"kind": "circle", "side": 1}, "Extra inputs"),
        (3, "valid dictionary"),
    ],
)
def test_anything_else_is_refused(value: object, problem: str):
    """An unknown word lists the known ones; settings of the other class are no settings."""
    with pytest.raises(ValidationError, match=problem):
        SHAPE.validate_python(value)


def test_one_type_needs_no_discriminator():
    """With a single class the key may be left out, and the word still works."""
    alone: TypeAdapter[Circle] = TypeAdapter(choice((Circle,), "kind"))

    assert alone.validate_python("circle") == alone.validate_python({"radius": 1}) == Circle()
    with pytest.raises(ValidationError):
        alone.validate_python("square")


def test_what_is_dumped_reads_back():
    """Settings survive JSON, which is how keys of the store are made."""
    square = Square(side=2)

    assert SHAPE.validate_json(square.model_dump_json()) == square
