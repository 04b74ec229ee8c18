"""`kdpipe ci` on real finished runs: every format, the files of the run's folder, wrong input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kdpipe.pipeline.ci import metrics
from kdpipe.pipeline.ci.command import ci, previous_state, publish
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.formats import FORMATS
from kdpipe.pipeline.rejudge import rejudge
from kdpipe.targets.errors import UsageError

RULES = ({"metric": "accuracy", "max-degradation": 0.1}, {"metric": "size_bytes", "max": 1000.0})
FILES = {"junit.xml", "summary.md", "comment.md", "annotations.txt", "codequality.json"}
FILES |= {"metrics.txt", "flip.md", "action.txt"}


def test_all_files_of_a_run(project: Any) -> None:
    """Without a format, all files are written below the run's folder, and named."""
    project.run(rules=RULES, right=100)

    printed = ci(project.run_dir.folder, {}).split()

    assert {Path(path).name for path in printed} == FILES
    folder = project.run_dir.folder / "ci"
    assert {path.name for path in folder.iterdir()} == FILES
    root = ET.parse(folder / "junit.xml").getroot()
    rules = project.run_dir.read_results()["gate"]["rules"]
    assert int(root.attrib["tests"]) == len(rules)
    assert root.attrib["failures"] == "2"
    assert "**FAIL** | toy-fp32" in (folder / "summary.md").read_text()
    assert len(json.loads((folder / "codequality.json").read_text())) == 2
    assert (folder / "metrics.txt").read_text().startswith("# TYPE kdpipe_passed gauge")


def test_every_format_of_every_kind_of_run(project: Any) -> None:
    """Passed, failed, broken at once, broken half-way, and a target that is missing."""
    missing = (project.toy(precision="fp32"), project.toy(gone=True, required=False))
    for settings in (
        {"rules": RULES},
        {"rules": RULES, "right": 100},
        {"rules": RULES, "words": "stage"},
        {"rules": RULES, "refused": True},
        {"rules": RULES, "targets": missing},
        {},
    ):
        project.run(**settings)
        for known in FORMATS:
            text = ci(project.run_dir.folder, {}, format=known.name)
            assert text == ci(project.run_dir.folder, {}, format=known.name), "always the same"
            if known.name == "junit":
                ET.fromstring(text)
            if known.name == "codequality":
                json.loads(text)


def test_a_changed_file_is_not_a_pass(project: Any) -> None:
    """What `kdpipe gate` finds beyond the rules is an error in every format."""
    project.run(rules=RULES)
    project.run_dir.folder.joinpath("artifacts/toy-fp32/model").write_text("another")
    rejudge(project.run_dir.folder)

    text = {f.name: ci(project.run_dir.folder, {}, format=f.name) for f in FORMATS}

    assert text["action"] == "create\n"
    assert "### kdpipe: FAILED" in text["markdown"]
    assert "not the one that was measured" in text["markdown"]
    assert 'errors="1"' in text["junit"]
    assert "not the one that was measured" in text["annotations"]
    assert "kdpipe_passed 0" in text["metrics"]


def test_out_previous_and_id(project: Any, tmp_path: Path) -> None:
    """A comment that turns from passed to failed: written where asked, with its flip."""
    project.run(rules=RULES)
    folder, out = project.run_dir.folder, tmp_path / "deep/comment.md"
    assert ci(folder, {}, format="comment", out=out, id="edge", commit="abc") == ""
    assert out.read_text().startswith("<!-- kdpipe:edge -->\n<!-- kdpipe-verdict:passed -->\n")
    old = tmp_path / "old.json"
    old.write_text(project.run_dir.results.read_text())
    project.run(rules=RULES, right=100)

    for previous in (out, old):
        assert ci(folder, {}, format="action", previous=previous) == "flip\n"
        assert "(was: passed)" in ci(folder, {}, format="comment", previous=previous)
        assert "(was: passed)" in ci(folder, {}, format="flip", previous=previous)
    assert ci(folder, {}, format="comment").startswith("<!-- kdpipe:kdpipe -->\n")


def test_places_are_those_of_the_job(project: Any, tmp_path: Path) -> None:
    """Paths are relative to the checkout that the platform names."""
    project.run(rules=RULES, right=100)
    results = project.run_dir.read_results()
    results["run"]["config"] = str(tmp_path / "configs/kdpipe.yaml")

    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        context = Context.of(results, {name: str(tmp_path)})
        assert context.source.path == "configs/kdpipe.yaml"
    publish(project.run_dir, results, replace(context, id="x"))
    assert "rules in configs/kdpipe.yaml" in (project.run_dir.folder / "ci/summary.md").read_text()


def test_previous_may_be_absent(tmp_path: Path) -> None:
    """An empty file is no run before."""
    empty = tmp_path / "empty.md"
    empty.write_text("\n")

    assert previous_state(empty) is None


@pytest.mark.parametrize(
    "text", ["hello", "{", "{}", "[1]", '{"schema": "kdpipe.results/1"}', '{"schema": "x/1"}']
)
def test_a_wrong_previous_is_refused(text: str, tmp_path: Path) -> None:
    """Neither guessed nor taken for nothing: a flip would be lost."""
    (tmp_path / "old").write_text(text)

    with pytest.raises(UsageError, match="neither a comment of kdpipe"):
        previous_state(tmp_path / "old")
    with pytest.raises(UsageError, match="cannot be read"):
        previous_state(tmp_path / "gone")


def test_wrong_words_are_refused(project: Any, tmp_path: Path) -> None:
    """A format that does not exist, --out without one, and a folder without a run."""
    with pytest.raises(UsageError, match="holds no results"):
        ci(tmp_path, {})
    project.run(rules=RULES)
    with pytest.raises(UsageError) as caught:
        ci(project.run_dir.folder, {}, format="xml")
    assert "junit, markdown, comment" in caught.value.found
    with pytest.raises(UsageError, match="--out needs a --format"):
        ci(project.run_dir.folder, {}, out=tmp_path / "x")


def test_out_that_cannot_be_written_is_refused(project: Any, tmp_path: Path) -> None:
    """A file where a folder should be is wrong use, and no broken step."""
    project.run(rules=RULES)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        ci(project.run_dir.folder, {}, format="junit", out=tmp_path / "file/junit.xml")


def test_metrics_of_a_leak_are_marked(leaked: Any, context: Context) -> None:
    """Each score has a label; sizes have none."""
    text = metrics.render(leaked, context)
    marked = {line.split("{")[0] for line in text.splitlines() if 'leaked="true"' in line}

    assert marked == {
        "kdpipe_network_score_ratio", "kdpipe_score_ratio", "kdpipe_drop_ratio",
        "kdpipe_agreement_ratio",
    }  # fmt: skip


def test_the_guide_lists_every_file() -> None:
    """docs/ci.md has one row for each format, by its file, and the state table of the comment."""
    guide = (Path(__file__).resolve().parents[3] / "docs/ci.md").read_text()

    assert re.findall(r"^\| `([\w.]+)` \| `(\w+)` \|", guide, re.MULTILINE) == [
        (known.file, known.name) for known in FORMATS
    ]
