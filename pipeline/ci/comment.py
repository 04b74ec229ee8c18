"""The one comment of a pull request that is kept up to date, and when to touch it.

kdpipe posts nothing. A comment is found again by its first line; its second says how the run ended
that it speaks of. An edit notifies nobody, so a verdict that turns from passed to failed gets a
second, short comment beside it.
"""

from __future__ import annotations

from typing import Literal

from kdpipe.pipeline.ci.context import Context, open_tag, state_tag
from kdpipe.pipeline.ci.findings import Results, State, findings, state
from kdpipe.pipeline.ci.markdown import fitting, sentence, title

LONGEST = 60_000
"""Characters. GitHub documents 65,536 and takes 262,144 bytes: 60,000 are below both."""

Action = Literal["none", "create", "update", "flip"]


def render(results: Results, context: Context) -> str:
    """The whole comment."""
    head = (open_tag(context.id), state_tag(state(results)))
    return fitting(results, context, head, LONGEST, len)


def render_flip(results: Results, context: Context) -> str:
    """The short comment that a flip from passed to failed is told by."""
    found = findings(results)
    lines = (
        f"<!-- kdpipe-flip:{context.id} -->",
        f"### {title(results, context, found)}",
        "",
        sentence(results, context, found),
        "",
        "The comment with the table above has been updated.",
        "",
    )
    return "\n".join(lines)


def render_action(results: Results, context: Context) -> str:
    """What to do with the comment, in one word; see `action`."""
    return action(context.previous, state(results)) + "\n"


def action(before: State | None, now: State) -> Action:
    """What to do with the comment of a pull request.

    `create` it when there is something to say, `update` the one that is there, `flip`: update it
    and post the short one, `none`: there is none, and nothing to say.
    """
    if before is None:
        return "none" if now == "passed" else "create"
    return "flip" if before == "passed" and now != "passed" else "update"
