"""The facts about this machine."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from kdpipe.targets.fingerprint import fingerprint, machine


def test_survives_json() -> None:
    """The fingerprint is the same after a trip through JSON."""
    facts = fingerprint()

    assert json.loads(json.dumps(facts)) == facts


def test_tells_versions_and_cores() -> None:
    """Versions and core count are those of the running process."""
    facts = fingerprint()

    assert facts["numpy"] == np.__version__
    assert facts["cores"] == os.cpu_count()


def test_unknown_is_absent() -> None:
    """No value is None, empty, or a word for not knowing."""
    assert not [value for value in fingerprint().values() if value in (None, "", [], "unknown")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_flags_are_of_this_cpu() -> None:
    """Every flag named is one that Linux names too."""
    flags = fingerprint().get("flags", [])
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        words = set(file.read().split())

    assert isinstance(flags, list)
    assert set(flags) <= words


def test_machine_stays_the_same() -> None:
    """What identifies the machine is part of the fingerprint, without load, clocks and versions."""
    assert machine() == machine()
    assert machine().items() <= fingerprint().items()
    assert not {"load", "current_mhz", "numpy", "os"} & set(machine())
