"""`kdpipe doctor` on sensors of energy: each with what it covers, or with why it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.pipeline.doctor import diagnose, render
from kdpipe.targets import power
from kdpipe.targets.power.ina import Ina
from kdpipe.targets.power.rapl import Rapl


class Board(Ina):
    """The monitors below a folder that the test writes."""

    root: Path

    def __init__(self) -> None:
        super().__init__(self.root)


class Processor(Rapl):
    """The counters below the same folder."""

    def __init__(self) -> None:
        super().__init__(Board.root)


def test_sensors_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can be read names its rail, one that cannot says why; that is no failure."""
    monitor = tmp_path / "sys/class/hwmon/hwmon1"
    monitor.mkdir(parents=True)
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1000}
    for name, value in files.items():
        (monitor / name).write_text(f"{value}\n")
    monkeypatch.setattr(Board, "root", tmp_path, raising=False)
    monkeypatch.setattr(power, "SENSORS", (Processor, Board))

    report = diagnose()

    rows = {row["name"]: (row["status"], row["summary"]) for row in report["sensors"]}
    assert rows["ina"] == ("ok", "board: VDD_IN")
    assert rows["rapl"][0] == "missing"
    assert "measure on the bare machine" in rows["rapl"][1]
    assert report["exit_code"] == 0
    assert "  ok       ina            board: VDD_IN" in list(render(report))
