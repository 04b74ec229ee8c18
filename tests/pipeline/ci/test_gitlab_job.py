"""The job for GitLab: its script lines really run, in the order and way of a runner."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/ci/gitlab.yml"
MERGE_REQUEST = {
    "CI": "true",
    "CI_API_V4_URL": "https://gitlab.example/api/v4",
    "CI_PROJECT_ID": "5",
    "CI_MERGE_REQUEST_IID": "12",
    "CI_COMMIT_SHA": "0123456789abcdef",
    "KDPIPE_TOKEN": "secret",
}


def job() -> dict[str, Any]:
    """The only job of the file."""
    (found,) = yaml.safe_load(EXAMPLE.read_text()).values()
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True)
class Ended:
    """Exit codes of `script` and `after_script`, which changes nothing, and what they printed."""

    code: int
    after: int
    log: str


def push(forge: Any, right: int, **changes: str) -> Ended:
    """One pipeline: GitLab runs all lines of a section in one shell, which ends at an error."""
    forge.right(right)
    shutil.rmtree(forge.repository / "kdpipe-run", ignore_errors=True)
    codes, log = [], ""
    for section in ("script", "after_script"):
        known = {**MERGE_REQUEST, "CI_PROJECT_DIR": str(forge.repository), **job()["variables"]}
        done = subprocess.run(
            ["bash", "-c", "\n".join(["set -eo pipefail", *job()[section]])],
            cwd=forge.repository,
            env=forge.environment({**known, **changes}),
            capture_output=True,
            text=True,
        )
        codes.append(done.returncode)
        log += done.stdout + done.stderr
    return Ended(*codes, log)


def note(number: int, author: int, body: str) -> dict[str, Any]:
    """A note of a merge request."""
    return {"id": number, "author": {"id": author}, "body": body}


def test_a_merge_request_from_bad_to_good_and_back(forge: Any) -> None:
    """Created, updated and told again, also behind more notes than one page has."""
    tagged = "<!-- kdpipe:default -->\n<!-- kdpipe-verdict:passed -->"
    others = [note(number, 3, tagged) for number in range(100)]
    forge.change(comments=[*others, note(100, 7, "hello")])
    seen = []
    for right, code in ((150, 3), (200, 0), (192, 5)):
        ended = push(forge, right)
        assert (ended.code, ended.after) == (code, 0), ended.log
        seen.append(forge.bodies()[101:])

    created, updated, flipped = seen
    assert [len(bodies) for bodies in seen] == [1, 1, 2]
    assert created[0].startswith("<!-- kdpipe:default -->\n<!-- kdpipe-verdict:failed -->\n")
    assert "(was: failed)" in updated[0]
    assert "(was: passed)" in flipped[0]
    assert flipped[1].startswith("<!-- kdpipe-flip:default -->")
    assert forge.bodies()[:101] == [tagged] * 100 + ["hello"]
    for path in job()["artifacts"]["reports"].values():
        assert (forge.repository / path).is_file()
    for path in job()["artifacts"]["paths"]:
        assert (forge.repository / path).is_dir()


def test_without_a_token_there_is_no_comment(forge: Any) -> None:
    """As in the pipeline of a fork, and on a branch without a merge request."""
    ended = push(forge, 150, KDPIPE_TOKEN="")

    assert (ended.code, ended.after) == (3, 0)
    assert [call for call in forge.state()["log"] if call[0] == "curl"] == []


JOB = {"image", "variables", "rules", "cache", "script", "before_script", "after_script", "stage"}
JOB |= {"artifacts", "allow_failure", "needs", "tags", "timeout", "interruptible", "retry"}
REPORTS = {"junit", "codequality", "metrics", "coverage_report", "dotenv", "terraform"}


def test_the_job_keeps_the_schema() -> None:
    """Known keys and reports; artifacts and cache also of a job that failed."""
    found = job()

    assert set(found) <= JOB
    assert all(isinstance(line, str) for line in found["script"] + found["after_script"])
    assert set(found["artifacts"]) <= {"when", "paths", "reports", "expire_in", "name", "exclude"}
    assert set(found["artifacts"]["reports"]) <= REPORTS
    assert found["artifacts"]["when"] == found["cache"]["when"] == "always"
    assert all(set(rule) <= {"if", "when", "changes", "exists"} for rule in found["rules"])
    assert all(isinstance(value, str) for value in found["variables"].values())


def test_undecided_can_be_made_a_warning() -> None:
    """The commented lines are what GitLab takes: exit code 5 may fail, and no other."""
    (line,) = re.findall(r"# (allow_failure: .*)", EXAMPLE.read_text())

    assert yaml.safe_load(line) == {"allow_failure": {"exit_codes": [5]}}
