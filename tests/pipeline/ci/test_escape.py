"""User text shows as it was written, and does nothing else."""

from __future__ import annotations

import html
import re
from random import Random
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from kdpipe.pipeline.ci import escape

NASTY = (
    "a|b",
    "`rm -rf`",
    "<img src=x onerror=alert(1)>",
    "<!-- kdpipe:default -->",
    "</details><script>",
    "**bold** _it_ ~~gone~~",
    "[link](https://evil.example)",
    "![picture](x.png)",
    "https://evil.example www.evil.example",
    "@octocat @org/team #123 !45 GH-7 ~bug %1 $9 &3 owner/repo#1 :tada:",
    "back\\slash \\| \\@you &amp; &lt;",
    "$x^2$ snake_case _x_",
    "\"quoted\" and 'single'",
    "größer, 日本語, 🦔",
)


def shown(inline: str) -> str:
    """What a reader sees of one line of Markdown, without what has no width."""
    (block,) = [
        t for t in MarkdownIt("gfm-like", {"linkify": False}).parse(inline) if t.type == "inline"
    ]
    assert block.children is not None
    assert {child.type for child in block.children} <= {"text", "text_special"}, inline
    return "".join(child.content for child in block.children).replace("\u200b", "")


@pytest.mark.parametrize("text", NASTY)
def test_markdown_shows_the_text(text: str) -> None:
    """Plain text comes out, with no link, picture, markup or HTML in it."""
    assert shown(escape.markdown(text)) == text


@pytest.mark.parametrize("text", NASTY)
def test_a_table_keeps_its_cells(text: str) -> None:
    """Every text is one cell."""
    table = f"| a | b |\n|---|---|\n| {escape.markdown(text)} | end |\n"
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(table)

    assert [token.type for token in tokens].count("td_open") == 2


@pytest.mark.parametrize("text", NASTY)
def test_html_shows_the_text(text: str) -> None:
    """Between HTML tags, where Markdown's own escapes mean nothing, it is plain text too."""
    found = ET.fromstring(f"<p>{escape.markdown(text)}</p>")

    assert found.text is not None
    assert found.text.replace("\u200b", "") == text


def test_any_text_shows_as_it_is() -> None:
    """Random mixtures of all that Markdown, HTML and the platforms react to, as text and bold."""
    words = [*"ab1 |`*_[]()<>&#@!~$%:\\/'\"-+.=^{}", "é", "日", "🦔", "\x00", "\u202e", "&amp;"]
    words += ["~~", "**", "__", "http://", "www.", "GH-1", "&#64;", "\u200b", "\n"]
    random = Random(0)
    for _ in range(2000):
        text = "".join(random.choices(words, k=random.randint(1, 12)))
        seen = escape.line(text)

        assert shown(f"x {escape.markdown(text)} x") == f"x {seen} x", text
        bold = MarkdownIt("gfm-like", {"linkify": False}).renderInline(
            f"**{escape.markdown(text)}**: z"
        )
        assert not seen or bold.startswith("<strong>"), text
        assert not seen or bold.endswith("</strong>: z"), text


def test_nobody_is_mentioned_and_nothing_is_linked() -> None:
    """What platforms look for in the text behind the markup is broken up."""
    text = " ".join(NASTY)
    seen = html.unescape(escape.markdown(text))

    for pattern in (r"@\w", r"#\d", r"!\d", r"GH-\d", r"[$~%&]\w", r"://", r"www\.", r":tada:"):
        assert re.search(pattern, text), pattern
        assert not re.search(pattern, seen), pattern


def test_one_line_stays_one_line() -> None:
    """Line breaks, controls and direction marks do not come through; long texts end in dots."""
    assert escape.line("a\n  b\tc\u2028d") == "a b c d"
    assert escape.line("a\x1b[31mb\u202ec\ud800") == "a?[31mb?c?"
    assert escape.line("x" * 1001) == "x" * 997 + "..."


def test_workflow_commands_are_escaped_as_the_runner_reads_them() -> None:
    """The runner undoes %25, %0D and %0A in a message, and %3A and %2C in a property."""
    text = "100% of a:b, c"

    assert escape.command(text) == "100%25 of a:b, c"
    assert escape.command_property(text) == "100%25 of a%3Ab%2C c"
    assert "\n" not in escape.command("a\nb\r::error::c")


def test_xml_has_no_character_that_it_cannot_hold() -> None:
    """Control characters, half surrogates and non-characters are replaced."""
    text = "a\x00\x08\x0b\x1f\ufffe\uffff\ud800b\t\n]]>"
    element = ET.Element("a", text=escape.xml(text))
    element.text = escape.xml(text)

    assert escape.xml(text) == "a???????b\t\n]]>"
    assert ET.fromstring(ET.tostring(element)).text == escape.xml(text)


def test_labels_are_quoted() -> None:
    """Backslash, quote and line break, as OpenMetrics escapes them."""
    assert escape.label('a"b\\c\nd') == 'a\\"b\\\\c d'
