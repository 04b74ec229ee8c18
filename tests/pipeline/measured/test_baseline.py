"""The baseline: a small file under version control that says what changed, and never by itself."""

from __future__ import annotations

import base64
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from kdpipe.pipeline import baseline, lock
from kdpipe.pipeline.cli import app
from kdpipe.pipeline.rejudge import rejudge
from kdpipe.stages import statistics
from kdpipe.stages.evidence import Timing
from kdpipe.targets.errors import ConfigError, UsageError


def renew(rundir: Any, given: Path | None = None) -> tuple[int, list[str]]:
    """(exit code, what was told) of `gate RUN --update-baseline`."""
    told: list[str] = []
    conclusion, _ = baseline.renew(rundir.folder, None, given, told.append)
    return conclusion.exit_code, told


def kdpipe(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    answer = CliRunner().invoke(app, arguments)
    return answer.exit_code, answer.stdout, answer.stderr


# --- the file -----------------------------------------------------------------------------------


def test_what_is_read_is_what_was_remembered(workshop: Any, measured: Any) -> None:
    """Scores bit for bit; the interval of a ratio is that of the raw samples."""
    old, new = measured(seed=1), measured(seed=2, ms=1.1)
    renew(workshop.run("a", old))
    found = lock.read(workshop.lock)["kdpipe.yaml"]["openvino-fp32"]

    np.testing.assert_array_equal(found.scores, old.score)
    assert (found.score, found.samples, found.metric) == (0.95, 2000, "accuracy")
    assert found.variance == pytest.approx(0.95 * 0.05 * 2000 / 1999)
    assert (found.eval_sha256, found.machine) == (old.eval_sha256, old.machine)
    assert found.values["size_bytes"] == 4000
    assert found.values["memory_bytes"] == 2.1e6
    assert found.values["memory_bytes_deviation"] == pytest.approx(1e5)
    then, now = old.latency["artifact"].processes, new.latency["artifact"].processes
    raw = statistics.latency_ratio(then, now, 0.95)
    kept = statistics.ratio_of(found.latency["artifact"], statistics.log_mean(now), 0.95)
    assert (kept.point, kept.low, kept.high) == pytest.approx((raw.point, raw.low, raw.high))
    again = statistics.latency_ratio(then, old.latency["again"].processes, 0.95)
    floor = max(again.high, 1 / again.low) - 1
    assert found.noise_floor == pytest.approx(floor, abs=1e-6)


def test_same_measurements_give_the_same_bytes(workshop: Any, measured: Any) -> None:
    """Whatever the order; keys are sorted, decimals fixed, and nothing tells the time."""
    names = ["openvino-fp32", "onnxruntime-fp32", "tensorrt-fp32"]
    entries = {name: baseline.remembered(measured(name), {}) for name in names}
    texts = set()
    for seed in range(5):
        random.Random(seed).shuffle(names)
        texts.add(lock.text({"b.yaml": {name: entries[name] for name in names}, "a.yaml": {}}))

    (text,) = texts
    assert text.startswith("# ")
    assert "log_variance: 0.0000" in text
    plain = yaml.safe_load(text)
    assert list(plain["configs"]) == ["a.yaml", "b.yaml"]
    assert list(plain["configs"]["b.yaml"]) == sorted(names)
    assert max(map(len, text.splitlines())) <= 400


def test_an_artifact_takes_less_than_a_kibibyte_beside_its_scores(measured: Any) -> None:
    """Scores take a sixth of a byte of text each, and none at all above 20,000 samples."""
    small = lock.text({"c": {"a": baseline.remembered(measured(), {})}})
    most = lock.text({"c": {"a": baseline.remembered(measured(samples=20_000), {})}})
    beyond = lock.text({"c": {"a": baseline.remembered(measured(samples=20_001), {})}})

    assert len(small) < 1024 + 2000 / 8 * 4 / 3 + len(lock.HEADER)
    assert len(most) - len(small) < 18_000 / 8 * 4 / 3 + 20
    assert "scores" not in beyond
    assert "samples: 20001" in beyond


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 200])
def test_bits_come_back(samples: int) -> None:
    """Packed scores are those that were packed, whatever is left of the last byte."""
    scores = np.random.default_rng(samples).integers(0, 2, samples).astype(np.float32)
    text = lock.packed(scores)

    assert text is not None
    assert len(base64.b64decode(text)) == math.ceil(samples / 8)
    np.testing.assert_array_equal(lock.unpacked(text, samples), scores)


