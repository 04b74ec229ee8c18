"""YAML text -> plain data and the place of everything in it; `document.py` reads the file itself.

Only plain data comes out: mappings, lists, text, numbers, booleans, null, dates, bytes. Values mean
what PyYAML (YAML 1.1) says they mean, except that `1e-3` is a number, as in YAML 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from kdpipe.pipeline.place import Address, Place, Problem, Span, dotted, lines_of, shown
from kdpipe.pipeline.syntax import explain, span_of, unprintable

ALIAS_LIMIT = 10_000
"""How many nodes may come from aliases, counted each time an alias repeats them."""

_TAG = "tag:yaml.org,2002:"
_PROPERTIES = re.compile(r"([&!]\S*[ \t]+)+(?=[^\s#])")
_MERGE = f"{_TAG}merge"


class Refused(Exception):
    """The text is not a document kdpipe reads; carries the problems."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems[0].what)
        self.problems = problems


@dataclass(frozen=True)
class Reading:
    """A text's value and the place of every address in it."""

    value: Any
    places: dict[Address, Place]


def step_of(key: Hashable) -> str | int:
    """A mapping's key as one step of an address, as pydantic spells it in a location."""
    return key if isinstance(key, str | int) else str(key)


def read(text: str) -> Reading:
    """Read one YAML document; an empty text gives None.

    Raises Refused for a syntax error, a repeated key, a tag, an alias inside its own anchor, and
    for more than `ALIAS_LIMIT` nodes repeated by aliases.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            builder = _Builder(loader, lines_of(text))
            value = None if root is None else builder.build(root, (), None, None)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise Refused([unprintable(error, text)]) from error
    except yaml.MarkedYAMLError as error:
        raise Refused([explain(error, lines_of(text))]) from error
    except RecursionError as error:
        raise Refused([Problem("mappings and lists are nested too deeply")]) from error
    if builder.problems:
        raise Refused(list(builder.problems.values()))
    return Reading(value, builder.places)


class _Alias(yaml.Node):
    """A use `*name` of an anchored node; PyYAML itself would forget where the use stands."""

    def __init__(self, target: yaml.Node, start: yaml.Mark, end: yaml.Mark) -> None:
        super().__init__("", target, start, end)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that keeps aliases visible and reads `1e-3` as a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML's, but an alias stays an alias."""
        is_alias = self.check_event(yaml.AliasEvent)
        event = self.peek_event() if is_alias else None  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if event is None or node is None:
            return node
        return _Alias(node, event.start_mark, event.end_mark)


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _Entry(NamedTuple):
    """One entry of a mapping; `alias` is the `*name` that brought it in, if any."""

    key: Span
    value: yaml.Node
    alias: Span | None


_Entries = dict[Hashable, _Entry]


