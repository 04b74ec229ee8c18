"""The workflows for GitHub: their shell steps really run, in the order and way of a runner."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/ci"
WORKFLOWS = ("github.yml", "github-forks.yml")
BOT = {"login": "github-actions[bot]", "id": 7}


def workflow(name: str) -> dict[str, Any]:
    """The file; YAML 1.1 reads the key `on` as true."""
    found: dict[Any, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return {"on" if key is True else key: value for key, value in found.items()}


@dataclass
class Runner:
    """What a runner does with one job: conditions, environments, outputs, and bash for `run`."""

    forge: Any
    name: str
    values: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, list[str]] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    log: str = ""
    summary: str = ""

    def run(self) -> None:
        """Run the job; its steps that ran, with their exit codes, are in `ran`."""
        found = workflow(self.name)
        (job,) = found["jobs"].values()
        failed = not self.true(job.get("if", "always()"), False)
        assert not failed
        for number, step in enumerate(job["steps"]):
            if not self.true(step.get("if", "success()"), failed):
                continue
            name = step.get("name", step.get("uses", str(number)))
            code = self.shell(step, found["env"]) if "run" in step else self.action(step)
            self.ran[name] = code
            failed = failed or bool(code)

    def true(self, condition: str, failed: bool) -> bool:
        """A condition of a step, of the few functions and operators that the examples use."""
        calls = {"always()": "True", "success()": str(not failed)}
        for call, value in calls.items():
            condition = condition.replace(call, value)
        names = re.sub(r"\bgithub(\.\w+)+", lambda m: repr(self.values[m[0]]), condition)
        return bool(eval(names.replace("&&", " and ").replace("||", " or ")))

    def filled(self, text: str) -> str:
        """A value with its expressions."""

        def value(match: re.Match[str]) -> str:
            known = {**self.values, **self.outputs}
            return known.get(match[1], "") if match[1].startswith("steps.") else known[match[1]]

        return re.sub(r"\$\{\{ *(.*?) *\}\}", value, text)

    def shell(self, step: Mapping[str, Any], shared: Mapping[str, str]) -> int:
        """Run a step by `bash -e`, as a runner does where no shell is named."""
        assert "${{" not in step["run"], "an expression in a script is an injection"
        (script := self.forge.folder / "step.sh").write_text(step["run"])
        files = {f"GITHUB_{name}": self.forge.folder / name for name in ("OUTPUT", "STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        given = {k: self.filled(v) for k, v in {**shared, **step.get("env", {})}.items()}
        github = {"GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "me/model"}
        github["GITHUB_WORKSPACE"] = str(self.forge.repository)
        names = {name: str(path) for name, path in files.items()}
        done = subprocess.run(
            ["bash", "-e", str(script)],
            cwd=self.forge.repository,
            env=self.forge.environment({**github, **names, **given, **self.values.get("env", {})}),
            capture_output=True,
            text=True,
        )
        self.log += done.stdout + done.stderr
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            name, value = line.split("=", 1)
            self.outputs[f"steps.{step['id']}.outputs.{name}"] = value
        return done.returncode

    def action(self, step: Mapping[str, Any]) -> int:
        """Remember what an upload would find; other actions are not run here."""
        if "upload-artifact" in step["uses"]:
            paths = [self.forge.repository / line for line in step["with"]["path"].split()]
            found = [p for path in paths for p in (path, *path.rglob("*")) if p.is_file()]
            self.uploads[step["with"]["name"]] = [p.name for p in found]
        return 0


PULL_REQUEST: dict[str, Any] = {
    "github.event_name": "pull_request",
    "github.event.pull_request.head.repo.full_name": "me/model",
    "github.repository": "me/model",
    "github.token": "secret",
    "github.event.pull_request.number": "12",
    "github.event.pull_request.head.sha": "0123456789abcdef",
}


def push(forge: Any, right: int, **env: str) -> Runner:
    """One push to a pull request, and the job that follows it."""
    forge.right(right)
    shutil.rmtree(forge.repository / "kdpipe-run", ignore_errors=True)
    runner = Runner(forge, "github.yml", {**PULL_REQUEST, "env": env})
    runner.run()
    return runner


@dataclass(frozen=True)
class Story:
    """Four pushes: good, bad, good, undecided; the jobs, and the comments after each."""

    runners: list[Runner]
    bodies: list[list[str]]
    calls: list[list[str]]


OTHERS = [
    {"id": 1, "user": BOT, "body": "hello"},
    {"id": 2, "user": {"login": "eve"}, "body": "<!-- kdpipe:default -->\nmine"},
]


@pytest.fixture(scope="module")
def story(long_lived: Any) -> Story:
    """The jobs of four pushes to a pull request on which others have commented."""
    long_lived.change(comments=OTHERS)
    runners, bodies = [], []
    for right in (200, 150, 200, 192):
        runners.append(push(long_lived, right))
        bodies.append(long_lived.bodies()[2:])
    assert long_lived.bodies()[:2] == [other["body"] for other in OTHERS]
    return Story(runners, bodies, long_lived.state()["log"])


def test_the_job_ends_as_the_gate_says(story: Story) -> None:
    """Exit codes 0, 3 and 5 of kdpipe; whatever comes after changes nothing."""
    assert [runner.ran["Run and judge"] for runner in story.runners] == [0, 3, 0, 5]
    codes = [runner.outputs["steps.gate.outputs.exit_code"] for runner in story.runners]
    assert codes == ["0", "3", "0", "5"]
    assert {runner.ran["Comment"] for runner in story.runners} == {0}
    assert ["pip", "install", "kdpipe"] in story.calls


def test_the_comment_follows(story: Story) -> None:
    """Nothing to say; created; updated; updated and told again in a second, short one."""
    none, created, updated, flipped = story.bodies

    assert none == []
    assert len(created) == len(updated) == 1
    assert created[0].startswith("<!-- kdpipe:default -->\n<!-- kdpipe-verdict:failed -->\n### ")
    assert "commit 0123456789" in created[0]
    assert "### kdpipe: PASSED" in updated[0]
    assert "(was: failed)" in updated[0]
    assert len(flipped) == 2
    assert "(was: passed)" in flipped[0]
    assert flipped[1].startswith("<!-- kdpipe-flip:default -->\n### kdpipe: FAILED, not enough")


def test_everything_is_kept_when_the_gate_fails(story: Story) -> None:
    """Summary, reports, artifacts and evidence, annotations in the log, and the store."""
    good, bad, *_ = story.runners

    assert good.summary.startswith("### kdpipe: PASSED")
    assert bad.summary.startswith("### kdpipe: FAILED, 2 of")
    assert "| **FAIL** | toy-int8 | accuracy max-degradation | 0.2500 |" in bad.summary
    assert {"results.json", "junit.xml", "comment.md"} <= set(bad.uploads["kdpipe-ci"])
    assert {"journal.jsonl", "model"} <= set(bad.uploads["kdpipe-run"])
    assert "::error file=kdpipe.yaml,line=3,title=kdpipe toy-fp32 accuracy" in bad.log
    assert "::error" not in good.log
    assert bad.ran["Keep the store"] == 0


def test_warnings_that_change_no_verdict(forge: Any) -> None:
    """UNDECIDED=warn, and a token that may not write: two warnings, and the job succeeds."""
    forge.change(forbidden=True)

    runner = push(forge, 192, UNDECIDED="warn")

    assert set(runner.ran.values()) == {0}
    assert runner.outputs["steps.gate.outputs.exit_code"] == "5"
    assert "::warning title=kdpipe::not enough evidence" in runner.log
    assert "::warning title=kdpipe::no comment was written; has the job permissions" in runner.log
    assert forge.bodies() == []


def test_a_broken_config_still_says_so(forge: Any) -> None:
    """A run that ends before it judges has a summary, and comments nothing."""
    runner = push(forge, 200, CONFIG="gone.yaml")

    assert runner.ran["Run and judge"] != 0
    assert "FAILED, nothing was judged (exit code" in runner.summary
    assert runner.ran["Comment"] == 0
    assert forge.bodies() == []


def test_forks_do_not_comment_themselves(forge: Any) -> None:
    """Their token can only read: the step is left to the other workflow; pushes have no comment."""
    (job,) = workflow("github.yml")["jobs"].values()
    (condition,) = [step["if"] for step in job["steps"] if step.get("name") == "Comment"]
    fork = {"github.event.pull_request.head.repo.full_name": "you/model"}
    cases = ({}, fork, {"github.event_name": "push"})
    runs = [Runner(forge, "github.yml", {**PULL_REQUEST, **case}) for case in cases]

    assert [runner.true(condition, failed=True) for runner in runs] == [True, False, False]


def fork_run(forge: Any, comment: str, sha: str = "abc") -> Runner:
    """The second workflow after a fork's run that left `comment`."""
    folder = forge.repository / "fork/ci"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comment.md").write_text(comment)
    run = "github.event.workflow_run"
    values: dict[str, Any] = {
        f"{run}.event": "pull_request",
        f"{run}.head_repository.full_name": "you/model",
        "github.repository": "me/model",
        "github.token": "secret",
        f"{run}.head_repository.owner.login": "you",
        f"{run}.head_branch": "fix/#1",
        f"{run}.head_sha": sha,
    }
    runner = Runner(forge, "github-forks.yml", values)
    runner.run()
    return runner