def test_bits_of_a_hand_worked_example() -> None:
    """101 is 0b10100000, which is oA== in base64; fractions are not packed."""
    assert lock.packed(np.array([1, 0, 1], np.float32)) == "oA=="
    assert lock.packed(np.array([0.5, 1.0], np.float32)) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kdpipe.lock/1", "kdpipe.lock/2", "'kdpipe.lock/2' is another format"),
        ("score: 0.95", "score: 0.96", "`score` is 0.960000000, and the mean of `scores` 0.95"),
        ("samples: 2000", "samples: 1999", "`score` is 0.950000000, and the mean of `scores`"),
        ("samples: 2000", "samples: 3000", "`scores` holds 2000 bits, and not those of 3000"),
        ('scores: "/', 'scores: "?', "`scores` is no base64 text"),
        ("processes: 10", "processes: ten", "'ten' is not a whole number"),
        ("ms: 1.0", "ms: -1.0", "-1.0"),
        ("ms: 1.0", "ms: .nan #", "is not closed"),
        ("metric: accuracy", "metrik: accuracy", "did you mean `metric`?"),
        ("configs:", "<<<<<<< HEAD\nconfigs:", "a `:` is not expected here"),
        ("cpu: toy", "cpu: toy, cpu: toy", "this key is given twice"),
    ],
)
def test_a_file_that_was_edited_is_refused(
    workshop: Any, measured: Any, old: str, new: str, said: str
) -> None:
    """With the file, the line, what is wrong, and the way back; exit 2."""
    renew(workshop.run("a", measured()))
    text = workshop.lock.read_text()
    assert old in text
    workshop.lock.write_text(text.replace(old, new, 1))
    code, out, told = kdpipe("gate", str(workshop.root / "a"))

    assert code == 2
    assert said in told
    assert f"--> {workshop.lock}:" in told
    assert f"git checkout -- {workshop.lock}" in told
    assert out.startswith("FAILED | ")


def test_an_empty_file_is_refused(workshop: Any, measured: Any) -> None:
    """Nothing is not the same as no baseline."""
    rundir = workshop.run("a", measured())
    workshop.lock.write_text("")

    with pytest.raises(ConfigError, match="1 error in"):
        rejudge(rundir.folder)


# --- when it is written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"metric": "size_bytes", "max": 10}, 3),
        ({"metric": "accuracy", "min": 0.9499}, 5),
    ],
    ids=["failed", "undecided"],
)
def test_only_a_run_that_passed_is_remembered(
    workshop: Any, measured: Any, rule: dict[str, Any], code: int
) -> None:
    """The exit code is that of the run, the reason is told, and no file is written."""
    found, told = renew(workshop.run("a", measured(), rules=[rule]))

    assert found == code
    assert told[0].startswith("the baseline stays as it is: ")
    assert not workshop.lock.exists()


def test_a_run_whose_file_changed_is_not_remembered(workshop: Any, measured: Any) -> None:
    """Nor is one whose samples did."""
    rundir = workshop.run("a", measured())
    (rundir.folder / "artifacts/openvino-fp32/model").write_text("another one")
    code, told = renew(rundir)

    assert code == 3
    assert "the file is not the one that was measured" in told[0]
    assert not workshop.lock.exists()


def test_a_loss_that_is_meant_becomes_the_baseline(workshop: Any, measured: Any) -> None:
    """A run that only breaks rules against the baseline may replace it, and passes from then on."""
    renew(workshop.run("a", measured()))
    worse = workshop.run("b", measured(right=1800, size_bytes=5000))
    before = rejudge(worse.folder)[0]
    code, told = renew(worse)
    text = "\n".join(told)

    assert before.exit_code == 3
    assert "against the baseline" in before.reason or "of the baseline" in before.reason
    assert code == 0
    assert "1 changed" in told[0]
    assert told[-1] == "  bounds are one-sided, 95 %"
    assert "0.9500 (±0.0088, 2,000 samples) -> 0.9000 (±0.0118, 2,000 samples)" in text
    assert "size               3.9 KiB (exact) -> 4.9 KiB (exact)" in text
    assert rejudge(worse.folder)[0].exit_code == 0


