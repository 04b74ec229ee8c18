"""`kdpipe compare`: what changed between two artifacts, and only as far as it can be known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from kdpipe.pipeline.cli import app
from kdpipe.pipeline.compare import compare, render
from kdpipe.stages.evidence import Timing
from kdpipe.targets.errors import UsageError


def lines(workshop: Any, one: Any, two: Any, **runs: Any) -> dict[str, dict[str, Any]]:
    """The numbers of two runs of one artifact each, by what they are."""
    folders = [
        str(workshop.run(name, each, **runs.get(name, {})).folder)
        for name, each in {"a": one, "b": two}.items()
    ]
    (pair,) = compare(*folders)["pairs"]
    return {line["what"]: line for line in pair["lines"]}


def words(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Verdicts by what they are about."""
    return {what: line["verdict"] for what, line in found.items()}


def test_a_run_and_itself_are_the_same(workshop: Any, measured: Any) -> None:
    """In every number."""
    folder = str(workshop.run("a", measured()).folder)
    (pair,) = compare(folder, folder)["pairs"]

    assert {line["verdict"] for line in pair["lines"]} == {"same"}
    assert [line["what"] for line in pair["lines"]] == [
        "accuracy", "agreement", "latency", "speed over teacher", "memory", "size", "parameters",
    ]  # fmt: skip
    assert pair["notes"] == ["A and B are the same file"]


def test_scores_of_the_same_samples_are_paired(workshop: Any, measured: Any) -> None:
    """1 % of the samples lost, and none gained, is certain in pairs and not without."""
    one, two = measured(right=1900), measured(right=1880)
    paired = lines(workshop, one, two)["accuracy"]
    other = measured(right=1880, eval_sha256="f" * 64)
    folder = str(workshop.run("c", other).folder)
    unpaired = compare(str(workshop.root / "a"), folder)["pairs"][0]["lines"][0]

    assert (paired["verdict"], paired["paired"]) == ("worse", True)
    assert paired["change"]["point"] == pytest.approx(-0.01)
    assert -0.016 < paired["change"]["low"] < -0.01 < paired["change"]["high"] < -0.005
    assert (unpaired["verdict"], unpaired["paired"]) == ("cannot tell", False)
    assert "not known to be the same eval samples" in unpaired["note"]
    assert unpaired["change"]["low"] < -0.02
    assert paired["a"] == {"counted": "samples", "n": 2000, "point": 0.95} | {
        side: pytest.approx(value, abs=5e-4)
        for side, value in {"low": 0.9414, "high": 0.9576}.items()
    }


def test_samples_are_known_by_their_data_where_the_digest_is_not(
    workshop: Any, measured: Any
) -> None:
    """Evidence of an earlier kdpipe has none; the stored data of both runs is the same."""
    found = lines(workshop, measured(eval_sha256=""), measured(eval_sha256=""))

    assert found["accuracy"]["paired"]
    (workshop.root / "a" / "plan.json").unlink()
    (pair,) = compare(*(str(workshop.root / name) for name in "ab"))["pairs"]
    assert not pair["same_samples"]
    assert "plan.json is not there" in pair["notes"][-1]


def test_times_of_one_machine(workshop: Any, measured: Any) -> None:
    """A fifth faster is better, both by itself and over the same teacher."""
    found = lines(workshop, measured(seed=1, ms=1.0), measured(seed=2, ms=0.8))

    assert (words(found)["latency"], words(found)["speed over teacher"]) == ("better", "better")
    for what in ("latency", "speed over teacher"):
        change = found[what]["change"]
        assert change["kind"] == "ratio"
        assert change["low"] < 1.25 < change["high"]
        assert change["high"] / change["low"] < 1.05
    assert found["latency"]["note"] == "not measured in turns"
    assert (found["latency"]["a"]["n"], found["latency"]["a"]["counted"]) == (10, "processes")


def test_times_of_two_machines_are_not_compared(workshop: Any, measured: Any) -> None:
    """Ratios to the teacher are: here the lead over the teacher is half as large."""
    there = measured(seed=2, ms=2.0, teacher_ms=3.0, machine={"cpu": "other"})
    found = lines(workshop, measured(seed=1), there)

    assert words(found)["latency"] == "not compared"
    assert found["latency"]["change"] is None
    assert words(found)["speed over teacher"] == "worse"
    assert found["speed over teacher"]["change"]["point"] == pytest.approx(0.5, rel=0.02)


def test_another_runtime_on_the_same_machine(workshop: Any, measured: Any) -> None:
    """Is compared, as it may be what one wants to know, and told."""
    newer = {"cpu": "toy", "cores": 2, "openvino": "2026.5.0"}
    found = lines(workshop, measured(seed=1), measured(seed=2, ms=0.8, machine=newer))

    assert words(found)["latency"] == "better"
    assert found["latency"]["note"] == "not measured in turns, with other openvino"


