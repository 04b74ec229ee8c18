"""The line of a rule: found where the file says the rule, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.pipeline.ci.source import Source
from kdpipe.stages import Rule

CONFIG = """\
data: {source: digits}
gate:
  - {metric: accuracy, max-degradation: 0.01}
  - {metric: accuracy, max-degradation: 0.01, target: openvino}
  - metric: latency_p95_ms
    max: 2.0
  - &both {metric: accuracy, min: 0.9, percent-max-degradation: 2}
  - *both
"""


def source(folder: Path, text: str, run_of: Any, name: str = "kdpipe.yaml") -> Source:
    """The source of a run of a config with this text, in a repository `folder`."""
    path = folder / "configs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    results = run_of()
    results["run"]["config"] = str(path)
    return Source.of(results, folder)


def judged(**rule: Any) -> dict[str, object]:
    """A rule as results say it: with its defaults."""
    names = {name.replace("_", "-") if name.startswith(("max_", "percent")) else name: value
             for name, value in rule.items()}  # fmt: skip
    return Rule.model_validate(names).as_dict()


def test_rules_are_found(repository: Path, run_of: Any) -> None:
    """Each limit at the rule that says it, also in a rule of several lines or limits."""
    found = source(repository, CONFIG, run_of)

    assert (found.name, found.path) == ("kdpipe.yaml", "configs/kdpipe.yaml")
    assert found.line(judged(metric="accuracy", max_degradation=0.01)) == 3
    assert found.line(judged(metric="accuracy", max_degradation=0.01, target="openvino")) == 4
    assert found.line(judged(metric="latency_p95_ms", max=2.0)) == 5
    assert found.line(judged(metric="accuracy", min=0.9)) == 7
    assert found.line(judged(metric="accuracy", percent_max_degradation=2.0)) == 7


def test_a_policy_is_where_its_rules_are(repository: Path, run_of: Any) -> None:
    """A run that was judged again by another file points there, be it a list or a mapping."""
    rule = "- {metric: agreement, min: 0.9}\n"
    for name, text, line in (("bare", f"# mine\n{rule}", 2), ("under", f"gate:\n\n  {rule}", 3)):
        (repository / f"{name}.yaml").write_text(text)
        results = run_of(gate={"source": str(repository / f"{name}.yaml")})
        found = Source.of(results, repository)

        assert found.path == f"{name}.yaml"
        assert found.line(judged(metric="agreement", min=0.9)) == line


def test_what_the_file_does_not_say_has_no_line(repository: Path, run_of: Any) -> None:
    """Another limit, value, metric or target, as after an edit or with `--set`."""
    found = source(repository, CONFIG, run_of)

    assert found.line(judged(metric="accuracy", max_degradation=0.02)) is None
    assert found.line(judged(metric="accuracy", min=0.01)) is None
    assert found.line(judged(metric="agreement", min=0.9)) is None
    assert found.line({}) is None


def test_a_file_that_cannot_be_read_has_no_lines(repository: Path, run_of: Any) -> None:
    """No `gate:`, no rules, broken YAML, no file: a name and a path all the same."""
    for text in ("data: {source: digits}", "gate: null", "gate: [1, x]", "gate: [", ""):
        found = source(repository, text, run_of)
        assert found == Source("kdpipe.yaml", "configs/kdpipe.yaml")
    gone = run_of()
    gone["run"]["config"] = str(repository / "gone.yaml")

    assert Source.of(gone, repository) == Source("gone.yaml", "gone.yaml")
    assert Source.of(gone, repository / "elsewhere").path is None
