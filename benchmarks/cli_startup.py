"""How fast the command line answers: help, schema and plan, against a bare interpreter.

python benchmarks/cli_startup.py [--rounds 10] [--out startup.json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from report import interleaved, report

DIGITS = Path(__file__).resolve().parents[1] / "examples/digits.yaml"


def main() -> None:
    """Time the verbs in turns, each in a fresh process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        kdpipe = [sys.executable, "-m", "kdpipe.pipeline"]
        variants = {
            "python -c pass": command([sys.executable, "-c", "pass"]),
            "import numpy": command([sys.executable, "-c", "import numpy"]),
            "kdpipe --help": command([*kdpipe, "--help"]),
            "kdpipe schema": command([*kdpipe, "schema"]),
            "kdpipe plan": command([*kdpipe, "plan", str(DIGITS), "--store", store]),
        }
        report("start of the command", interleaved(variants, options.rounds), options.out)


def command(arguments: list[str]) -> Callable[[], object]:
    """A process to time, its output thrown away."""
    return lambda: subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
