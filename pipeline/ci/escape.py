"""User text made harmless, for each language that CI reads.

Names of artifacts, paths and messages come from a config that anybody may have written in a pull
request: they must neither break a table nor mention people, link issues or add HTML.
"""

from __future__ import annotations

import re

from kdpipe.pipeline.place import printable

LONGEST = 1000
"""Characters of one text; what is longer ends in three dots."""

_LINKED = re.compile(
    r"[@#!~%$&](?=[\w\"'])"  # mentions and references: @you #1 !1 ~label %milestone $snippet &epic
    r"|\b(?i:gh)(?=-\d)"  # GH-1
    r"|:(?=//)|\b(?i:www)(?=\.)"  # addresses
    r"|:(?=[\w+-]+:)"  # :emoji:
)
_ZERO_WIDTH = "\u200b"
_MARKUP = re.compile(r"[&<>\"'`\\*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")
_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(text: str) -> str:
    """One line of at most `LONGEST` characters, without what could steer a terminal or a reader."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 3]}..."


def markdown(text: str) -> str:
    """Text in Markdown, in a table or in HTML that shows as it was written.

    Markup becomes entities, which hold in all three. A zero-width space stops what platforms link
    in plain text, where an escaped character is linked all the same.
    """
    unlinked = _LINKED.sub(lambda found: found[0] + _ZERO_WIDTH, line(text))
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", unlinked)
    return escaped.replace(_ZERO_WIDTH, "&#8203;")


def command(text: str) -> str:
    """The message of a GitHub workflow command, as the runner unescapes it."""
    return line(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """A property of a GitHub workflow command, such as `file`."""
    return command(text).replace(":", "%3A").replace(",", "%2C")


def xml(text: str) -> str:
    """Text that XML 1.0 can hold; characters that it has no way to write become question marks."""
    return _XML.sub("?", text)


def label(text: str) -> str:
    """The value of an OpenMetrics label, between the quotes."""
    return line(text).replace("\\", "\\\\").replace('"', '\\"')