def test_comments_on_forks(forge: Any) -> None:
    """The text of the fork is posted on the pull request of this very commit, by the same table."""
    pull = {"number": 9, "head": {"label": "you:fix/#1", "sha": "abc"}}
    forge.change(pulls=[{**pull, "number": 8, "head": {**pull["head"], "sha": "old"}}, pull])

    def text(state: str, body: str = "hello") -> str:
        return f"<!-- kdpipe:other -->\n<!-- kdpipe-verdict:{state} -->\n{body}\n"

    assert fork_run(forge, text("passed")).ran["Comment"] == 0
    assert forge.bodies() == []
    fork_run(forge, text("failed", "ping @team"))
    assert forge.bodies() == [
        "<!-- kdpipe:default -->\n<!-- kdpipe-verdict:failed -->\nping @&#8203;team\n\ncommit abc\n"
    ]
    fork_run(forge, text("passed"))
    assert len(forge.bodies()) == 1
    fork_run(forge, text("undecided"))
    assert [body.splitlines()[0] for body in forge.bodies()] == [
        "<!-- kdpipe:default -->",
        "### kdpipe: undecided (was: passed). The comment with the table above has been updated.",
    ]
    posts = [call for call in forge.state()["log"] if call[0] == "gh" and "-F" in call]
    assert all("/issues/9/comments" in c[2] or "-X" in c for c in posts)


