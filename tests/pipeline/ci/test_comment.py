"""The sticky comment: found by its first line, remembers by its second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdpipe.pipeline.ci import comment
from kdpipe.pipeline.ci.context import Context, state_in, tag_name

TABLE = {
    (None, "passed"): "none",
    (None, "failed"): "create",
    (None, "undecided"): "create",
    ("passed", "passed"): "update",
    ("passed", "failed"): "flip",
    ("passed", "undecided"): "flip",
    ("failed", "passed"): "update",
    ("failed", "failed"): "update",
    ("failed", "undecided"): "update",
    ("undecided", "passed"): "update",
    ("undecided", "failed"): "update",
    ("undecided", "undecided"): "update",
}
WORDS = {"passed": "PASS", "failed": "FAIL", "undecided": "UNDECIDED"}


@pytest.mark.parametrize(("before", "now"), TABLE)
def test_state_table(before: Any, now: Any, judged: Any, run_of: Any, context: Context) -> None:
    """What there was x what there is -> what to do."""
    results = run_of(judged("a", WORDS[now]))

    assert comment.action(before, now) == TABLE[before, now]
    assert comment.render_action(results, replace(context, previous=before)) == (
        f"{TABLE[before, now]}\n"
    )


@pytest.mark.parametrize("now", WORDS)
def test_a_comment_remembers_its_verdict(
    now: str, judged: Any, run_of: Any, context: Context
) -> None:
    """The next run reads from the comment how this one ended, also as GitHub gives it back."""
    text = comment.render(run_of(judged("a", WORDS[now])), context)

    assert text.splitlines()[:2] == ["<!-- kdpipe:default -->", f"<!-- kdpipe-verdict:{now} -->"]
    assert state_in(text) == now
    assert state_in(text.replace("\n", "\r\n")) == now


def test_only_the_head_is_believed() -> None:
    """A verdict further below is a user's text."""
    text = "<!-- kdpipe:default -->\n\nhello\n<!-- kdpipe-verdict:passed -->"

    assert state_in(text) is None


def test_a_flip_is_told_shortly(judged: Any, run_of: Any, context: Context) -> None:
    """The second comment says the flip and the cause, and is not taken for the first one."""
    results = run_of(judged("a", "FAIL"))

    text = comment.render_flip(results, replace(context, previous="passed"))

    assert text.splitlines() == [
        "<!-- kdpipe-flip:default -->",
        "### kdpipe: FAILED, 1 of 1 rules failed (was: passed)",
        "",
        "**a**: the reason of a for FAIL (kdpipe.yaml, line 14)",
        "",
        "The comment with the table above has been updated.",
    ]
    assert not text.startswith("<!-- kdpipe:default")


def test_ids_fit_into_a_tag() -> None:
    """An id cannot close the HTML comment that it stands in."""
    assert tag_name("edge -- int8") == "edge-int8"
    assert tag_name("a --> <b>") == "a-b"
    assert tag_name("日本") == "default"
