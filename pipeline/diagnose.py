"""A document against a pydantic model: the valid settings, or one error listing every problem.

The words for one error are in `wording.py`, its place is found in `locate.py`; here is decided
which errors are causes worth showing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdpipe.pipeline.document import Document
from kdpipe.pipeline.locate import Spot, key_of, locate
from kdpipe.pipeline.nodes import step_of
from kdpipe.pipeline.place import Address, Place, Problem, cut, dotted, printable, shown
from kdpipe.pipeline.wording import Finding, Words, words

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], document: Document) -> M:
    """The document's data as a `model`; paths in it are relative to the document's folder.

    Raises ConfigError with one problem per cause, in the order of the file.
    """
    try:
        base = document.path.absolute().parent
        settings = model.model_validate(document.data, context={"base": base})
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        if converted := list(_converted(document.data, settings, ())):
            raise document.refuse([_corrected(document, *case) for case in converted])
        return settings
    findings = [_finding(model, document, detail) for detail in details]
    causes = _causes(_settled([_Case(f.spot, f, words(f)) for f in findings]))
    raise document.refuse([_problem(document, case) for case in causes])


def problem_at(document: Document, address: Address, what: str, *notes: str) -> Problem:
    """A problem with the value at `address` that no model sees, e.g. one with another value."""
    place = document.place(address)
    span = place.value or place.key
    alias = _alias_note(document, address)
    return Problem(f"{dotted(address)}: {what}", span, (*notes, *alias), place.assignment)


def _converted(raw: Any, value: Any, at: Address) -> Iterator[tuple[Address, Any, str]]:
    """What the model silently turned into something else: (address, as given, what it became).

    Pydantic reads `yes` as 1 where a number is wanted, and "3" as 3; who wrote that meant neither.
    """
    if isinstance(raw, dict):
        for key, inner in _inside(raw, value):
            yield from _converted(raw[key], inner, (*at, step_of(key)))
    elif isinstance(raw, list) and isinstance(value, list | tuple) and len(raw) == len(value):
        for index, (item, inner) in enumerate(zip(raw, value, strict=True)):
            yield from _converted(item, inner, (*at, index))
    elif became := _became(raw, value):
        yield at, raw, became


def _became(raw: Any, value: Any) -> str:
    """What a scalar of the file was turned into; nothing where it stayed what it was."""
    if not (isinstance(raw, int | float | str) and isinstance(value, int | float)):
        return ""
    kept = not isinstance(raw, str) and isinstance(raw, bool) == isinstance(value, bool)
    return "" if kept else "true or false" if isinstance(value, bool) else "a number"


def _inside(raw: Mapping[Any, Any], value: Any) -> Iterator[tuple[Any, Any]]:
    """The keys of a YAML mapping with what the model made of their values, as far as it did."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            given = [key for key in (key_of(name, field), name) if key in raw]
            yield from ((key, getattr(value, name)) for key in given[:1])
    elif isinstance(value, Mapping):
        yield from ((key, value[key]) for key in raw if key in value)


def _corrected(document: Document, address: Address, raw: Any, became: str) -> Problem:
    if isinstance(raw, str):
        note = f"help: write it without quotes: {printable(cut(raw))}"
        return problem_at(document, address, f"{shown(raw)} is text, not {became}", note)
    written = document.written(document.place(address).value) or shown(raw)
    kind = "true/false" if isinstance(raw, bool) else "a number"
    return problem_at(document, address, f"{written} is {kind}, not {became}")


@dataclass(frozen=True)
class _Case:
    """A finding and the words for it, which change where several findings are one cause."""

    spot: Spot
    finding: Finding
    words: Words


def _finding(model: type[BaseModel], document: Document, detail: ErrorDetails) -> Finding:
    kind, location = detail["type"], detail["loc"]
    spot = locate(model, document.data, location, missing=kind == "missing")
    place = document.place(spot.address)
    if location and location[-1] == "[key]":
        kind = "invalid_key"
    written = document.written(place.key if kind == "invalid_key" else place.value)
    value = spot.data if spot.exists and kind != "invalid_key" else detail["input"]
    context = detail.get("ctx", {})
    return Finding(kind, spot, value, context, detail["msg"], written)