def test_a_teacher_that_ran_faster_shows_other_conditions(workshop: Any, measured: Any) -> None:
    """Then times of the artifacts prove nothing, although the machine is the same."""
    found = lines(workshop, measured(seed=1), measured(seed=2, ms=0.8, teacher_ms=2.4))

    assert words(found)["latency"] == "cannot tell"
    assert "the same teacher ran 1.2" in found["latency"]["note"]
    assert words(found)["speed over teacher"] in ("same", "cannot tell")


def test_another_teacher_is_no_reference(workshop: Any, measured: Any) -> None:
    """Neither for speed nor for agreement."""
    found = lines(workshop, measured(seed=1), measured(seed=2), b={"teacher": "8" * 64})

    assert "speed over teacher" not in found
    assert "agreement" not in found


def test_times_within_five_per_cent_are_the_same(workshop: Any, measured: Any) -> None:
    """When it is certain that they are."""
    found = lines(workshop, measured(seed=1), measured(seed=2))

    assert (words(found)["latency"], words(found)["speed over teacher"]) == ("same", "same")


def test_a_difference_within_the_noise_floor_proves_nothing(workshop: Any, measured: Any) -> None:
    """A fifth faster is `cannot tell` where the artifact differs from itself by more."""
    loud = Timing(tuple(1.0 * np.exp(np.linspace(-0.6, 0.6, 10))[:, None] * np.ones((10, 30))))
    noisy = dict(measured(seed=1).latency) | {"again": loud}
    found = lines(workshop, measured(seed=1, latency=noisy), measured(seed=2, ms=0.85))

    assert words(found)["latency"] == "cannot tell"
    assert "within the noise floor of" in found["latency"]["note"]


def test_scores_of_a_leak_are_marked(workshop: Any, measured: Any) -> None:
    """On whichever side it is; sizes and times are not touched by it."""
    folders = [workshop.run(name, measured()) for name in "ab"]
    leaks = {
        "eval": 3, "share": 0.0067, "known_from": {"train": 3},
        "exact": 3, "near": 0, "mirrored": 0, "group": 0,
    }  # fmt: skip
    folders[1].write_results(folders[1].read_results() | {"data": {"leaks": leaks}})
    shown = list(render(compare(*(str(each.folder) for each in folders)), 100, table=False))

    marked = [line for line in shown if "*" in line]
    assert [line.split(":")[0].split()[-1] for line in marked[:2]] == ["accuracy*", "agreement*"]
    assert "3 eval sample(s), 0.67 %, are known from train" in marked[2]
    assert len(marked) == 3


def test_bounds_over_the_teacher_hold_their_level(workshop: Any, measured: Any) -> None:
    """Of 400 pairs of equal artifacts on drifting machines at most 7 % alarm on either side."""
    from kdpipe.pipeline.contrast import _over_teacher
    from kdpipe.pipeline.subject import subjects

    sides = [
        subjects(str(workshop.run(name, measured(seed=seed)).folder))[0]
        for seed, name in enumerate("ab")
    ]
    random = np.random.default_rng(0)
    alarms = {"better": 0, "worse": 0}
    for _ in range(400):
        for side in sides:
            drift = random.normal(0, 0.2)
            side.evidence.latency.clear()  # type: ignore[attr-defined]
            for role, centre, effect in (("artifact", 0.0, 0.01), ("teacher", 1.0, 0.02)):
                means = np.exp(drift + centre + random.normal(0, effect, 10))
                timing = Timing(tuple(np.full(2, mean) for mean in means))
                side.evidence.latency[role] = timing  # type: ignore[index]
        word = _over_teacher(*sides, floor=0.0).verdict
        if word in alarms:
            alarms[word] += 1

    assert 8 <= alarms["better"] <= 28
    assert 8 <= alarms["worse"] <= 28


def test_memory_has_welchs_bounds(workshop: Any, measured: Any) -> None:
    """One-sided 95 % bounds of the difference of means are scipy's 90 % interval."""
    one, two = np.array([2e6, 2.1e6, 2.2e6]), np.array([2.5e6, 2.9e6, 2.4e6, 2.6e6])
    found = lines(workshop, measured(memory={"artifact": one}), measured(memory={"artifact": two}))
    change = found["memory"]["change"]
    interval = stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.9)

    assert found["memory"]["verdict"] == "worse"
    assert found["memory"]["b"]["point"] - found["memory"]["a"]["point"] == change["point"]
    assert (change["low"], change["high"]) == pytest.approx(tuple(interval))


