"""What is wrong with one value, in kdpipe's words: one line per kind of error pydantic knows.

`diagnose.py` decides which errors to show and where; this file only finds the words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from kdpipe.pipeline.locate import Spot, description, keys, tags
from kdpipe.pipeline.place import count, cut, dotted, printable, shown


@dataclass(frozen=True)
class Finding:
    """One error of pydantic at its spot. `written` is the scalar as it stands in the file."""

    type: str
    spot: Spot
    value: Any
    context: Mapping[str, Any]
    message: str
    written: str | None


@dataclass(frozen=True)
class Words:
    """`what` is wrong and `notes` on how to mend it.

    `wanted` is set when the value is of the wrong kind altogether, and names the right kind, e.g.
    `a whole number`. `suggested` is the name that the user probably meant.
    """

    what: str
    notes: tuple[str, ...] = ()
    wanted: str = ""
    suggested: str | None = None


def words(finding: Finding) -> Words:
    """The words for an error; of a kind nobody foresaw, what the validator says of it."""
    wording = _WORDINGS.get(finding.type)
    if wording is not None:
        return wording(finding)
    if finding.type in _KINDS:
        return _wrong_kind(finding)
    if finding.type in _LIMITS:
        return _out_of_range(finding)
    return _unforeseen(finding)


def choose(name: str, allowed: Sequence[str], listed: bool) -> tuple[tuple[str, ...], str | None]:
    """A note that suggests the nearest allowed name, and that name; `listed` shows all beside it.

    Example: choose("openvnio", ["openvino", "tensorrt"], True)
    -> (("help: did you mean `openvino`? (openvino, tensorrt)",), "openvino")
    """
    spelled = {option.lower().replace("_", "-"): option for option in reversed(allowed)}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), spelled, 1)
    everything = ", ".join(allowed)
    if near:
        meant = spelled[near[0]]
        rest = f" ({everything})" if listed else ""
        return (f"help: did you mean `{meant}`?{rest}",), meant
    lead = "choose from" if listed else "allowed here"
    return ((f"help: {lead}: {everything}",) if everything else ()), None


def _unknown_key(finding: Finding) -> Words:
    notes, meant = choose(str(finding.spot.name[-1]), keys(finding.spot.owners), listed=False)
    return Words("unknown key", notes, suggested=meant)


def _missing(finding: Finding) -> Words:
    *parent, key = finding.spot.name
    what = description(finding.spot.owners, key)
    where = f" under `{dotted(tuple(parent))}`" if parent else ""
    notes = (f"help: add `{key}: ...`{where}", *((f"note: {key}: {what}",) if what else ()))
    return Words("missing", notes)


def _no_tag(finding: Finding) -> Words:
    """A mapping without the key that tells which of several things it is."""
    key = _unquoted(finding.context["discriminator"])[0]
    allowed = tags(finding.spot.kinds)
    present = map(str, finding.value) if isinstance(finding.value, dict) else ()
    near = difflib.get_close_matches(key, list(present), 1)
    if near:
        return Words(
            f"`{key}` is missing", (f"help: did you mean `{key}` where it says `{near[0]}`?",)
        )
    notes = (f"help: add `{key}: ...`, one of: {', '.join(allowed)}",) if allowed else ()
    return Words(f"`{key}` is missing", notes)


def _wrong_tag(finding: Finding) -> Words:
    context = finding.context
    return _unknown_value(finding, context["tag"], _unquoted(context["expected_tags"]))


def _wrong_choice(finding: Finding) -> Words:
    return _unknown_value(finding, finding.value, _unquoted(finding.context["expected"]))


def _unknown_value(finding: Finding, value: Any, allowed: list[str]) -> Words:
    notes, meant = choose(str(value), allowed, listed=True)
    if isinstance(value, str) and value in allowed:
        notes = (f"help: write it without quotes: {value}",)
    elif not isinstance(value, str) and finding.written in allowed:
        notes = (f"help: put it in quotes: '{finding.written}' (YAML reads it as {shown(value)})",)
    wanted = " nor ".join(f"`{option}`" for option in allowed)
    return Words(f"unknown value {shown(value)}", notes, wanted, meant)


def _wrong_kind(finding: Finding) -> Words:
    wanted = _KINDS[finding.type]
    what = f"{shown(finding.value)} is not {wanted}"
    notes = _hints(finding)
    if wanted == "a mapping":
        kinds = finding.spot.kinds
        which, names = ("one of", tags(kinds)) if tags(kinds) else ("keys", keys(kinds))
        some = f"; {which}: {', '.join(names)}" if names else ""
        notes = (f"help: write `key: value` lines{some}", *notes)
    return Words(what, notes, wanted)


def _hints(finding: Finding) -> tuple[str, ...]:
    """What may have led to a value of the wrong kind; YAML 1.1 has its surprises."""
    value, written = finding.value, finding.written
    if value is None and written == "":
        return ("help: write a value after the colon, or remove the line",)
    if finding.type == "string_type" and isinstance(value, bool | int | float | date):
        if written is None:  # typed after --set
            return (f"help: quote it for YAML and for the shell: \"'{shown(value)}'\"",)
        read = f" (YAML reads it as {shown(value)})" if written != shown(value) else ""
        return (f"help: put it in quotes: '{cut(written)}'{read}",)
    if _KINDS.get(finding.type) == "a number" and isinstance(value, str):
        return _dot(value)
    if _KINDS.get(finding.type) == "a list" and not isinstance(value, dict | list | None):
        return (f"help: write a list: [{cut(written or str(value))}]",)
    return ()


def _dot(value: str) -> tuple[str, ...]:
    """A decimal comma, and a percentage, as numbers that YAML reads."""
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return (f"help: write it with a dot: {value.replace(',', '.')}",)
    if re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        return (f"help: write a fraction: {float(value.rstrip(' %')) / 100:g}",)
    return ()


def _out_of_range(finding: Finding) -> Words:
    if isinstance(finding.value, bool | str):
        return Words(f"{shown(finding.value)} is not a number", wanted="a number")
    limit, problem, phrase = _LIMITS[finding.type]
    bound = finding.context[limit]
    text = f"{bound:g}" if isinstance(bound, float) else shown(bound)
    return Words(f"{shown(finding.value)} is {problem}", (f"help: it must be {phrase} {text}",))


def _too_few(finding: Finding) -> Words:
    return Words(_length(finding), (f"help: it needs at least {finding.context['min_length']}",))


def _too_many(finding: Finding) -> Words:
    return Words(_length(finding), (f"help: it takes at most {finding.context['max_length']}",))


def _length(finding: Finding) -> str:
    """How many items there are, as far as pydantic counted them."""
    length = finding.context.get("actual_length")
    return "has too many items" if length is None else f"has {count(length, 'item')}"


def _short(finding: Finding) -> Words:
    need = count(finding.context["min_length"], "character")
    return Words(f"{shown(finding.value)} is too short", (f"help: it needs at least {need}",))


def _long(finding: Finding) -> Words:
    most = count(finding.context["max_length"], "character")
    return Words(f"{shown(finding.value)} is too long", (f"help: it takes at most {most}",))


def _pattern(finding: Finding) -> Words:
    pattern = finding.context["pattern"]
    return Words(f"{shown(finding.value)} is not accepted", (f"help: it must match {pattern}",))


def _not_text_key(finding: Finding) -> Words:
    read = f"the key `{finding.written}` is {shown(finding.value)} to YAML, not text"
    return Words(read, (f"help: put the key in quotes: '{finding.written}'",))


def _said(finding: Finding) -> Words:
    """What a validator of kdpipe or of a plug-in says: its first line, and the others as notes."""
    error = finding.context.get("error")
    what, *notes = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        f"{shown(finding.value)} is not accepted"
    ]
    return Words(printable(what), tuple(printable(note) for note in notes))


def _unforeseen(finding: Finding) -> Words:
    text = re.sub(r"^(Input|Value|[A-Z][a-z]+) should ", "it must ", finding.message)
    text = printable(text[:1].lower() + text[1:])
    return Words(f"{shown(finding.value)} is not accepted", (f"note: {text}",))


def _unquoted(listing: str) -> list[str]:
    """Pydantic's list of allowed values. Example: "'a', 'b' or 3" -> ["a", "b", "3"]."""
    options = re.findall(r"'((?:[^'\\]|\\.)*)'|([^\s,']+)", listing)
    return [quoted or plain for quoted, plain in options if quoted or plain != "or"]


_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_sub_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "a mapping"),
    **dict.fromkeys(("model_attributes_type", "dataclass_type"), "a mapping"),
    "path_type": "a path",
    "path_not_file": "a file that exists",
    "path_not_directory": "a folder that exists",
    "none_required": "null",
}
"""Error type -> what the value should be."""

_LIMITS = {
    "greater_than": ("gt", "too small", "above"),
    "greater_than_equal": ("ge", "too small", "at least"),
    "less_than": ("lt", "too large", "below"),
    "less_than_equal": ("le", "too large", "at most"),
    "multiple_of": ("multiple_of", "not accepted", "a multiple of"),
}
"""Error type -> name of the limit, what the value is, what it must be."""

_WORDINGS: Mapping[str, Callable[[Finding], Words]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "union_tag_not_found": _no_tag,
    "union_tag_invalid": _wrong_tag,
    "literal_error": _wrong_choice,
    "enum": _wrong_choice,
    "too_short": _too_few,
    "too_long": _too_many,
    "string_too_short": _short,
    "string_too_long": _long,
    "string_pattern_mismatch": _pattern,
    "invalid_key": _not_text_key,
    "value_error": _said,
    "assertion_error": _said,
}