def test_what_forks_send_is_not_believed(forge: Any) -> None:
    """A text that is no comment of kdpipe, and a commit that no pull request has: nothing."""
    pull = {"number": 9, "head": {"label": "you:fix/#1", "sha": "abc"}}
    forge.change(pulls=[pull])

    evil = fork_run(forge, "<!-- kdpipe:default -->\n$(touch owned)\n`touch owned`")
    long = fork_run(
        forge, "<!-- x -->\n<!-- kdpipe-verdict:failed -->\n" + "x" * 300_000, sha="old"
    )

    assert evil.ran["Comment"] == 1
    assert long.ran["Comment"] == 0
    assert forge.bodies() == []
    assert not (forge.repository / "owned").exists()


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_filters_mean_the_same_to_jq(name: str, forge: Any) -> None:
    """The stand-in for `gh --jq` answers as jq does."""
    text = (EXAMPLES / name).read_text()
    filters = {re.search(r"mine='(.*)'", text)[1]: "comments"}  # type: ignore[index]
    filters |= dict.fromkeys(re.findall(r"--jq '(.*?)'", text), "pulls")
    comments = [
        {"id": 1, "user": BOT, "body": "hello"},
        {"id": 2, "user": {"login": "eve"}, "body": "<!-- kdpipe:default -->"},
        {"id": 3, "user": BOT, "body": "<!-- kdpipe:default -->\nx"},
        {"id": 4, "user": BOT, "body": "<!-- kdpipe:default2 -->\nx"},
    ]
    pulls = [{"number": n, "head": {"label": "you:b", "sha": s}} for n, s in ((1, "a"), (2, "b"))]
    forge.change(comments=comments, pulls=pulls)
    environment = forge.environment({"ID": "default", "SHA": "b"})
    expected = {"comments": "3\n", "pulls": "2\n"}
    for query, kind in filters.items():
        url = "repos/r/pulls" if kind == "pulls" else "repos/r/issues/1/comments"
        more = ["--method", "GET", "-f", "head=you:b"] if kind == "pulls" else []
        stub = subprocess.run(
            ["gh", "api", url, *more, "--jq", query],
            env=environment,
            capture_output=True,
            text=True,
        )
        data = json.dumps(comments if kind == "comments" else pulls)
        real = subprocess.run(
            ["jq", "-r", query], input=data, env=environment, capture_output=True, text=True
        )
        assert stub.stdout == real.stdout == expected[kind]


KEYS = {
    "workflow": {"name", "run-name", "on", "permissions", "env", "defaults", "concurrency", "jobs"},
    "job": {"name", "needs", "permissions", "if", "runs-on", "environment", "concurrency"}
    | {"outputs", "env", "defaults", "steps", "timeout-minutes", "strategy", "continue-on-error"}
    | {"container", "services", "uses", "with", "secrets"},
    "step": {"id", "if", "name", "uses", "run", "working-directory", "shell", "with", "env"}
    | {"continue-on-error", "timeout-minutes"},
}
"""What the published schema of workflows allows."""
SCOPES = {"actions", "checks", "contents", "deployments", "id-token", "issues", "packages"}
SCOPES |= {"pages", "pull-requests", "security-events", "statuses", "attestations", "discussions"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_keep_the_schema(name: str) -> None:
    """Known keys, one of `uses` and `run` in each step, known permissions, majors pinned."""
    found = workflow(name)

    assert set(found) <= KEYS["workflow"]
    assert set(found["permissions"]) <= SCOPES
    assert set(found["permissions"].values()) <= {"read", "write", "none"}
    assert "pull_request_target" not in found["on"]
    for job in found["jobs"].values():
        assert set(job) <= KEYS["job"]
        assert job["runs-on"]
        ids = [step["id"] for step in job["steps"] if "id" in step]
        assert len(set(ids)) == len(ids)
        for step in job["steps"]:
            assert set(step) <= KEYS["step"]
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[a-z/-]+@v\d+", step.get("uses", "actions/x@v1"))
            assert all(isinstance(value, str) for value in step.get("env", {}).values())
            assert "${{" not in step.get("run", "")


def test_nothing_of_a_fork_is_run() -> None:
    """The workflow that may write checks nothing out and runs none of its files."""
    text = (EXAMPLES / "github-forks.yml").read_text()
    steps = [step for job in workflow("github-forks.yml")["jobs"].values() for step in job["steps"]]

    assert not any("checkout" in step.get("uses", "") for step in steps)
    assert not re.search(r"(bash|sh|python3?|source|\.) fork/", text)