def test_samples_that_are_no_numbers_are_not_remembered(measured: Any) -> None:
    """A file with them could not be read again."""
    weighed = {"artifact": np.array([2e6, np.nan])}
    frozen = {"again": Timing((np.zeros(30),) * 10)}
    for more in ({"memory": weighed}, {"latency": frozen}):
        with pytest.raises(UsageError, match="samples are missing or are no numbers"):
            baseline.remembered(measured(**more), {})


def test_names_beyond_ascii_and_numbers_come_back(workshop: Any, measured: Any) -> None:
    """Names of configs that YAML could take for something else."""
    for n, config in enumerate(("größe.yaml", "123", "yes", "a: b #.yaml")):
        renew(workshop.run(f"run-{n}", measured(), config=config))

    assert set(lock.read(workshop.lock)) == {"größe.yaml", "123", "yes", "a: b #.yaml"}
    assert "größe.yaml:" in workshop.lock.read_text("utf-8")


def test_an_update_without_change_leaves_the_file_alone(workshop: Any, measured: Any) -> None:
    """Not even its time changes."""
    rundir = workshop.run("a", measured())
    renew(rundir)
    before = workshop.lock.stat()
    code, told = renew(rundir)

    assert (code, told[1].split()) == (0, ["same", "openvino-fp32"])
    after = workshop.lock.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_configs_of_one_folder_share_the_file(workshop: Any, measured: Any) -> None:
    """Each has its own artifacts there, and an update leaves those of the others as they are."""
    renew(workshop.run("a", measured()))
    renew(workshop.run("b", measured(right=1000), config="other.yaml"))
    found = lock.read(workshop.lock)

    scores = {config: entries["openvino-fp32"].score for config, entries in found.items()}
    assert scores == {"kdpipe.yaml": 0.95, "other.yaml": 0.5}


def test_new_and_removed_artifacts_are_named(workshop: Any, measured: Any) -> None:
    """They are no change of a number, neither when judged nor in an update."""
    renew(workshop.run("a", measured("openvino-fp32"), measured("tensorrt-fp32")))
    rundir = workshop.run("b", measured("openvino-fp32"), measured("onnxruntime-fp32"))
    conclusion, results = rejudge(rundir.folder)
    (line,) = baseline.notes(results)
    _, told = renew(rundir)

    assert conclusion.exit_code == 0
    assert line.endswith("(kdpipe.yaml); new: onnxruntime-fp32; removed: tensorrt-fp32")
    assert told[0].endswith(": 1 new, 1 same, 1 removed")
    assert "->" not in "\n".join(told)


def test_a_target_that_cannot_run_here_stays_in_the_baseline(workshop: Any, measured: Any) -> None:
    """Neither is it removed, nor does an update from such a machine forget it."""
    renew(workshop.run("a", measured("openvino-fp32"), measured("tensorrt-fp32")))
    rundir = workshop.run("b", measured("openvino-fp32", size_bytes=3990))
    missing = {"id": "tensorrt-fp32", "target": "tensorrt", "reason": "no GPU", "fix": "buy one"}
    rundir.write_results(rundir.read_results() | {"skipped": [missing]})
    _, results = rejudge(rundir.folder)
    _, told = renew(rundir)

    assert results["gate"]["removed"] == []
    assert told[0].endswith(": 1 changed, 1 same")
    assert sorted(lock.read(workshop.lock)["kdpipe.yaml"]) == ["openvino-fp32", "tensorrt-fp32"]


def test_a_run_that_broke_removed_nothing(workshop: Any, measured: Any) -> None:
    """Its artifacts were not reached, and an update would not be accepted: none is advised."""
    renew(workshop.run("a", measured()))
    rundir = workshop.run("b")
    broken = {"step": "distill", "error": "no luck", "exit_code": 1}
    rundir.write_results(rundir.read_results() | {"failed": [broken]})
    conclusion, results = rejudge(rundir.folder)

    assert conclusion.exit_code == 1
    assert list(baseline.notes(results)) == [f"baseline {workshop.lock} (kdpipe.yaml)"]


