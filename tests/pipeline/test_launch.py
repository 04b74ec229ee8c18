"""A whole run of toy stages: what is asked for, what it leaves behind, and how it is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.launch import Launch, Selection, default_run_dir
from kdpipe.pipeline.rejudge import rejudge
from kdpipe.targets.errors import TargetUnavailable, UsageError
from kdpipe.targets.fingerprint import machine

ACCURATE = {"metric": "accuracy", "max-degradation": 0.05}
QUICK = {"metric": "latency_p50_ms", "max": 2.0}
COMPILED = ["compile[toy-fp32]", "compile[toy-int8]"]
MEASURED = ["benchmark[toy-fp32]", "benchmark[toy-int8]"]


def targets(project: Any, **int8: Any) -> tuple[Any, ...]:
    """A target that is there, and one with these settings."""
    return project.toy(precision="fp32"), project.toy(precision="int8", **int8)


def optional(project: Any) -> tuple[Any, ...]:
    """A target that is there, and one that is missing and may be."""
    return targets(project, gone=True, required=False)


def test_passing(project: Any) -> None:
    """A run that keeps all rules leaves results, artifacts, evidence, records and its config."""
    code, line, results = project.run(rules=(ACCURATE, QUICK))

    assert (code, line) == (0, "PASSED | 6 of 6 rules passed")
    assert [row["id"] for row in results["artifacts"]] == ["toy-fp32", "toy-int8"]
    assert results["run"]["ran"][0] == "words"
    assert project.run_dir.read_results()["verdict"] == "PASSED"
    assert project.run_dir.changed() == []
    assert {row["machine"]["cpu"] for row in results["artifacts"]} == {"toy"}
    assert machine().items() <= results["run"]["machine"].items()
    assert {p.name for p in project.run_dir.folder.iterdir()} == {
        "results.json", "journal.jsonl", "plan.json", "config.yaml", "artifacts", "evidence",
        "lock", "ci",
    }  # fmt: skip
    assert project.events()[-1]["line"] == line


def test_second_run(project: Any) -> None:
    """The same run again runs nothing and concludes the same."""
    first = project.run(rules=(ACCURATE,))
    second = project.run(rules=(ACCURATE,))

    assert second[:2] == first[:2]
    assert second[2]["run"]["ran"] == []
    assert {p.status for p in project.launch().plan()} == {"stored"}


@pytest.mark.parametrize(
    ("changed", "code", "line"),
    [
        ({"right": 150}, 3, "FAILED | toy-fp32: accuracy drop"),
        ({"right": 190}, 5, "FAILED | not enough evidence: toy-fp32: accuracy drop"),
        ({"words": "stage"}, 1, "FAILED | words: no words"),
        ({"words": "data"}, 2, "FAILED | words: bad words"),
        ({"refused": True}, 1, "FAILED | compile[toy-int8]: the runtime refuses it"),
    ],
)
def test_exit_codes(project: Any, changed: dict[str, Any], code: int, line: str) -> None:
    """Each way to fail has its code, in the conclusion, in results.json and in the journal."""
    found, last, results = project.run(**changed, rules=(ACCURATE,))

    assert found == code
    assert last.startswith(line)
    assert (results["exit_code"], results["verdict"]) == (code, "FAILED")
    assert project.events()[-1]["exit_code"] == code


def test_failing_target_does_not_hide_the_other(project: Any) -> None:
    """What could be measured is in the results of a run in which one target failed."""
    _, _, results = project.run(refused=True, rules=(ACCURATE,))

    assert [row["id"] for row in results["artifacts"]] == ["toy-fp32"]
    assert [v["verdict"] for v in results["gate"]["rules"]] == ["PASS"]
    assert results["failed"] == [
        {"step": "compile[toy-int8]", "error": "the runtime refuses it", "exit_code": 1}
    ]


def test_broken_chain_has_one_cause(project: Any) -> None:
    """Where nothing was measured because a stage failed, no rule is reported as well."""
    _, _, results = project.run(words="stage", rules=(ACCURATE,))

    assert results["gate"]["rules"] == []
    assert [row["step"] for row in results["failed"]] == ["words"]


def test_wrong_data_is_found_before_anything_runs(project: Any) -> None:
    """What a stage's check finds stops the run before it begins."""
    assert project.error(words="check").what == "the words are not there"


