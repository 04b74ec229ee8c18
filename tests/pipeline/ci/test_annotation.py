"""Annotations: ten at most, worst first, beside the line of the rule, readable by the runner."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

from kdpipe.pipeline.ci import annotation
from kdpipe.pipeline.ci.command import announce
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.source import Source

COMMAND = re.compile(r"^::(?P<kind>\w+) (?P<properties>[^:]*)::(?P<message>.*)$")


def read(text: str) -> list[dict[str, str]]:
    """What a runner makes of it, by its documented unescaping."""

    def plain(value: str) -> str:
        codes = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}
        return re.sub("%(0D|0A|3A|2C|25)", lambda m: codes[m[0]], value)

    found = []
    for line in text.splitlines():
        match = COMMAND.match(line)
        assert match, line
        pairs = dict(pair.split("=", 1) for pair in match["properties"].split(","))
        values = {name: plain(value) for name, value in pairs.items()}
        found.append({"kind": match["kind"], "message": plain(match["message"]), **values})
    return found


def test_a_failure_stands_at_its_rule(judged: Any, run_of: Any, context: Context) -> None:
    """The file and the line of the rule in the config, a title, and the whole sentence."""
    verdict = judged("a:b,c", "FAIL", reason="100% wrong: a, b\nand c")

    assert read(annotation.render(run_of(verdict), context)) == [
        {
            "kind": "error",
            "file": "ci/kdpipe.yaml",
            "line": "14",
            "title": "kdpipe a:b,c accuracy max-degradation",
            "message": "100% wrong: a, b and c",
        }
    ]


def test_an_unknown_place_is_left_out(judged: Any, run_of: Any, context: Context) -> None:
    """A rule that stands nowhere in the file has no line; a file outside the repository no path."""
    elsewhere = judged("a", "FAIL", rule={"metric": "agreement"})
    outside = replace(context, source=Source("kdpipe.yaml"))

    (first,) = read(annotation.render(run_of(elsewhere), context))
    (second,) = read(annotation.render(run_of(judged("a", "FAIL")), outside))

    assert (first["file"], "line" in first) == ("ci/kdpipe.yaml", False)
    assert "file" not in second
    assert "line" not in second


def test_advice_warns(judged: Any, run_of: Any, context: Context) -> None:
    """Undecided is an error, as the run fails for it; an advisory rule is a warning."""
    verdicts = [judged("a", "UNDECIDED"), judged("b", "FAIL", required=False), judged("c")]

    found = read(annotation.render(run_of(*verdicts), context))

    assert [(row["kind"], row["title"].split()[1]) for row in found] == [
        ("error", "a"),
        ("warning", "b"),
    ]


def test_ten_at_most(judged: Any, run_of: Any, context: Context) -> None:
    """30 failures: the nine worst, and how many more; ten failures: all of them."""

    def found(count: int) -> list[dict[str, str]]:
        verdicts = [judged(f"a{i}", "FAIL", measured=0.01 + i * 0.001) for i in range(count)]
        return read(annotation.render(run_of(*verdicts), context))

    thirty = found(30)
    assert [row["title"].split()[1] for row in thirty[:9]] == [f"a{i}" for i in range(29, 20, -1)]
    assert thirty[9]["message"] == "and 21 more: see the summary of this job"
    assert len(thirty) == 10
    assert len(found(10)) == 10
    assert found(0) == []


def test_only_a_runner_hears_them(judged: Any, run_of: Any) -> None:
    """They are printed in GitHub Actions, and nowhere else."""
    results = run_of(judged("a", "FAIL"))
    inside, outside = io.StringIO(), io.StringIO()

    announce(results, {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/repo"}, inside)
    announce(results, {"CI": "true"}, outside)

    assert inside.getvalue().startswith("::error file=ci/kdpipe.yaml,title=kdpipe a ")
    assert outside.getvalue() == ""
