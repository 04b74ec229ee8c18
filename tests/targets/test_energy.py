"""Energy of calls in fresh processes, through pipes, with the real sensor on a tree like /sys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe.targets.base import Target
from kdpipe.targets.energy import call_energy
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.process import Job

METERED = """
from functools import partial
from pathlib import Path
from typing import Any
from typing import Literal
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.power import inference, sensor_for
from kdpipe.targets.power.rapl import Rapl
class Metered(OnnxRuntime):
    name: Literal["metered"] = "metered"
    tree: str
    def open(self, artifact):
        inference.sensor_for = partial(sensor_for, kinds=(lambda: Rapl(Path(self.tree)),))
        return super().open(artifact)
"""
BRIEF = {"seconds": 0.4, "idle_seconds": 0.4}


def test_each_process_gives_a_value(
    burning: Any, fp32: Path, inputs: Path, plugin: Callable[[str, str], type[Target]]
) -> None:
    """Two models in turns, two processes each: joules over calls, with the sensor's own name."""
    target = plugin("metered", METERED).model_validate({"tree": str(burning.root)})
    job, told = Job(target, fp32, inputs), list[str]()

    found = call_energy(
        {"a": job, "b": job},
        processes=2,
        **BRIEF,
        on_progress=lambda done, total, note: told.append(note),
    )

    assert sorted(note.split()[0] for note in told) == ["a", "a", "b", "b"]
    for energy in found.values():
        assert (energy.sensor, energy.what) == ("rapl", "package-0, package-1")
        assert energy.unavailable == ""
        assert energy.net_mj.shape == energy.gross_mj.shape == energy.idle_w.shape == (2,)
        assert energy.calls >= 2
        assert (energy.gross_mj > 0).all()
        assert (energy.idle_w > 0).all()
        assert (energy.net_mj < energy.gross_mj).all()


def test_one_model_without_a_number_leaves_the_others_theirs(
    burning: Any, fp32: Path, inputs: Path, plugin: Callable[[str, str], type[Target]]
) -> None:
    """A sensor that is not there for one of them: a reason, and never 0."""
    kind = plugin("metered", METERED)
    jobs = {
        name: Job(kind.model_validate({"tree": tree}), fp32, inputs)
        for name, tree in {"seen": str(burning.root), "unseen": "/none"}.items()
    }

    found = call_energy(jobs, processes=2, **BRIEF)

    assert found["seen"].net_mj.shape == (2,)
    assert found["unseen"].net_mj.size == 0
    assert "no energy counter" in found["unseen"].unavailable


def test_energy_is_a_number_or_a_reason(fp32: Path, inputs: Path) -> None:
    """On this machine, whatever it has: numbers of a named sensor, or the reason for none."""
    energy = call_energy({"a": Job(OnnxRuntime(), fp32, inputs)}, processes=1, **BRIEF)["a"]

    assert bool(energy.unavailable) != bool(energy.sensor)
    assert energy.net_mj.size == (0 if energy.unavailable else 1)