def test_required_target(project: Any) -> None:
    """A required target that is missing stops the run before it begins, with exit code 4."""
    error = project.error(targets=targets(project, gone=True))

    assert isinstance(error, TargetUnavailable)
    assert error.exit_code == 4
    assert error.what == "target toy-int8 is required and cannot run here: the toy is broken"
    assert (error.found, error.fix) == (
        "targets that can: toy-fp32",
        "buy a new one, or set required: false",
    )


def test_required_target_that_no_step_needs(project: Any) -> None:
    """A run that ends before the targets does not need them."""
    code, line, _ = project.run(
        targets=targets(project, gone=True)[1:], selection=Selection(stop="words")
    )

    assert (code, line) == (0, "STOPPED | after words, as asked: nothing was judged")


def test_skipped_target(project: Any) -> None:
    """A target that may be missing is skipped with its reason, and the others decide."""
    code, line, results = project.run(rules=(ACCURATE,), targets=optional(project))

    assert (code, line) == (0, "PASSED | 1 of 1 rules passed, 1 target skipped")
    assert results["skipped"] == [
        {
            "id": "toy-int8",
            "target": "toy",
            "reason": "the toy is broken",
            "fix": "buy a new one",
        }
    ]


def test_rule_about_a_skipped_target(project: Any) -> None:
    """A rule that names only what was skipped is listed and not judged; `gate` says the same."""
    rule = {**QUICK, "target": "toy-int8"}
    code, line, results = project.run(rules=(ACCURATE, rule), targets=optional(project))

    assert (code, line) == (0, "PASSED | 1 of 1 rules passed, 1 target skipped")
    (skipped,) = results["gate"]["skipped"]
    assert (skipped["artifact"], skipped["reason"]) == ("toy-int8", "the toy is broken")
    assert skipped["rule"]["target"] == "toy-int8"
    assert len(results["gate"]["policy"]) == 2

    conclusion, again = rejudge(project.run_dir.folder)
    assert conclusion.line == line
    assert again["gate"] == results["gate"]


def test_rule_about_a_target_of_which_a_part_was_skipped(project: Any) -> None:
    """A rule for the target's name is judged on the artifacts that are there."""
    _, line, results = project.run(rules=({**QUICK, "target": "toy"},), targets=optional(project))

    assert line == "PASSED | 1 of 1 rules passed, 1 target skipped"
    assert results["gate"]["skipped"] == []


def test_nothing_passes_by_being_absent(project: Any) -> None:
    """Where every rule is about skipped targets, the run has not enough evidence."""
    code, line, _ = project.run(rules=({**QUICK, "target": "toy-int8"},), targets=optional(project))

    assert code == 5
    assert "none of 1 rules could be judged, 1 target skipped" in line


def test_rule_without_any_artifact(project: Any) -> None:
    """A rule for all artifacts fails where all targets are skipped."""
    missing = optional(project)[1:]
    code, line, _ = project.run(rules=(QUICK,), targets=missing)

    assert code == 3
    assert "there is no artifact" in line


def test_interrupted_run_leaves_no_verdict(project: Any) -> None:
    """After Ctrl-C there is no verdict of an earlier run that could be taken for this one's."""
    project.run(rules=(ACCURATE,))

    with pytest.raises(KeyboardInterrupt):
        project.run(words="interrupt", rules=(ACCURATE,))

    assert project.events()[-1]["event"] == "interrupted"
    with pytest.raises(UsageError, match="holds no results"):
        rejudge(project.run_dir.folder)


