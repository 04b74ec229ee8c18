"""How commands end that could not do their work: one last line on stdout, or one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kdpipe.pipeline.cli import _errors
from kdpipe.targets import GROUP


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder for the path, with a package whose target cannot be imported."""
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = nowhere:Mine\n")
    return tmp_path


def kdpipe(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with `path` on Python's path."""
    return subprocess.run(
        [sys.executable, "-m", "kdpipe.pipeline", *arguments],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with exit code 130, and says so on stdout like every other way to end."""
    with pytest.raises(typer.Exit) as ended, _errors(debug=False, as_json=as_json):
        raise KeyboardInterrupt

    out, said = capsys.readouterr().out, "interrupted; what is finished is kept"
    assert ended.value.exit_code == 130
    if as_json:
        assert json.loads(out) == {"error": said, "exit_code": 130}
    else:
        assert out == f"FAILED | {said}\n"


def test_schema_with_a_broken_package(broken: Path) -> None:
    """An entry point that cannot be used is an error with a fix, and no traceback."""
    schema = kdpipe(broken, "schema")

    assert schema.returncode == 2
    assert schema.stderr.startswith("error: the entry point 'mine' of 'third-party'")
    assert "Traceback" not in schema.stderr
    assert json.loads(schema.stdout)["exit_code"] == 2


@pytest.mark.parametrize("verb", ["targets", "doctor"])
def test_broken_packages_are_listed(broken: Path, verb: str) -> None:
    """Commands that say what there is list what is broken beside what works, with the fix."""
    listed = kdpipe(broken, verb, "--json")

    assert listed.returncode == 0, listed.stderr
    report = json.loads(listed.stdout)
    rows = {row["name"]: row for row in (report["targets"] if verb == "doctor" else report)}
    assert list(rows) == ["onnxruntime", "openvino", "tensorrt", "mine"]
    assert rows["onnxruntime"]["status"] == "ok"
    assert rows["mine"]["status"] == "broken"
    assert "ModuleNotFoundError" in rows["mine"]["summary"]
    assert "pip uninstall third-party" in rows["mine"]["summary"]
