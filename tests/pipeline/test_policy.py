"""A policy in a file of its own: read with places, checked against the run, judged without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kdpipe.pipeline.policy import Policy
from kdpipe.pipeline.rejudge import rejudge
from kdpipe.stages.gate.metrics import METRICS
from kdpipe.stages.gate.rules import STANDING_RULES
from kdpipe.targets.errors import ConfigError, UsageError

ACCURATE = {"metric": "accuracy", "max-degradation": 0.1}
STRICT = "gate:\n  - {metric: accuracy, max-degradation: 0.001}\n"


def write(folder: Path, text: str) -> Path:
    """A policy file."""
    path = folder / "gate.yaml"
    path.write_text(dedent(text))
    return path


def refused(folder: Path, text: str) -> str:
    """What is said about a file that is no policy."""
    with pytest.raises(ConfigError) as caught:
        Policy.read(write(folder, text))
    return str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize(
    "text",
    [
        "gate: [{metric: agreement, min: 0.9}]",
        "- {metric: agreement, min: 0.9}",
        "targets: [onnxruntime]\ndata: {source: digits}\ngate:\n- {metric: agreement, min: 0.9}",
    ],
    ids=["under gate", "a bare list", "a config"],
)
def test_three_ways_to_write_a_policy(text: str, tmp_path: Path) -> None:
    """A list under `gate:`, the list alone, or a config, of which nothing else is read."""
    (rule,) = Policy.read(write(tmp_path, text)).rules

    assert (rule.metric, rule.limits) == ("agreement", {"min": 0.9})


def test_every_problem_has_its_place(tmp_path: Path) -> None:
    """All problems at once, each with line and column, in both forms of the file."""
    rules = "- {metric: agrement, min: 0.9}\n- {metric: speedup, min: fast}\n"
    bare = refused(tmp_path, rules)
    named = refused(tmp_path, "gate:\n" + rules)

    assert "gate[0].metric: " in bare
    assert "did you mean 'agreement'?" in bare
    assert "--> /gate.yaml:1:12" in bare
    assert "--> /gate.yaml:2:26" in bare
    assert "2 errors in /gate.yaml; nothing was run." in bare
    assert "--> /gate.yaml:2:12" in named
    assert "--> /gate.yaml:3:26" in named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "rules: unknown key"),
        ("gate: []", "a policy without rules would pass anything"),
        ("[]", "a policy without rules would pass anything"),
        ("", "the file is empty"),
        ("gate: [{metric: agreement, min: 0.9}", "gate.yaml:1:"),
        ("metric: agreement", "metric: unknown key"),
    ],
)
def test_what_is_no_policy(text: str, said: str, tmp_path: Path) -> None:
    """Unknown keys, empty lists and broken YAML are told as they are of a config."""
    assert said in refused(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The files beside it are named."""
    write(tmp_path, STRICT)
    with pytest.raises(UsageError, match=r"gates\.yaml") as caught:
        Policy.read(tmp_path / "gates.yaml")

    assert "gate.yaml" in caught.value.found


def test_another_policy_judges_the_same_samples(project: Any, tmp_path: Path) -> None:
    """The verdict is that of the file's rules; nothing runs, and the results say where from."""
    project.run(rules=(ACCURATE,), right=190)
    events = len(project.events())
    policy = Policy.read(write(tmp_path, "- {metric: accuracy, max-degradation: 0.2}"))
    conclusion, results = rejudge(project.run_dir.folder, policy)

    assert conclusion.exit_code == 0
    assert len(project.events()) == events
    assert results["gate"]["source"] == str((tmp_path / "gate.yaml").absolute())
    assert [rule["max-degradation"] for rule in results["gate"]["policy"]] == [0.2]
    assert project.run_dir.read_results()["gate"] == results["gate"]


def test_the_run_s_own_policy_comes_back(project: Any, tmp_path: Path) -> None:
    """However often it was judged by others, without a file the run's own rules count."""
    first = project.run(rules=(ACCURATE,))[2]
    strict = Policy.read(write(tmp_path, STRICT))
    for _ in range(2):
        assert rejudge(project.run_dir.folder, strict)[0].exit_code == 5
    conclusion, again = rejudge(project.run_dir.folder)

    assert conclusion.exit_code == 0
    assert again["gate"] == first["gate"]
    assert again["gate"]["source"] == "config"


def test_a_policy_about_another_run_is_refused(project: Any, tmp_path: Path) -> None:
    """Artifacts and metrics that this run does not have are named with their place."""
    project.run(rules=(ACCURATE,))
    before = project.run_dir.read_results()
    rules = "- {metric: agreement, min: 0.5, target: toi-int8}\n- {metric: miou, min: 0.5}\n"
    policy = Policy.read(write(tmp_path, rules))

    with pytest.raises(ConfigError) as caught:
        rejudge(project.run_dir.folder, policy)

    assert "gate[0].target: 'toi-int8' is no artifact or target of this run" in str(caught.value)
    assert "did you mean `toy-int8`?" in str(caught.value)
    assert "gate[1].metric: 'miou' is not the metric of this run" in str(caught.value)
    assert project.run_dir.read_results() == before


def test_standing_rules_hold_beside_the_user_s_own(project: Any) -> None:
    """The int8 artifact has to be faster than fp32 and in int8, and results say that it is so."""
    _, line, results = project.run(rules=(ACCURATE,))
    standing = [v for v in results["gate"]["rules"] if v["standing"]]

    assert line == "PASSED | 4 of 4 rules passed"
    assert [v["artifact"] for v in standing] == ["toy-int8"] * len(STANDING_RULES)
    assert [rule["metric"] for rule in results["gate"]["policy"]] == ["accuracy"]


def test_no_rule_is_no_standing_rule(project: Any) -> None:
    """`gate: null` asks for nothing at all."""
    _, line, results = project.run(rules=())

    assert line == "PASSED | no rule was asked for"
    assert results["gate"]["rules"] == []
    assert results["gate"]["power"] is None


def test_results_tell_the_power_of_the_policy(project: Any) -> None:
    """How often a good model would have passed, for all rules together."""
    _, _, results = project.run(rules=(ACCURATE,))
    power = results["gate"]["power"]

    assert 0 <= power["joint"] <= 1
    assert power["rules"] == len(results["gate"]["rules"])
    assert all(v["power"] >= power["joint"] for v in results["gate"]["rules"])
    json.dumps(power, allow_nan=False)


def test_the_documented_rules_can_be_judged(tmp_path: Path) -> None:
    """The YAML of docs/gate.md is a policy, and its table has every metric with its limits."""
    text = (Path(__file__).parents[2] / "docs/gate.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| `")]

    assert len(Policy.read(write(tmp_path, block)).rules) == 6
    for metric, about in METRICS.items():
        (row,) = [row for row in rows if f"`{metric}`" in row[1]]
        assert set(re.findall("`([^`]*)`", row[2])) == set(about.limits), metric
        references = {name for those in about.limits.values() for name in those}
        assert set(re.findall(r"\w+", row[3])) == references, metric