def test_rejudge(project: Any) -> None:
    """The stored samples give the same verdicts again, and so does a broken run its error."""
    _, line, results = project.run(right=150, rules=(ACCURATE, QUICK))
    conclusion, again = rejudge(project.run_dir.folder)

    assert (conclusion.line, again["gate"]) == (line, results["gate"])
    assert project.run_dir.read_results()["gate"] == results["gate"]

    _, line, _ = project.run(words="data", rules=(ACCURATE,))
    conclusion, _ = rejudge(project.run_dir.folder)
    assert (conclusion.line, conclusion.exit_code) == (line, 2)


def test_rejudge_another_file(project: Any) -> None:
    """An artifact that is no longer what was measured fails, whatever the samples say."""
    _, _, results = project.run(rules=(ACCURATE,))
    (project.run_dir.folder / results["artifacts"][0]["path"]).write_text("other")

    conclusion, _ = rejudge(project.run_dir.folder)

    assert conclusion.exit_code == 3
    assert conclusion.reason == "toy-fp32: the file is not the one that was measured"
    assert project.run_dir.read_results()["verdict"] == "FAILED"


def test_rejudge_other_samples(project: Any) -> None:
    """Samples that were edited to pass fail, whatever they say."""
    project.run(right=150, rules=(ACCURATE,))
    (samples,) = [e for e in project.run_dir.evidence() if e.artifact == "toy-fp32"]
    replace(samples, score=samples.teacher_score).save(project.run_dir.folder / "evidence/toy-fp32")

    conclusion, _ = rejudge(project.run_dir.folder)

    assert conclusion.exit_code == 3
    assert conclusion.reason == "toy-fp32: the samples are not those that were measured"


@pytest.mark.parametrize(
    "rule", [{"metric": "beauty", "min": 1}, {"metric": "agreement", "least": 1}, "agreement", None]
)
def test_rejudge_by_a_wrong_rule(project: Any, rule: Any) -> None:
    """A rule that was edited into something else is a usage error that shows it."""
    _, _, results = project.run(rules=(ACCURATE,))
    results["gate"]["policy"].append(rule)
    project.run_dir.write_results(results)

    with pytest.raises(UsageError, match=r"gate\.policy\[1\] in .* is no rule") as caught:
        rejudge(project.run_dir.folder)

    assert caught.value.found.startswith(str(rule))


@pytest.mark.parametrize("code", [1, 2, 4])
def test_rejudge_keeps_the_exit_code(project: Any, code: int) -> None:
    """What a stage failed with is what `gate` exits with."""
    _, line, results = project.run(words="stage", rules=(ACCURATE,))
    results["failed"][0]["exit_code"] = code
    project.run_dir.write_results(results)

    conclusion, _ = rejudge(project.run_dir.folder)

    assert (conclusion.line, conclusion.exit_code) == (line, code)