def test_a_run_without_rules_is_compared_with_nothing(workshop: Any, measured: Any) -> None:
    """So none is named below its summary."""
    renew(workshop.run("a", measured(), rules=()))

    assert list(baseline.notes(rejudge(workshop.root / "a")[1])) == []


def test_an_update_is_advised_only_where_it_would_be_accepted(workshop: Any, measured: Any) -> None:
    """With the file that was given, and not for a run that fails for other reasons, too."""
    elsewhere = workshop.root / "main.yaml"
    renew(workshop.run("a", measured()), elsewhere)
    worse = workshop.run("b", measured(right=1700))
    bad = workshop.run("c", measured(right=1700), rules=[{"metric": "accuracy", "min": 0.9}])
    advice = [
        list(baseline.notes(rejudge(rundir.folder, None, elsewhere)[1], elsewhere))[1:]
        for rundir in (worse, bad)
    ]

    (line,) = advice[0]
    assert line.endswith(f"kdpipe gate RUN --update-baseline --baseline {elsewhere}")
    assert advice[1] == []


def test_a_run_with_a_leak_is_no_baseline(workshop: Any, measured: Any) -> None:
    """Later runs would be compared with scores that nobody trusts."""
    rundir = workshop.run("a", measured())
    leaks = {
        "eval": 3, "share": 0.0067, "known_from": {"train": 3},
        "exact": 3, "near": 0, "mirrored": 0, "group": 0,
    }  # fmt: skip
    rundir.write_results(rundir.read_results() | {"data": {"leaks": leaks}})

    with pytest.raises(UsageError, match=r"cannot be the baseline: 3 eval sample.* exact 3"):
        renew(rundir)
    assert not workshop.lock.exists()


def test_rules_against_the_baseline_alone_make_none(workshop: Any, measured: Any) -> None:
    """Nothing has shown that the first run is good; the reason says so instead of going round."""
    rule = {"metric": "accuracy", "max-degradation": 0.01, "against": "baseline"}
    code, told = renew(workshop.run("a", measured(), rules=[rule]))

    assert code == 3
    assert "another one has to show that it is good" in told[0]


@pytest.mark.parametrize("ms", [0.00571, 0.0571, 12.3, 4567.8])
def test_a_run_is_as_fast_as_itself(workshop: Any, measured: Any, ms: float) -> None:
    """What is kept of times is exact enough: the difference is 0, and no digit of noise."""
    rundir = workshop.run("a", measured(ms=ms))
    renew(rundir)
    rules = rejudge(rundir.folder)[1]["gate"]["rules"]

    (reason,) = [rule["reason"] for rule in rules if rule["metric"] == "latency_mean_ms"]
    assert "above that of the baseline 0.00 % (" in reason


def test_scores_that_are_not_kept_show_no_bounds(workshop: Any, measured: Any) -> None:
    """A t interval of fractions, as IoU is, promises too much: their deviation is shown."""
    shares = np.linspace(0.5, 1.0, 40).astype(np.float32)
    more = {"score": shares, "teacher_score": np.ones(40, np.float32), "agreement": shares}
    _, told = renew(workshop.run("a", measured(**more)))

    assert "    accuracy           0.7500 (standard deviation 0.1499, 40 samples)" in told


def test_one_process_has_no_spread(workshop: Any, measured: Any) -> None:
    """A single process is remembered with its number, and shown without bounds."""
    alone = Timing((np.full(30, 2.0),))
    _, told = renew(workshop.run("a", measured(latency={"artifact": alone})))

    assert "    latency artifact   2.0000 ms (no bounds, 1 process)" in told


# --- when it is used ----------------------------------------------------------------------------


def test_a_slower_artifact_fails_against_the_baseline(workshop: Any, measured: Any) -> None:
    """30 % slower on the same machine is a loss; 30 % faster asks for an update and passes."""
    renew(workshop.run("a", measured(seed=1)))
    slow, _ = rejudge(workshop.run("b", measured(seed=2, ms=1.3)).folder)
    fast, results = rejudge(workshop.run("c", measured(seed=3, ms=0.7)).folder)

    assert slow.exit_code == 3
    assert "mean latency above that of the baseline" in slow.reason
    assert fast.exit_code == 0
    assert any("--update-baseline" in v["reason"] for v in results["gate"]["rules"])
    assert results["gate"]["baseline"] == f"{workshop.lock} (kdpipe.yaml)"