def test_sizes_are_exact(workshop: Any, measured: Any) -> None:
    """One byte more is worse, and needs no interval."""
    found = lines(workshop, measured(size_bytes=4000), measured(size_bytes=4001))

    assert words(found)["size"] == "worse"
    assert found["size"]["change"]["low"] == found["size"]["change"]["high"] == 1


def test_other_metrics_are_not_compared(workshop: Any, measured: Any) -> None:
    """An accuracy is no mean IoU."""
    found = lines(workshop, measured(), measured(metric="miou"))

    assert words(found)["score"] == "not compared"
    assert found["score"]["note"] == "A measures accuracy and B miou"


def test_artifacts_are_matched_by_id(workshop: Any, measured: Any) -> None:
    """What only one run has is named; two of different names are a pair when both are named."""
    a = workshop.run("a", measured("openvino-fp32"), measured("tensorrt-fp32")).folder
    b = workshop.run("b", measured("openvino-fp32"), measured("onnxruntime-fp32")).folder
    found = compare(str(a), str(b))
    named = compare(f"{a}:tensorrt-fp32", f"{b}:onnxruntime-fp32")
    file = compare(f"{a}/artifacts/tensorrt-fp32/model", f"{b}:onnxruntime-fp32")

    assert [pair["a"]["artifact"] for pair in found["pairs"]] == ["openvino-fp32"]
    assert (found["only_in_a"], found["only_in_b"]) == (["tensorrt-fp32"], ["onnxruntime-fp32"])
    assert list(render(found, 200, False))[-3:-1] == [
        "removed  tensorrt-fp32", "new      onnxruntime-fp32",
    ]  # fmt: skip
    assert named["pairs"][0]["b"]["artifact"] == "onnxruntime-fp32"
    assert file["pairs"] == named["pairs"]


def test_nothing_to_compare(workshop: Any, measured: Any) -> None:
    """Each refusal says what is there."""
    a = workshop.run("a", measured("openvino-fp32"), measured("openvino-bf16")).folder
    b = workshop.run("b", measured("tensorrt-fp32")).folder

    with pytest.raises(UsageError, match="no artifact in common"):
        compare(str(a), str(b))
    with pytest.raises(UsageError, match="has no artifact 'openvino-int8'") as caught:
        compare(f"{a}:openvino-int8", str(b))
    assert "openvino-fp32, openvino-bf16" in str(caught.value)
    with pytest.raises(UsageError, match="has no artifact 'x'"):
        compare(str(a), str(a), "x")
    with pytest.raises(UsageError, match="is no run and no artifact of one"):
        compare(str(workshop.root), str(b))


def test_changed_samples_are_told(workshop: Any, measured: Any) -> None:
    """Nothing is compared in silence that is not what was measured."""
    a = workshop.run("a", measured()).folder
    b = workshop.run("b", measured(right=1000)).folder
    (b / "artifacts/openvino-fp32/model").write_text("other")
    (pair,) = compare(str(a), str(b))["pairs"]

    assert pair["notes"] == ["openvino-fp32: the file is not the one that was measured"]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_number_is_cut(workshop: Any, measured: Any, width: int) -> None:
    """On a terminal no line is wider than it; every verdict, unit and n is there."""
    a = workshop.run("a", measured(seed=1)).folder
    b = workshop.run("b", measured(seed=2, right=1800, ms=0.8)).folder
    shown = list(render(compare(str(a), str(b)), width, True))
    text = " ".join(" ".join(shown).split())

    if width >= 80:
        assert max(len(line) for line in shown if not line.startswith(("A  ", "B  "))) <= width
    for part in ("worse", "better", "0.9500 ± 0.0", "0.9000 ± 0.0", "-0.0500 (", "2,000 samples"):
        assert part in text
    for part in ("ms ± 0.0", "10 processes", "KiB", "3 processes", "exact", "95 %"):
        assert part in text
    assert shown[-1] == "bounds are one-sided, 95 %"


def test_the_command(workshop: Any, measured: Any) -> None:
    """Whatever changed, exit 0: comparing is not judging. --json is one object."""
    a = str(workshop.run("a", measured()).folder)
    b = str(workshop.run("b", measured(right=100)).folder)
    plain = CliRunner().invoke(app, ["compare", a, b])
    as_json = CliRunner().invoke(app, ["compare", a, b, "--json"])

    assert (plain.exit_code, as_json.exit_code) == (0, 0)
    assert "worse        accuracy: A 0.9500 ± 0.00" in plain.stdout
    assert json.loads(as_json.stdout)["schema"] == "kdpipe.compare/1"