def test_rejudge_leaves_other_folders_alone(tmp_path: Path) -> None:
    """`gate` on a folder without a run makes no file in it, and no folder."""
    with pytest.raises(UsageError, match="holds no results"):
        rejudge(tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_folder_in_use(project: Any) -> None:
    """A run does not start in a folder that another one is using; neither does `gate`."""
    project.run(rules=(ACCURATE,))
    events = len(project.events())

    with project.run_dir.lock():
        for use in (project.run, lambda: rejudge(project.run_dir.folder)):
            with pytest.raises(UsageError, match="another run is using"):
                use()

    assert len(project.events()) == events
    assert project.run_dir.read_results()["verdict"] == "PASSED"


def test_folder_of_another_config(project: Any, tmp_path: Path) -> None:
    """A config of the same name in another folder does not overwrite the results of the first."""
    first, second = tmp_path / "a/kdpipe.yaml", tmp_path / "b/kdpipe.yaml"
    for config in (first, second):
        config.parent.mkdir()
        config.touch()
    _, results = at(project.launch(rules=(ACCURATE,)), path=first).run(())

    with pytest.raises(UsageError, match="belongs to another config"):
        at(project.launch(), path=second).run(())

    assert results["run"]["config"] == str(first)
    assert project.run_dir.read_results()["run"] == results["run"]
    at(project.launch(), path=first).run(())


def test_config_is_recorded_as_an_absolute_path(project: Any) -> None:
    """The results and the journal name the config so that it is found from any folder."""
    _, _, results = project.run()

    assert results["run"]["config"] == str(Path("kdpipe.yaml").absolute())
    assert project.events()[0]["config"] == results["run"]["config"]


def test_assignments_are_recorded(project: Any) -> None:
    """`--set` stands in the results, in the journal and above the config, as it is typed."""
    given = ("distill.epochs=3", "gate=[{metric: agreement,\n min: 1}]")
    _, results = at(project.launch(), assignments=given).run(())

    assert results["run"]["assignments"] == project.events()[0]["assignments"] == list(given)
    assert (project.run_dir.folder / "config.yaml").read_text() == (
        "# with --set distill.epochs=3 --set 'gate=[{metric: agreement,\n#  min: 1}]'\n# ()"
    )


def at(launch: Launch, **changes: Any) -> Launch:
    """The launch with another config."""
    return replace(launch, config=replace(launch.config, **changes))


def test_to(project: Any) -> None:
    """--to ends after a stage and judges nothing; the next run does the rest."""
    assert project.ran(selection=Selection(stop="compile")) == ["words", *COMPILED]
    assert not project.run_dir.results.exists()
    assert project.ran() == MEASURED


def test_to_that_fails(project: Any) -> None:
    """A partial run in which a stage fails has failed."""
    code, line, _ = project.run(words="stage", selection=Selection(stop="compile"))

    assert (code, line) == (1, "FAILED | words: no words")


def test_from(project: Any) -> None:
    """--from does a stage and all after it again, and reuses what comes before."""
    project.run()

    assert project.ran(selection=Selection(start="compile")) == COMPILED + MEASURED
    assert project.ran() == []


def test_from_to(project: Any) -> None:
    """Together they do a part of the chain again."""
    project.run()

    assert project.ran(selection=Selection(start="compile", stop="compile")) == COMPILED


def test_only(project: Any) -> None:
    """--only does one stage again and no other."""
    project.run()

    assert project.ran(selection=Selection(only="compile")) == COMPILED


def test_only_needs_what_it_reads(project: Any) -> None:
    """--only refuses to start where something before it is not stored."""
    project.run(selection=Selection(stop="words"))
    events = len(project.events())

    with pytest.raises(UsageError) as caught:
        project.launch(selection=Selection(only="benchmark")).run(())

    assert caught.value.what == "--only benchmark: compile[toy-fp32] is not stored"
    assert caught.value.fix == "kdpipe run kdpipe.yaml --to benchmark"
    assert len(project.events()) == events


@pytest.mark.parametrize(
    ("selection", "what"),
    [
        (Selection(start="word"), "there is no stage 'word' in this chain"),
        (Selection(stop="nothing"), "there is no stage 'nothing' in this chain"),
        (Selection(only="toy"), "there is no stage 'toy' in this chain"),
        (Selection(start="benchmark", stop="words"), "--from benchmark comes after --to words"),
    ],
)
def test_wrong_selection(project: Any, selection: Selection, what: str) -> None:
    """A part of the chain that does not exist is refused, with the stages there are."""
    error = project.error(selection=selection)

    assert (error.what, error.exit_code) == (what, 2)
    assert "compile" in error.found


def test_partial_run_keeps_the_last_results(project: Any) -> None:
    """--to leaves the results of the last whole run, and the config that they belong to."""
    project.run(rules=(ACCURATE,))
    config = (project.run_dir.folder / "config.yaml").read_text()

    project.run(rules=(QUICK,), selection=Selection(stop="words"))

    assert project.run_dir.read_results()["verdict"] == "PASSED"
    assert (project.run_dir.folder / "config.yaml").read_text() == config


def test_default_run_dir() -> None:
    """Without --run-dir, results go below the store, under the config's name."""
    assert default_run_dir(Path("a/b.yaml"), Path("s")) == Path("s/runs/b")