def _settled(cases: Sequence[_Case], depth: int = 0) -> list[_Case]:
    """The cases with one member chosen at each plain union, of which pydantic reports them all."""
    settled = [case for case in cases if len(case.spot.forks) <= depth]
    forked = [case for case in cases if len(case.spot.forks) > depth]
    for at in dict.fromkeys(case.spot.forks[depth].at for case in forked):
        members: dict[str, list[_Case]] = {}
        for case in forked:
            if case.spot.forks[depth].at == at:
                members.setdefault(case.spot.forks[depth].member, []).append(case)
        settled += _best(at, [_settled(m, depth + 1) for m in members.values()])
    return settled


def _best(at: Address, members: list[list[_Case]]) -> list[_Case]:
    """The member that the user meant: of the right kind, with the fewest errors.

    Where the value is of the wrong kind for all, one case that names all the right ones.
    """
    meant = [m for m in members if not any(c.words.wanted and c.spot.name == at for c in m)]
    if meant:
        return min(meant, key=_misfit)
    everyone = [case for member in members for case in member if case.spot.name == at]
    wanted = list(dict.fromkeys(case.words.wanted for case in everyone if case.words.wanted))
    if len(wanted) == 1:
        return everyone[:1]
    first = everyone[0]
    suggesting = next((case for case in everyone if case.words.suggested), None)
    notes = suggesting.words.notes if suggesting else ()
    what = f"{shown(first.finding.value)} is neither {' nor '.join(wanted)}"
    return [_Case(first.spot, first.finding, Words(what, notes, " or ".join(wanted)))]


def _misfit(member: list[_Case]) -> tuple[int, int]:
    """How badly a member fits: its causes, and among equals the wrong literals, often its tag."""
    literals = sum(case.finding.type == "literal_error" for case in member)
    return len(_causes(member)), literals


def _causes(cases: Sequence[_Case]) -> list[_Case]:
    """Without what follows from another case: below it, beside it, or missing by a typo."""
    wrong = {case.spot.name for case in cases}
    meant = {
        (*case.spot.name[:-1], case.words.suggested)
        for case in cases
        if case.finding.type == "extra_forbidden"
    }
    causes: dict[Address, _Case] = {}
    for case in cases:
        parents = {case.spot.name[:end] for end in range(1, len(case.spot.name))}
        typo = case.finding.type == "missing" and case.spot.name in meant
        if not typo and not parents & wrong:
            causes.setdefault(case.spot.name, case)
    return list(causes.values())


def _problem(document: Document, case: _Case) -> Problem:
    """The case at its place: under the key or the value, whichever is wrong."""
    finding, spot = case.finding, case.spot
    name = spot.name[:-1] if finding.type == "invalid_key" else spot.name
    place = document.place(spot.address)
    under_value = finding.written != "" and finding.type not in _UNDER_KEY
    if finding.type == "union_tag_invalid":
        name, place = _tag(document, spot, str(finding.context["discriminator"]).strip("'"))
    span = place.value if under_value or not place.key else place.key
    if finding.type == "missing" and not spot.address:
        span = None  # the whole document lacks it: no line is guilty
    notes = (*case.words.notes, *_alias_note(document, spot.address))
    title = f"{dotted(name)}: " if name else ""
    return Problem(f"{title}{case.words.what}", span, notes, place.assignment)


def _tag(document: Document, spot: Spot, key: str) -> tuple[Address, Place]:
    """Name and place of the tag of a tagged union; of the whole entry where it is a bare word."""
    if isinstance(spot.data, dict) and key in spot.data:
        return (*spot.name, key), document.place((*spot.address, key))
    return spot.name, document.place(spot.address)


def _alias_note(document: Document, address: Address) -> tuple[str, ...]:
    """The caret is under what was written at the anchor; this tells where it was used."""
    alias = document.place(address).alias
    return (f"note: used through the alias in line {alias.line}",) if alias else ()


_UNDER_KEY = {"extra_forbidden", "missing", "union_tag_not_found", "invalid_key"}
"""Errors of which a key is guilty, not a value: of the unknown one, of the parent of a missing."""
