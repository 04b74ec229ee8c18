"""The real `kdpipe` command in a process of its own, with a chain of toy stages behind `run`.

What it measures is set by the file `right` in the current folder: how many of 200 samples are.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kdpipe.pipeline import cli
from kdpipe.pipeline.launch import Launch
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Store

TOYS = Path(__file__).resolve().parents[1] / "conftest.py"


@dataclass(frozen=True)
class Named(Launch):
    """A launch of toys, which know no task: they say what their metric is."""

    def _conclude(self, *arguments: Any) -> Any:
        conclusion, results = super()._conclude(*arguments)
        return conclusion, {**results, "metric": "accuracy"}


def launch(
    config: Path, assignments: list[str], store: Path, run_dir: Path | None, *selection: Any
) -> Launch:
    """What the command line makes of its arguments, with toy stages."""
    spec = importlib.util.spec_from_file_location("toys", TOYS)
    assert spec
    assert spec.loader
    toys = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = toys
    spec.loader.exec_module(toys)
    rules = tuple(yaml.safe_load(config.read_text())["gate"])
    toy = toys.Project(Path.cwd()).launch(rules=rules, right=int(Path("right").read_text()))
    assert run_dir
    found = replace(toy, store=Store(store), rundir=RunDir(run_dir))
    return Named(found.config, found.store, found.rundir, found.selection)


if __name__ == "__main__":
    cli._launch = launch
    cli.main()