@dataclass
class _Builder:
    """Turns a node tree into data, recording places and collecting problems on the way."""

    loader: _Loader
    lines: tuple[str, ...]
    places: dict[Address, Place] = field(default_factory=dict)
    problems: dict[Span, Problem] = field(default_factory=dict)  # an anchor is complained of once
    repeated: int = 0
    open: list[yaml.Node] = field(default_factory=list)

    def build(self, node: yaml.Node, address: Address, key: Span | None, alias: Span | None) -> Any:
        """The data of `node`, whose key stands at `key`; `alias` led here from elsewhere."""
        if isinstance(node, _Alias):
            return self.build(node.value, address, key, self._span(node))
        self.places[address] = Place(self._span(node), key, alias)
        build = _BUILDERS.get((type(node), node.tag.removeprefix(_TAG)))
        if build is None:
            tag = node.tag.replace(_TAG, "!!")
            notes = ("help: remove it; only plain YAML is read",)
            start = span_of(node.start_mark)._replace(width=len(tag))
            self._report(start, f"the tag `{tag}` is not supported", notes)
            return None
        with self._inside(node, alias):
            return build(self, node, address, alias)

    @contextmanager
    def _inside(self, node: yaml.Node, alias: Span | None) -> Iterator[None]:
        """Refuse at once what would never end: a value in itself, or aliases of aliases."""
        self.repeated += alias is not None
        if any(node is parent for parent in self.open):
            raise Refused([Problem("this alias repeats a value inside itself", alias)])
        if self.repeated > ALIAS_LIMIT:
            what = f"aliases repeat more than {ALIAS_LIMIT:,} values"
            raise Refused([Problem(what, alias, ("help: write the config without them",))])
        self.open.append(node)
        yield
        self.open.pop()

    def scalar(self, node: yaml.ScalarNode, *_: object) -> Any:
        """Text, number, boolean, null, date or bytes."""
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            what = f"{shown(node.value)} is not a {node.tag.removeprefix(_TAG)}"
            self._report(self._span(node), what, ("help: put it in quotes if it is text",))
            return None

    def text(self, node: yaml.ScalarNode, *_: object) -> str:
        """A lone `=` or `<<`, for which YAML 1.1 has tags and nobody has a use."""
        return str(node.value)

    def sequence(self, node: yaml.SequenceNode, address: Address, alias: Span | None) -> list[Any]:
        """A list; its items have no key."""
        items = enumerate(node.value)
        return [self.build(item, (*address, i), None, alias) for i, item in items]

    def mapping(
        self, node: yaml.MappingNode, address: Address, alias: Span | None
    ) -> dict[Hashable, Any]:
        """A mapping: its own keys, and those merged with `<<`."""
        return {
            key: self.build(entry.value, (*address, step_of(key)), entry.key, entry.alias)
            for key, entry in self._entries(node, address, alias).items()
        }

    def _entries(self, node: yaml.MappingNode, address: Address, alias: Span | None) -> _Entries:
        """The entries of a mapping; what it sets itself wins over what it merges."""
        entries: _Entries = {}
        merged: _Entries = {}
        for key_node, value in node.value:
            span = self._span(key_node)
            if key_node.tag == _MERGE:
                merged = self._merged(value, address, alias) | merged
                continue
            key = self._key(key_node, span)
            if key in entries:
                self._twice(address, key, entries[key].key, span)
            entries.setdefault(key, _Entry(span, value, alias))
        return entries | {key: merged[key] for key in merged if key not in entries}

    def _merged(self, node: yaml.Node, address: Address, alias: Span | None) -> _Entries:
        """What `<<: node` brings in: a mapping, or a list of them of which the first wins."""
        if isinstance(node, _Alias):
            return self._merged(node.value, address, self._span(node))
        with self._inside(node, alias):
            if isinstance(node, yaml.MappingNode):
                return self._entries(node, address, alias)
            entries: _Entries = {}
            if isinstance(node, yaml.SequenceNode):
                for item in node.value:
                    entries = self._merged(item, address, alias) | entries
            else:
                self._report(self._span(node), "`<<` merges only mappings")
        return entries

    def _key(self, node: yaml.Node, span: Span) -> Hashable:
        """The data of a key."""
        plain = node.value if isinstance(node, _Alias) else node
        if isinstance(plain, yaml.ScalarNode):
            key: Hashable = self.scalar(plain)
            return key
        notes = ("help: put text with `{` or `[` in quotes",)
        self._report(span, "a mapping or a list cannot be a key", notes)
        return None

    def _twice(self, address: Address, key: Hashable, first: Span, second: Span) -> None:
        name = key if isinstance(key, str) else shown(key)
        what = f"{dotted((*address, name))}: this key is given twice"
        notes = (f"note: it is first given in line {first.line}", "help: keep one of the two")
        self._report(second, what, notes)

    def _span(self, node: yaml.Node) -> Span:
        """Where the node is written, without the anchor and the tag before it."""
        span = span_of(node.start_mark, node.end_mark)
        line = self.lines[span.line - 1] if span.line <= len(self.lines) else ""
        before = _PROPERTIES.match(line, span.column - 1)
        skipped = len(before[0]) if before else 0
        return Span(span.line, span.column + skipped, max(0, span.width - skipped))

    def _report(self, span: Span, what: str, notes: tuple[str, ...] = ()) -> None:
        self.problems.setdefault(span, Problem(what, span, notes))


_BUILDERS: dict[tuple[type[yaml.Node], str], Callable[..., Any]] = {
    (yaml.MappingNode, "map"): _Builder.mapping,
    (yaml.SequenceNode, "seq"): _Builder.sequence,
    (yaml.ScalarNode, "value"): _Builder.text,
    (yaml.ScalarNode, "merge"): _Builder.text,
    **{
        (yaml.ScalarNode, kind): _Builder.scalar
        for kind in ("str", "int", "float", "bool", "null", "timestamp", "binary")
    },
}