def test_scores_are_paired_with_those_that_were_kept(workshop: Any, measured: Any) -> None:
    """Of 2,000 samples 40 lost in pairs are a loss; of other samples they prove nothing."""
    renew(workshop.run("a", measured()))
    paired, _ = rejudge(workshop.run("b", measured(right=1860)).folder)
    others = measured(right=1860, eval_sha256="f" * 64)
    unpaired, results = rejudge(workshop.run("c", others).folder)

    assert (paired.exit_code, unpaired.exit_code) == (3, 0)
    assert "accuracy drop against the baseline" in paired.reason
    assert any("unpaired" in v["reason"] for v in results["gate"]["rules"])


def test_a_slower_machine_alone_is_no_loss(workshop: Any, measured: Any) -> None:
    """Where everything, the teacher too, takes twice as long on another CPU."""
    renew(workshop.run("a", measured(seed=1)))
    there = {"cpu": "older", "cores": 2}
    rundir = workshop.run("b", measured(seed=2, ms=2.0, teacher_ms=6.0, machine=there))

    assert rejudge(rundir.folder)[0].exit_code == 0


def test_a_baseline_elsewhere(workshop: Any, measured: Any) -> None:
    """`--baseline FILE` is written, then used; a file without this config is refused."""
    elsewhere = workshop.root / "locks" / "main.yaml"
    renew(workshop.run("a", measured(seed=1)), elsewhere)
    slow = workshop.run("b", measured(seed=2, ms=1.3))
    other = workshop.run("c", measured(), config="other.yaml")

    assert not workshop.lock.exists()
    assert rejudge(slow.folder)[0].exit_code == 0
    assert rejudge(slow.folder, None, elsewhere)[0].exit_code == 3
    with pytest.raises(UsageError, match=r"has no baseline of other\.yaml"):
        rejudge(other.folder, None, elsewhere)
    with pytest.raises(UsageError, match="there is no baseline"):
        rejudge(slow.folder, None, workshop.root / "gone.yaml")


def test_the_command(workshop: Any, measured: Any) -> None:
    """`gate RUN --update-baseline` tells what it writes; with --json stdout is one object."""
    folder = str(workshop.run("a", measured()).folder)
    code, out, _ = kdpipe("gate", folder, "--update-baseline")
    json_code, json_out, json_told = kdpipe("gate", folder, "--update-baseline", "--json")

    assert (code, json_code) == (0, 0)
    assert out.startswith(f"baseline {workshop.lock} (kdpipe.yaml): 1 new\n")
    assert out.splitlines()[-1].startswith("PASSED | ")
    assert json_out.startswith("{")
    assert "1 same" in json_told


def test_a_damaged_baseline_stops_a_run_before_it_starts(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after hours of training."""
    monkeypatch.chdir(project.folder)
    (project.folder / lock.NAME).write_text("schema: 7\n")
    error = project.error()

    assert error.exit_code == 2
    assert "7 is another format" in str(error)


def test_a_run_whose_baseline_is_not_there_does_not_start(project: Any) -> None:
    """`run --baseline FILE` with a typo is the user's to mend, before anything runs."""
    launch = replace(project.launch(), baseline=project.folder / "gone.yaml")

    with pytest.raises(UsageError, match="there is no baseline"):
        launch.run(())
    assert not project.run_dir.journal.exists()


def test_a_run_is_compared_with_the_file_beside_its_config(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` uses it as `gate` does: 20 of 200 right answers lost against the baseline fail."""
    monkeypatch.chdir(project.folder)
    times = {"metric": "latency_mean_ms", "percent-max-degradation": 5.0, "against": "baseline"}
    rules = ({"metric": "size_bytes", "max": 100}, times | {"required": False})
    assert project.run(rules=rules)[0] == 0
    told: list[str] = []
    assert baseline.renew(project.run_dir.folder, None, None, told.append)[0].exit_code == 0
    code, line, results = project.run(rules=rules, right=140)

    assert code == 3
    assert "against the baseline" in line
    assert results["gate"]["baseline"].endswith("(kdpipe.yaml)")
